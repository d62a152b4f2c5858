"""The modes that the files of a home get, whatever mode an archive or the umask has for them.

They follow from the table in `rules`: a mode after all its repairs. Secrets get exactly 0600 and
0700; set-user-id, set-group-id and sticky bits are never restored.
"""

import functools
from dataclasses import replace

from sagewai_ops.permissions.entry_kinds import (
    SECRET_FILES,
    EntryKind,
    EntryState,
    Facts,
    directory_kind,
    file_kind,
)
from sagewai_ops.permissions.rules import (
    KEY_CHARACTERS,
    PRIVATE_DIRECTORY,
    PRIVATE_FILE,
    RULES_BY_KIND,
)

_PERMISSIONS = 0o777
_PRIVATE_DIRECTORIES = (
    EntryKind.SECRET_DIRECTORY,
    EntryKind.OWN_DIRECTORY,
    EntryKind.COMPANION_DIRECTORY,
)
_OPEN_TO_OWNER = (EntryKind.HOME, EntryKind.DIRECTORY)  # Sagewai needs access


def file_mode(path: str, mode: int) -> int:
    """Return the mode of a file at a path relative to the home.

    Args:
        mode: The original one.
    """
    kind = file_kind(path)
    return PRIVATE_FILE if kind in SECRET_FILES else _repaired_mode(kind, "file", mode)


def directory_mode(path: str, mode: int) -> int:
    """Return the mode of a directory at a path relative to the home; "" is the home itself."""
    kind = directory_kind(path)
    if kind in _PRIVATE_DIRECTORIES:
        return PRIVATE_DIRECTORY
    repaired = _repaired_mode(kind, "directory", mode)
    return repaired | (PRIVATE_DIRECTORY if kind in _OPEN_TO_OWNER else 0)


@functools.lru_cache(maxsize=1024)  # a home of 100,000 files has few modes
def _repaired_mode(kind: EntryKind, entry_type: str, mode: int) -> int:
    state = EntryState(mode & _PERMISSIONS, uid=0, gid=0)
    facts = Facts(
        kind, "", entry_type, state, links=1, owner=0, owner_gid=0, key_length=KEY_CHARACTERS
    )
    for rule in RULES_BY_KIND[kind]:
        repaired = rule.repair(facts) if rule.test(facts) else None
        if repaired is not None:
            facts = replace(facts, state=repaired)
    return facts.state.mode & _PERMISSIONS
