"""Entries of a directory, looked at through descriptors so that no link is ever followed."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sagewai_ops.permissions.entry_kinds import Wanted

ACCESS_LIST = "system.posix_acl_access"
DEFAULT_LIST = "system.posix_acl_default"
_CAPABILITY = "security.capability"
_KEY_READ_BYTES = 4096  # of what should be 44: enough to tell how long it is


@contextmanager
def opened(root: Path, relative: str) -> Iterator[int]:
    """Open a directory below a root step by step, following no link, for the length of the block.

    Raises:
        OSError: A step is missing, is a link or may not be entered.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for step in relative.split("/") if relative else ():
            below = os.open(step, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def access_lists(descriptor: int, name: str) -> tuple[bytes | None, bytes | None]:
    """Read the POSIX access lists of an entry that is no link.

    Args:
        descriptor: Of its directory; or of itself, with an empty name.

    Returns:
        (the extended list, the default list of a directory); None where there is none, or where the
        system keeps none.
    """
    found = set(list_names(descriptor, name))
    lists = []
    for attribute in (ACCESS_LIST, DEFAULT_LIST):
        value = None
        if attribute in found:
            with suppress(OSError):
                value = os.getxattr(*_reference(descriptor, name), attribute)
        lists.append(value)
    return lists[0], lists[1]


def list_names(descriptor: int, name: str) -> list[str]:
    """Name the extended attributes of an entry, as far as the system tells."""
    with suppress(OSError, AttributeError):  # only Linux has the calls
        return os.listxattr(*_reference(descriptor, name))
    return []


def is_capable(descriptor: int, name: str) -> bool:
    """Tell whether a program in an open directory has file capabilities."""
    return _CAPABILITY in list_names(descriptor, name)


def _reference(descriptor: int, name: str) -> tuple[int | str]:
    """Name an entry for the calls that know no directory descriptors."""
    return (f"/proc/self/fd/{descriptor}/{name}",) if name else (descriptor,)


def state_of(
    status: os.stat_result, access_list: bytes | None = None, default_list: bytes | None = None
) -> Wanted:
    """Give the state that can be set and put back."""
    mode = stat.S_IMODE(status.st_mode)
    return Wanted(mode, status.st_uid, status.st_gid, access_list, default_list)


def key_length(name: str, descriptor: int | None) -> tuple[int | None, str]:
    """Count the characters of a key, blanks around it left out.

    Returns:
        (the count, or None; why it could not be read).
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if descriptor is not None:
        flags |= os.O_NOFOLLOW
    try:
        opened_file = os.open(name, flags, dir_fd=descriptor)
    except OSError as error:
        return None, f"cannot be read: {(error.strerror or 'refused').lower()}"
    try:
        return len(os.read(opened_file, _KEY_READ_BYTES).strip()), ""
    finally:
        os.close(opened_file)
