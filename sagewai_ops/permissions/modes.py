"""The modes that the files of a home must have, whatever an archive or the umask says.

They are what the table in `rules` leaves of a mode once all its repairs are made. Secrets are
narrowed to exactly 0600 and 0700, and set-user-id, set-group-id and sticky bits never come back.
"""

import functools
from dataclasses import replace

from sagewai_ops.permissions.entry_kinds import (
    SECRET_FILES,
    Facts,
    Part,
    Wanted,
    part_of_directory,
    part_of_file,
)
from sagewai_ops.permissions.rules import (
    KEY_CHARACTERS,
    PRIVATE_DIRECTORY,
    PRIVATE_FILE,
    RULES_BY_PART,
)

_PERMISSIONS = 0o777
_PRIVATE_DIRECTORIES = (Part.SECRET_DIRECTORY, Part.OWN_DIRECTORY)
_USED_BY_OWNER = (Part.HOME, Part.DIRECTORY)  # Sagewai has to get in


def file_mode(path: str, mode: int) -> int:
    """Give the mode of a file at a path relative to the home.

    Args:
        mode: The one that it had.
    """
    part = part_of_file(path)
    return PRIVATE_FILE if part in SECRET_FILES else _repaired(part, "file", mode)


def directory_mode(path: str, mode: int) -> int:
    """Give the mode of a directory at a path relative to the home; "" is the home itself."""
    part = part_of_directory(path)
    if part in _PRIVATE_DIRECTORIES:
        return PRIVATE_DIRECTORY
    return _repaired(part, "folder", mode) | (PRIVATE_DIRECTORY if part in _USED_BY_OWNER else 0)


@functools.lru_cache(maxsize=1024)  # a home of 100,000 files has few modes
def _repaired(part: Part, kind: str, mode: int) -> int:
    state = Wanted(mode & _PERMISSIONS, uid=0, gid=0)
    facts = Facts(part, "", kind, state, links=1, owner=0, owner_gid=0, key_length=KEY_CHARACTERS)
    for rule in RULES_BY_PART[part]:
        wanted = rule.repair(facts) if rule.test(facts) else None
        if wanted is not None:
            facts = replace(facts, state=wanted)
    return facts.state.mode & _PERMISSIONS
