"""The modes that the files of a home must have, whatever an archive or the umask says.

What holds a secret belongs to its owner alone. The database is among them: it holds credentials in
clear. Set-user-id, set-group-id and sticky bits are never brought back.
"""

from sagewai_ops.home.paths import PARTS, Kind

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
_PRIVATE_KINDS = (Kind.DATABASE, Kind.SIDECAR, Kind.KEY, Kind.SECRET)
_WRITE_BY_OTHERS = 0o022


def file_mode(kind: Kind, mode: int) -> int:
    """Give the mode of a file.

    Args:
        mode: The one that it had.
    """
    return PRIVATE_FILE if kind in _PRIVATE_KINDS else mode & 0o777


def folder_mode(path: str, mode: int) -> int:
    """Give the mode of a folder at a path relative to the home; "" is the home itself."""
    top = path.split("/", 1)[0]
    if top == "secrets":
        return PRIVATE_FOLDER
    if path == "" or (path in PARTS and path != "data"):
        return (mode & 0o777 & ~_WRITE_BY_OTHERS) | PRIVATE_FOLDER
    return mode & 0o777
