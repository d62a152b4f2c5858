"""Who may touch what in a home: the table of rules, as data.

A rule has a stable id, a severity, the parts of a home that it is about, what it protects, a test
and a repair. The test looks at the facts of one entry and says in a phrase what is wrong, or "".
The repair says which state is wanted, or None where only a person can decide. Nothing here reads
or changes a file: `inspection` collects the facts, `repair` applies what is wanted.

Errors are what lets another user read or replace a secret, or makes Sagewai throw its key away.
Warnings are the rest. docs/permissions.md explains each rule to people.
"""

import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from sagewai_ops.home.paths import LEGACY_MASTER_KEY, LEGACY_PLACES
from sagewai_ops.permissions.entry_kinds import (
    SECRET_DIRECTORIES,
    SECRET_FILES,
    Facts,
    Part,
    Wanted,
)

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
KEY_CHARACTERS = 44  # URL-safe base64, with padding, of 32 bytes
OTHERS = 0o077
WRITE_BY_OTHERS = 0o022
LETS_IN = "lets others in"  # ends what is said of a mode
_READ_OR_WRITE = 0o066  # an open file is enough for flock(2); of a key Sagewai looks at no others
_ODD_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_ACL_USER, _ACL_GROUP = 0x02, 0x08  # linux/posix_acl.h


class Severity(str, Enum):
    """How bad it is: an error makes `verify-perms` exit 4, a warning only with `--strict`."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: Stable for ever; never used again for another rule.
        name: In words, for tools that list rules.
        parts: What it is about.
        protects: What goes wrong where it does not hold.
        test: Gives what is wrong, or "".
        repair: Gives the wanted state; None if it takes a person.
        advice: What that person does.
    """

    id: str
    name: str
    severity: Severity
    parts: frozenset[Part]
    protects: str
    test: Callable[[Facts], str]
    repair: Callable[[Facts], Wanted | None]
    advice: str = ""


def _key_mode(facts: Facts) -> str:
    if facts.type != "file":
        return ""
    if facts.state.mode & OTHERS:
        return _lets_in(facts) + (_replaced(facts) if facts.state.mode & _READ_OR_WRITE else "")
    if not facts.state.mode & stat.S_IRUSR:
        return f"mode {facts.state.mode:04o}, its owner cannot read it{_replaced(facts)}"
    return ""


def _key_shape(facts: Facts) -> str:
    if facts.type == "nothing":
        wrong = f"leads nowhere, {facts.target}"
    elif facts.type != "file" and not facts.target:
        wrong = "is not a regular file"
    elif facts.problem and not facts.target:
        wrong = facts.problem
    elif facts.key_length in (KEY_CHARACTERS, None):
        return ""
    else:
        count = facts.key_length
        wrong = f"{count} characters, not {KEY_CHARACTERS}" if count else "empty"
    return wrong + _replaced(facts)


def _replaced(facts: Facts) -> str:
    """Say what Sagewai does with a key that it refuses."""
    if facts.path == LEGACY_MASTER_KEY:
        return "; Sagewai would take it for none"
    return "; Sagewai would write a new key over it"


def _lets_in(facts: Facts) -> str:
    if facts.type in ("link", "nothing") or not facts.state.mode & OTHERS:
        return ""
    return f"mode {facts.state.mode:04o} {LETS_IN}"


def _lets_write(facts: Facts) -> str:
    if facts.type in ("link", "nothing") or not facts.state.mode & WRITE_BY_OTHERS:
        return ""
    return f"mode {facts.state.mode:04o} lets others write"


def _parent_writable(facts: Facts) -> str:
    # In a sticky directory only the owner of an entry may rename or remove it.
    return "" if facts.state.mode & stat.S_ISVTX else _lets_write(facts)


def _parent_owner(facts: Facts) -> str:
    if facts.state.uid in (0, facts.owner):
        return ""
    return f"owned by uid {facts.state.uid}, who can put another home in its place"


def _owner(facts: Facts) -> str:
    if facts.type == "nothing" or facts.state.uid == facts.owner:
        return ""
    return f"owned by uid {facts.state.uid}, not {facts.owner}"


def _access_list(facts: Facts) -> str:
    return f"access list for {_names(facts.state.access_list)}" if facts.state.access_list else ""


def _default_list(facts: Facts) -> str:
    if not facts.state.default_list:
        return ""
    return f"new files get an access list for {_names(facts.state.default_list)}"


def _odd_lists(facts: Facts) -> str:
    return f"{', '.join(facts.odd_lists)}: not judged here" if facts.odd_lists else ""


def _hard_links(facts: Facts) -> str:
    return f"{facts.links} names" if facts.type == "file" and facts.links > 1 else ""


def _link_lets_in(facts: Facts) -> str:
    if not facts.target or not facts.problem:
        return ""
    # Who else owns it, or may replace it, Sagewai does not ask.
    is_refused = facts.part is Part.KEY and facts.problem.endswith(LETS_IN)
    effect = _replaced(facts) if is_refused else ""
    return f"link to {facts.target}: {facts.problem}{effect}"


def _link_dangles(facts: Facts) -> str:
    return f"link to {facts.target}: leads nowhere" if facts.type == "nothing" else ""


def _odd_bits(facts: Facts) -> str:
    is_odd = facts.type == "file" and facts.state.mode & _ODD_BITS
    return f"mode {facts.state.mode:04o} has a set-id or sticky bit" if is_odd else ""


def _lock_mode(facts: Facts) -> str:
    is_open = facts.type == "file" and facts.state.mode & _READ_OR_WRITE
    return f"mode {facts.state.mode:04o} lets others hold it" if is_open else ""


def _is_unread(facts: Facts) -> str:
    return facts.problem if not facts.target else ""


def _not_a_file(facts: Facts) -> str:
    kind = "a directory" if facts.type == "folder" else "a socket, pipe or device"
    return f"is {kind}" if facts.type in ("folder", "other") else ""


def _names(access_list: bytes | None) -> str:
    """Name whom an access list is about: 8 bytes each after 4 (linux/posix_acl_xattr.h)."""
    who = []
    for start in range(4, len(access_list or b"") - 7, 8):
        entry = (access_list or b"")[start : start + 8]
        tag, number = int.from_bytes(entry[:2], "little"), int.from_bytes(entry[4:], "little")
        if tag in (_ACL_USER, _ACL_GROUP):
            who.append(f"{'uid' if tag == _ACL_USER else 'gid'} {number}")
    return ", ".join(who) or "nobody by name"


def _private_file(facts: Facts) -> Wanted | None:
    return replace(facts.state, mode=PRIVATE_FILE)


def _private_directory(facts: Facts) -> Wanted | None:
    return replace(facts.state, mode=PRIVATE_DIRECTORY)


def _not_writable(facts: Facts) -> Wanted | None:
    return replace(facts.state, mode=facts.state.mode & ~WRITE_BY_OTHERS)


def _no_odd_bits(facts: Facts) -> Wanted | None:
    if facts.part in SECRET_FILES:
        return _private_file(facts)
    return replace(facts.state, mode=facts.state.mode & 0o777)


def _own(facts: Facts) -> Wanted | None:
    return replace(facts.state, uid=facts.owner, gid=facts.owner_gid)


def _no_access_list(facts: Facts) -> Wanted | None:
    # What stood in the list's mask stays behind as the group's bits.
    mode = PRIVATE_FILE if facts.part in SECRET_FILES else facts.state.mode & ~WRITE_BY_OTHERS
    return replace(facts.state, access_list=None, mode=mode)


def _no_default_list(facts: Facts) -> Wanted | None:
    return replace(facts.state, default_list=None)


def _by_hand(_facts: Facts) -> Wanted | None:
    return None


_E, _W = Severity.ERROR, Severity.WARNING
_ANY_DIRECTORY = SECRET_DIRECTORIES | {Part.SESSIONS}
_READS = "who reads it has the credentials in it"

RULES = (
    Rule("P001", "master key is private", _E, frozenset({Part.KEY}),
         "every sealed value: Sagewai takes a key that others may read for none, and replaces it",
         _key_mode, _private_file),
    Rule("P002", "master key is a key", _E, frozenset({Part.KEY}),
         "every sealed value: Sagewai takes a key of another length for none, and replaces it",
         _key_shape, _by_hand,
         "put the right key there, from where its copy is kept, before Sagewai starts"),
    Rule("P003", "secrets belong to the home's user", _E, SECRET_FILES | SECRET_DIRECTORIES,
         "its owner can read and replace it, and Sagewai may not be able to", _owner, _own),
    Rule("P004", "secrets/ is private", _E, frozenset({Part.SECRET_DIRECTORY}),
         "Sagewai creates the key with the umask's mode and narrows it later", _lets_in,
         _private_directory),
    Rule("P005", "directories with secrets are not writable by others", _E,
         frozenset({Part.HOME, Part.DIRECTORY}),
         "who writes to the directory can put his own documents in place", _lets_write,
         _not_writable),
    Rule("P006", "documents are private", _E, frozenset({Part.DOCUMENT, Part.SECRET}), _READS,
         _lets_in, _private_file),
    Rule("P007", "backups of documents are private", _E, frozenset({Part.BACKUP}),
         "they hold what it held, tokens and API keys in clear from before they were sealed",
         _lets_in, _private_file),
    Rule("P008", "leftovers of crashes are private", _E, frozenset({Part.LEFTOVER}), _READS,
         _lets_in, _private_file),
    Rule("P009", "worker credentials are private", _E, frozenset({Part.WORKER}),
         "they hold the worker's secret in clear", _lets_in, _private_file),
    Rule("P010", "the database is private", _E, frozenset({Part.DATABASE}),
         "it holds credentials, prompts and hashes in clear", _lets_in, _private_file),
    Rule("P011", "documents of the older layout are private", _E, frozenset({Part.LEGACY}), _READS,
         _lets_in, _private_file),
    Rule("P012", "nothing is left of the older layout", _W, frozenset({Part.LEGACY, Part.KEY}),
         "a copy that Sagewai no longer reads keeps its secrets",
         lambda facts: "is of the older layout" if facts.path in LEGACY_PLACES else "",
         _by_hand, "`sagewai-ops migrate-layout`"),
    Rule("P013", "no access list lets others in", _E, SECRET_FILES | SECRET_DIRECTORIES,
         "an access list names others who may read or write", _access_list, _no_access_list),
    Rule("P014", "no access list is inherited", _E, _ANY_DIRECTORY,
         "Sagewai's new files get the list, whatever the umask says", _default_list,
         _no_default_list),
    Rule("P015", "access lists can be judged", _W, frozenset({Part.HOME}),
         "the file system keeps lists of its own, which may let others in", _odd_lists, _by_hand,
         "look at them with the file system's own tools, such as `nfs4_getfacl`"),
    Rule("P016", "secrets have one name", _W, SECRET_FILES,
         "another name of the file may be where others reach it, and outlives its removal here",
         _hard_links, _by_hand, "find the other names: `find / -xdev -samefile FILE`"),
    Rule("P017", "links to secrets lead to private files", _E, SECRET_FILES | SECRET_DIRECTORIES,
         _READS, _link_lets_in, _by_hand, "`chmod` what it leads to; links are not followed here"),
    Rule("P018", "links to secrets lead somewhere", _W,
         (SECRET_FILES | SECRET_DIRECTORIES) - {Part.KEY},
         "Sagewai takes it for missing, and starts empty", _link_dangles, _by_hand,
         "mount or restore what it leads to, or remove the link"),
    Rule("P019", "directories above the home are not writable by others", _E,
         frozenset({Part.PARENT}),
         "who writes there can put another home in its place", _parent_writable, _by_hand,
         "`chmod go-w` it, if it is yours; nothing above the home is changed here"),
    Rule("P020", "directories above the home belong to its user or to root", _E,
         frozenset({Part.PARENT}), "its owner can put another home in its place", _parent_owner,
         _by_hand, "move the home, or `chown` the directory; nothing above it is changed here"),
    Rule("P021", "nothing is writable by others", _W, frozenset({Part.OTHER, Part.SESSIONS}),
         "others can change artifacts and what agents read", _lets_write, _not_writable),
    Rule("P022", "no set-id or sticky bits on files", _W, SECRET_FILES | {Part.OTHER, Part.LOCK},
         "a program there would run with its owner's rights", _odd_bits, _no_odd_bits),
    Rule("P023", "the snapshot directory is private", _E, frozenset({Part.SNAPSHOTS}),
         "snapshots hold the whole home", _lets_in, _private_directory),
    Rule("P024", "snapshots are private", _E, frozenset({Part.SNAPSHOT}),
         "a snapshot holds everything but the key", _lets_in, _private_file),
    Rule("P025", "what this program keeps is private", _E,
         frozenset({Part.OWN, Part.OWN_DIRECTORY}),
         "it may hold what a restore put aside", _lets_in,
         lambda facts: (
             _private_directory(facts) if facts.type == "folder" else _private_file(facts)
         )),
    Rule("P026", "the lock is the home's own", _W, frozenset({Part.LOCK}),
         "who can open the lock can hold it, and Sagewai waits for ever", _lock_mode,
         _private_file),
    Rule("P027", "conversations are private", _W, frozenset({Part.SESSIONS}),
         "they hold what people said to agents", _lets_in, _private_directory),
    Rule("P028", "everything belongs to the home's user", _W,
         frozenset({Part.OTHER, Part.LOCK, Part.SESSIONS}),
         "Sagewai may be unable to change it, and its owner can", _owner, _own),
    Rule("P029", "everything can be checked", _E, frozenset(Part) - {Part.KEY, Part.VARIABLE},
         "nothing is known of what is in it", _is_unread, _by_hand,
         "run it as the home's user or as root"),
    Rule("P030", "documents are regular files", _W, SECRET_FILES - {Part.KEY},
         "Sagewai fails or starts empty where something else stands", _not_a_file, _by_hand,
         "look what it is and move it away"),
    Rule("P031", "no program has capabilities", _W, SECRET_FILES | {Part.OTHER},
         "who runs it has powers of root, which no mode shows",
         lambda facts: "has file capabilities" if facts.is_capable else "",
         _by_hand, "`getcap -r` the home, then `setcap -r` the file"),
    Rule("P032", "a key of the environment is a key", _E, frozenset({Part.VARIABLE}),
         "every sealed value: Sagewai takes it for none, and does not fall back to the file",
         lambda facts: f"{facts.problem}; Sagewai would write a new key over this one",
         _by_hand, "put the right key into the variable, or take the variable away"),
)  # fmt: skip
RULES_BY_PART: dict[Part, tuple[Rule, ...]] = {
    part: tuple(rule for rule in RULES if part in rule.parts) for part in Part
}
