"""Attributes of directory entries, read through descriptors so that no link is followed."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sagewai_ops.permissions.entry_kinds import EntryState

ACCESS_LIST = "system.posix_acl_access"
DEFAULT_LIST = "system.posix_acl_default"
_CAPABILITY = "security.capability"
_KEY_READ_BYTES = (
    4096  # of a key that should have 44: enough to count the characters of a wrong one
)


@contextmanager
def open_directory(root: Path, relative: str) -> Iterator[int]:
    """Open a directory below a root step by step for the block, following no link.

    Raises:
        OSError: A step is missing, is a link or is not searchable.
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


def read_access_lists(descriptor: int, name: str) -> tuple[bytes | None, bytes | None]:
    """Read the POSIX access lists of an entry that is not a link.

    Args:
        descriptor: Of its directory; or of the entry, with an empty name.

    Returns:
        (the extended list, the default list of a directory); None for a missing list, or where the
        system has no such lists.
    """
    names = set(attribute_names(descriptor, name))
    lists = []
    for attribute in (ACCESS_LIST, DEFAULT_LIST):
        value = None
        if attribute in names:
            with suppress(OSError):
                value = os.getxattr(*_reference(descriptor, name), attribute)
        lists.append(value)
    return lists[0], lists[1]


def attribute_names(descriptor: int, name: str) -> list[str]:
    """Return the names of the extended attributes of an entry, as far as the system shows them."""
    with suppress(OSError, AttributeError):  # only Linux has the calls
        return os.listxattr(*_reference(descriptor, name))
    return []


def has_capabilities(descriptor: int, name: str) -> bool:
    """Return whether a program in an open directory has file capabilities."""
    return _CAPABILITY in attribute_names(descriptor, name)


def _reference(descriptor: int, name: str) -> tuple[int | str]:
    """Return an entry for the calls that take no directory descriptors."""
    return (f"/proc/self/fd/{descriptor}/{name}",) if name else (descriptor,)


def entry_state(
    status: os.stat_result, access_list: bytes | None = None, default_list: bytes | None = None
) -> EntryState:
    """Return the part of an entry's attributes that a repair can change."""
    mode = stat.S_IMODE(status.st_mode)
    return EntryState(mode, status.st_uid, status.st_gid, access_list, default_list)


def read_key_length(name: str, descriptor: int | None) -> tuple[int | None, str]:
    """Count the characters of a key, without whitespace around it.

    Returns:
        (the count, or None; why the key is not readable).
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if descriptor is not None:
        flags |= os.O_NOFOLLOW
    try:
        key = os.open(name, flags, dir_fd=descriptor)
    except OSError as error:
        return None, f"not readable: {(error.strerror or 'input/output error').lower()}"
    try:
        return len(os.read(key, _KEY_READ_BYTES).strip()), ""
    finally:
        os.close(key)
