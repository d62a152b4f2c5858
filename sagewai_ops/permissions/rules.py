"""The rules about permissions in a home, as a table.

A rule has a stable id, a severity, the kinds of entries that it is about, the risk, a test and a
repair. The test returns what is wrong with an entry in a phrase, or "". The repair returns the
state that the entry should have, or None where the decision is a person's. Nothing here reads or
changes a file: `scan` collects the facts, `repair` applies the states.

An error allows another user to read or replace a secret, or makes Sagewai replace its key; the
other rules are warnings. docs/permissions.md explains each.
"""

import stat
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from sagewai_ops.home.paths import LEGACY_MASTER_KEY, LEGACY_PLACES
from sagewai_ops.permissions.entry_kinds import (
    SECRET_DIRECTORIES,
    SECRET_FILES,
    EntryKind,
    EntryState,
    Facts,
)
from sagewai_ops.records import dataclass

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
KEY_CHARACTERS = 44  # URL-safe base64, with padding, of 32 bytes
OTHERS = 0o077
WRITE_BY_OTHERS = 0o022
ACCESSIBLE = "accessible to others"  # ends the phrase about a mode
_READ_OR_WRITE = (
    0o066  # enough to open a file, and so for flock(2); Sagewai ignores x bits of a key
)
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_ACL_USER, _ACL_GROUP = 0x02, 0x08  # linux/posix_acl.h


class Severity(str, Enum):
    """An error makes `verify-perms` exit 4, a warning only with `--strict`."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule.

    Attributes:
        id: Permanent; never used again for another rule.
        name: In words, for tools that list rules.
        kinds: Of the entries that it is about.
        protects: The risk of an entry that violates it.
        test: Returns what is wrong, or "".
        repair: Returns the repaired state; None if a person has to decide.
        advice: For that person.
    """

    id: str
    name: str
    severity: Severity
    kinds: frozenset[EntryKind]
    protects: str
    test: Callable[[Facts], str]
    repair: Callable[[Facts], EntryState | None]
    advice: str = ""


def _key_mode(facts: Facts) -> str:
    if facts.type != "file":
        return ""
    if facts.state.mode & OTHERS:
        return _accessible(facts) + (_key_loss(facts) if facts.state.mode & _READ_OR_WRITE else "")
    if not facts.state.mode & stat.S_IRUSR:
        return f"mode {facts.state.mode:04o}, not readable by its owner{_key_loss(facts)}"
    return ""


def _key_shape(facts: Facts) -> str:
    if facts.type == "nothing":
        message = f"dangling link to {facts.target}"
    elif facts.type != "file" and not facts.target:
        message = "not a regular file"
    elif facts.problem and not facts.target:
        message = facts.problem
    elif facts.key_length in (KEY_CHARACTERS, None):
        return ""
    else:
        count = facts.key_length
        message = f"{count} characters, not {KEY_CHARACTERS}" if count else "empty"
    return message + _key_loss(facts)


def _key_loss(facts: Facts) -> str:
    """Return a phrase about what Sagewai does with a key that it does not accept."""
    if facts.path == LEGACY_MASTER_KEY:
        return "; Sagewai would ignore it"
    return "; Sagewai would replace it with a new key"


def _accessible(facts: Facts) -> str:
    if facts.type in ("link", "nothing") or not facts.state.mode & OTHERS:
        return ""
    return f"mode {facts.state.mode:04o}, {ACCESSIBLE}"


def _writable(facts: Facts) -> str:
    if facts.type in ("link", "nothing") or not facts.state.mode & WRITE_BY_OTHERS:
        return ""
    return f"mode {facts.state.mode:04o}, writable by others"


def _parent_writable(facts: Facts) -> str:
    # In a sticky directory only the owner of an entry can rename or remove it.
    return "" if facts.state.mode & stat.S_ISVTX else _writable(facts)


def _parent_owner(facts: Facts) -> str:
    if facts.state.uid in (0, facts.owner):
        return ""
    return f"owned by uid {facts.state.uid}, who can replace the home"


def _owner(facts: Facts) -> str:
    if facts.type == "nothing" or facts.state.uid == facts.owner:
        return ""
    return f"owned by uid {facts.state.uid}, not {facts.owner}"


def _access_list(facts: Facts) -> str:
    names = _grantees(facts.state.access_list)
    return f"access list for {names}" if facts.state.access_list else ""


def _default_list(facts: Facts) -> str:
    if not facts.state.default_list:
        return ""
    return f"new files inherit an access list for {_grantees(facts.state.default_list)}"


def _unknown_lists(facts: Facts) -> str:
    return f"{', '.join(facts.unknown_lists)}: not checked" if facts.unknown_lists else ""


def _hard_links(facts: Facts) -> str:
    return f"{facts.links} hard links" if facts.type == "file" and facts.links > 1 else ""


def _link_target(facts: Facts) -> str:
    if not facts.target or not facts.problem:
        return ""
    # Sagewai checks the mode of the key, not its owner or the directories above it.
    is_refused = facts.kind is EntryKind.KEY and facts.problem.endswith(ACCESSIBLE)
    effect = _key_loss(facts) if is_refused else ""
    return f"link to {facts.target}: {facts.problem}{effect}"


def _dangling_link(facts: Facts) -> str:
    return f"dangling link to {facts.target}" if facts.type == "nothing" else ""


def _special_bits(facts: Facts) -> str:
    has_bits = facts.type == "file" and facts.state.mode & _SPECIAL_BITS
    return f"mode {facts.state.mode:04o}, set-id or sticky bit" if has_bits else ""


def _lock_mode(facts: Facts) -> str:
    is_open = facts.type == "file" and facts.state.mode & _READ_OR_WRITE
    return f"mode {facts.state.mode:04o}, others can lock it" if is_open else ""


def _unchecked(facts: Facts) -> str:
    return facts.problem if not facts.target else ""


def _not_a_file(facts: Facts) -> str:
    types = {"directory": "is a directory", "other": "is a socket, pipe or device"}
    return types.get(facts.type, "")


def _grantees(access_list: bytes | None) -> str:
    """Return the users and groups of an access list.

    The entries have 8 bytes each, after 4 (linux/posix_acl_xattr.h).
    """
    names = []
    for start in range(4, len(access_list or b"") - 7, 8):
        entry = (access_list or b"")[start : start + 8]
        tag, number = int.from_bytes(entry[:2], "little"), int.from_bytes(entry[4:], "little")
        if tag in (_ACL_USER, _ACL_GROUP):
            names.append(f"{'uid' if tag == _ACL_USER else 'gid'} {number}")
    return ", ".join(names) or "no named user"


def _private_file(facts: Facts) -> EntryState | None:
    return replace(facts.state, mode=PRIVATE_FILE)


def _private_directory(facts: Facts) -> EntryState | None:
    return replace(facts.state, mode=PRIVATE_DIRECTORY)


def _private_entry(facts: Facts) -> EntryState | None:
    return _private_directory(facts) if facts.type == "directory" else _private_file(facts)


def _not_writable(facts: Facts) -> EntryState | None:
    return replace(facts.state, mode=facts.state.mode & ~WRITE_BY_OTHERS)


def _no_special_bits(facts: Facts) -> EntryState | None:
    if facts.kind in SECRET_FILES:
        return _private_file(facts)
    return replace(facts.state, mode=facts.state.mode & 0o777)


def _home_owner(facts: Facts) -> EntryState | None:
    return replace(facts.state, uid=facts.owner, gid=facts.owner_gid)


def _no_access_list(facts: Facts) -> EntryState | None:
    # The mask of the list remains as the bits of the group.
    mode = PRIVATE_FILE if facts.kind in SECRET_FILES else facts.state.mode & ~WRITE_BY_OTHERS
    return replace(facts.state, access_list=None, mode=mode)


def _no_default_list(facts: Facts) -> EntryState | None:
    return replace(facts.state, default_list=None)


def _by_hand(_facts: Facts) -> EntryState | None:
    return None


_E, _W = Severity.ERROR, Severity.WARNING
_K = EntryKind
_ANY_DIRECTORY = SECRET_DIRECTORIES | {EntryKind.SESSIONS}
_CREDENTIALS = "another user can read the credentials in it"

RULES = (
    Rule("P001", "master key is private", _E, frozenset({_K.KEY}),
         "loss of all encrypted values: Sagewai replaces a key that others can read or write",
         _key_mode, _private_file),
    Rule("P002", "master key is a key", _E, frozenset({_K.KEY}),
         "loss of all encrypted values: Sagewai replaces a key of another length",
         _key_shape, _by_hand, "put the right key there, from its copy, before Sagewai starts"),
    Rule("P003", "secrets belong to the home's user", _E, SECRET_FILES | SECRET_DIRECTORIES,
         "its owner can read and replace it, and Sagewai perhaps cannot", _owner, _home_owner),
    Rule("P004", "secrets/ is private", _E, frozenset({_K.SECRET_DIRECTORY}),
         "Sagewai creates the key with the umask's mode and restricts it later", _accessible,
         _private_directory),
    Rule("P005", "directories with secrets are not writable by others", _E,
         frozenset({_K.HOME, _K.DIRECTORY}),
         "another user can replace the documents in it", _writable, _not_writable),
    Rule("P006", "documents are private", _E, frozenset({_K.DOCUMENT, _K.SECRET}), _CREDENTIALS,
         _accessible, _private_file),
    Rule("P007", "backups of documents are private", _E, frozenset({_K.BACKUP}),
         "they contain tokens and API keys in plaintext, from before their encryption",
         _accessible, _private_file),
    Rule("P008", "leftovers of crashes are private", _E, frozenset({_K.LEFTOVER}), _CREDENTIALS,
         _accessible, _private_file),
    Rule("P009", "worker credentials are private", _E, frozenset({_K.WORKER}),
         "they contain the worker's secret in plaintext", _accessible, _private_file),
    Rule("P010", "the database is private", _E, frozenset({_K.DATABASE}),
         "it contains credentials, prompts and hashes in plaintext", _accessible, _private_file),
    Rule("P011", "documents of the older layout are private", _E, frozenset({_K.LEGACY}),
         _CREDENTIALS, _accessible, _private_file),
    Rule("P012", "no documents of the older layout", _W, frozenset({_K.LEGACY, _K.KEY}),
         "a copy that Sagewai no longer reads still contains secrets",
         lambda facts: "belongs to the older layout" if facts.path in LEGACY_PLACES else "",
         _by_hand, "`sagewai-ops migrate-layout`"),
    Rule("P013", "no access lists on secrets", _E, SECRET_FILES | SECRET_DIRECTORIES,
         "the list allows others to read or write", _access_list, _no_access_list),
    Rule("P014", "no access list is inherited", _E, _ANY_DIRECTORY,
         "Sagewai's new files get the list, whatever the umask", _default_list, _no_default_list),
    Rule("P015", "access lists can be checked", _W, frozenset({_K.HOME}),
         "the file system has lists of another kind, which perhaps allow others to read",
         _unknown_lists, _by_hand,
         "check them with the file system's own tools, such as `nfs4_getfacl`"),
    Rule("P016", "secrets have one name", _W, SECRET_FILES,
         "the other name is perhaps accessible to others, and remains when this one is removed",
         _hard_links, _by_hand, "find the other names: `find / -xdev -samefile FILE`"),
    Rule("P017", "links to secrets lead to private files", _E, SECRET_FILES | SECRET_DIRECTORIES,
         _CREDENTIALS, _link_target, _by_hand, "`chmod` the target; --fix follows no link"),
    Rule("P018", "links to secrets are not dangling", _W,
         (SECRET_FILES | SECRET_DIRECTORIES) - {_K.KEY},
         "to Sagewai the file is missing, and it starts with an empty one", _dangling_link,
         _by_hand, "mount or restore the target, or remove the link"),
    Rule("P019", "directories above the home are not writable by others", _E,
         frozenset({_K.PARENT}),
         "another user can replace the home", _parent_writable, _by_hand,
         "`chmod go-w` it; --fix changes nothing above the home"),
    Rule("P020", "directories above the home belong to its user or to root", _E,
         frozenset({_K.PARENT}), "its owner can replace the home", _parent_owner,
         _by_hand, "move the home, or `chown` the directory; --fix changes nothing above the home"),
    Rule("P021", "nothing is writable by others", _W, frozenset({_K.OTHER, _K.SESSIONS}),
         "others can change artifacts and the input of agents", _writable, _not_writable),
    Rule("P022", "no set-id or sticky bits on files", _W, SECRET_FILES | {_K.OTHER, _K.LOCK},
         "a program there runs with the rights of its owner", _special_bits, _no_special_bits),
    Rule("P023", "the snapshot directory is private", _E, frozenset({_K.SNAPSHOTS}),
         "snapshots contain the whole home", _accessible, _private_directory),
    Rule("P024", "snapshots are private", _E, frozenset({_K.SNAPSHOT}),
         "a snapshot contains everything but the key", _accessible, _private_file),
    Rule("P025", "files of this program are private", _E, frozenset({_K.OWN, _K.OWN_DIRECTORY}),
         "they can contain what a restore replaced", _accessible, _private_entry),
    Rule("P026", "the lock belongs to the home's user alone", _W, frozenset({_K.LOCK}),
         "a user that can open the lock can keep it, and Sagewai waits for it", _lock_mode,
         _private_file),
    Rule("P027", "conversations are private", _W, frozenset({_K.SESSIONS}),
         "they contain the messages of people to agents", _accessible, _private_directory),
    Rule("P028", "everything belongs to the home's user", _W,
         frozenset({_K.OTHER, _K.LOCK, _K.SESSIONS}),
         "its owner can change it, and Sagewai perhaps cannot", _owner, _home_owner),
    Rule("P029", "everything can be checked", _E, frozenset(_K) - {_K.KEY, _K.VARIABLE},
         "its content is not checked", _unchecked, _by_hand,
         "run it as the home's user or as root"),
    Rule("P030", "documents are regular files", _W, SECRET_FILES - {_K.KEY},
         "Sagewai fails, or starts with an empty document", _not_a_file, _by_hand,
         "find out what it is, and move it away"),
    Rule("P031", "no program has capabilities", _W, SECRET_FILES | {_K.OTHER},
         "its user gets powers of root, which no mode shows",
         lambda facts: "has file capabilities" if facts.is_capable else "",
         _by_hand, "`getcap -r` the home, then `setcap -r` the file"),
    Rule("P032", "a key of the environment is a key", _E, frozenset({_K.VARIABLE}),
         "loss of all encrypted values: Sagewai ignores the variable, and the file as well",
         lambda facts: f"{facts.problem}; Sagewai would replace this file with a new key",
         _by_hand, "put the right key into the variable, or remove the variable"),
    Rule("P033", "the directory of litestream is private", _E, frozenset({_K.COMPANION_DIRECTORY}),
         "it contains pages of the database in plaintext, also those of deleted rows",
         _accessible, _private_directory),
)  # fmt: skip
RULES_BY_KIND: dict[EntryKind, tuple[Rule, ...]] = {
    kind: tuple(rule for rule in RULES if kind in rule.kinds) for kind in EntryKind
}
