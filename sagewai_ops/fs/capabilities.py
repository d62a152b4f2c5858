"""What the file system of a scratch directory cannot do: no fault of a snapshot."""

import errno
import os
from pathlib import Path

from sagewai_ops.fs import beneath, volumes

_OTHERS = 0o077
# What a file system answers that has no links, locks or modes, or cannot store a name.
_ERRORS_OF_PLACE = volumes.UNSUPPORTED | {
    *(errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ, errno.EMLINK),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
}
_SQLITE_ERRORS_OF_PLACE = ("LOCK", "SHM", "FULL", "READONLY", "CANTOPEN")


def stores_modes(directory: Path) -> bool:
    """Return whether the file system of a private directory stores modes."""
    probe = directory / ".mode"
    descriptor = beneath.create_file(probe, 0o600)
    try:
        return not os.fstat(descriptor).st_mode & _OTHERS
    finally:
        os.close(descriptor)
        beneath.unlink(probe)


def is_of_place(error: BaseException | None) -> bool:
    """Return whether the file system of the scratch directory cannot do what was asked of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _ERRORS_OF_PLACE:
            return True
        name = getattr(error, "sqlite_errorname", "")  # since Python 3.11
        if any(part in name for part in _SQLITE_ERRORS_OF_PLACE):
            return True
        error = error.__cause__
    return False
