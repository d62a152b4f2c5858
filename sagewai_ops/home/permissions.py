"""The modes that the files of a home must have, whatever an archive or the umask says.

They follow from the table in `rules`. Set-user-id, set-group-id and sticky bits are never brought
back.
"""

from sagewai_ops.home.parts import PRIVATE_KINDS, Part, part_of_folder
from sagewai_ops.home.paths import Kind
from sagewai_ops.home.rules import PRIVATE_FILE, PRIVATE_FOLDER, WRITE_BY_OTHERS

_PERMISSIONS = 0o777


def file_mode(kind: Kind, mode: int) -> int:
    """Give the mode of a file.

    Args:
        mode: The one that it had.
    """
    return PRIVATE_FILE if kind in PRIVATE_KINDS else mode & _PERMISSIONS


def folder_mode(path: str, mode: int) -> int:
    """Give the mode of a folder at a path relative to the home; "" is the home itself."""
    part = part_of_folder(path)
    if part in (Part.SECRET_FOLDER, Part.OWN_FOLDER):
        return PRIVATE_FOLDER
    if part in (Part.HOME, Part.FOLDER):
        return (mode & _PERMISSIONS & ~WRITE_BY_OTHERS) | PRIVATE_FOLDER
    return mode & _PERMISSIONS
