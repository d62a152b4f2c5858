"""Files that the user names: passphrases, identities, keys, configuration, logs, metrics.

The owner of the directory of such a file can put a pipe there, which blocks, or a link to another
file. So these are opened without blocking, only a regular file is used, and no link is followed
that another user made or can replace. Standard input and descriptors that the shell passes
(`/dev/stdin`, `<(command)`) are pipes and accepted to read.
"""

import codecs
import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sagewai_ops.errors import UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.trust import report

MOST_BYTES = 1 << 20  # of a file that is read whole: keys, recipients and passphrases have less

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_PASSED = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,6})")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_MOST_LINKS = 40  # path_resolution(7)
_READABLE = stat.S_IRGRP | stat.S_IROTH

_openers: list[Callable[[Path], int | None]] = []


def route_given_files(opener: Callable[[Path], int | None]) -> None:
    """Have another process open files that the user names, to read them.

    Args:
        opener: Called with a path; returns a descriptor, or None for a file that is opened here.
    """
    _openers[:] = [opener]


def is_routed() -> bool:
    """Return whether another process opens such files: root's, for one with a user's rights."""
    return bool(_openers)


def open_given_file(path: Path, flags: int = os.O_RDONLY, mode: int | None = None) -> int:
    """Open a regular file, or a descriptor or terminal that is named like one.

    Args:
        mode: Of the file if it is created (default: it must exist).

    Raises:
        OSError: The system refused, it is another type of file, or a link of another user leads
            to it.
    """
    passed = passed_descriptor(os.fspath(path))
    if passed is not None:
        return os.dup(passed)
    if _openers and flags == os.O_RDONLY and (remote := _openers[0](path)) is not None:
        return remote
    resolved = resolve_given_path(path)
    try:
        descriptor = _open(resolved, flags, mode)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISCHR(found.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file")  # noqa: TRY301 - completed below
        # In a user's directory, a second name can be that of root's file.
        if found.st_nlink > 1 and not os.geteuid() and os.lstat(resolved.parent).st_uid:
            os.close(descriptor)
            raise OSError(errno.EMLINK, "has several names")  # noqa: TRY301 - completed below
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    return descriptor


def passed_descriptor(path: str) -> int | None:
    """Return the descriptor that a path names, such as `/dev/stdin`; None if it is another."""
    match = _PASSED.fullmatch(path)
    return int(match[1]) if match else _STANDARD.get(path)


def read_given_file(
    path: Path, limit_bytes: int = MOST_BYTES, *, private: str = "", public: str = ""
) -> bytes:
    """Read a file.

    Args:
        private: What it is, if no other user should read or write it: others are reported.
        public: What it is, if no other user should write it.

    Raises:
        OSError: As for `open_given_file`, or it is longer than the limit.
    """
    with open(open_given_file(path), "rb") as stream:
        found = os.fstat(stream.fileno())
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"longer than {limit_bytes} bytes", os.fspath(path))
    mode = stat.S_IMODE(found.st_mode) if stat.S_ISREG(found.st_mode) else 0
    access = ["write"] if mode & beneath.OTHERS_WRITE else []
    if private and mode & _READABLE:
        access.insert(0, "read")
    if access and (private or public):
        report(
            f"{private or public} {path}: mode {mode:04o}, others can {' and '.join(access)} it: "
            + ("chmod 600" if private else "chmod go-w")
        )
    return content


def decode_given(content: bytes, name: str) -> str:
    """Return the text of a file, without the byte order mark that some editors write.

    Args:
        name: Of the file, with what it is, for errors.

    Raises:
        UsageError: It is not UTF-8; no byte of it is shown.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            raise UsageError(
                f"{name}: encoded in {encoding}, not in UTF-8", hint="save it as UTF-8, or ASCII"
            )
    if b"\0" in content:
        raise UsageError(f"{name}: contains NUL bytes, as UTF-16 does: not text in UTF-8")
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name}: not text in UTF-8, at byte {error.start}",
            hint="convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW",
        ) from None


def resolve_given_path(path: Path, *, follow_last: bool = True, owner: int | None = None) -> Path:
    """Return a path without links, all of which are the user's own or root's.

    Args:
        follow_last: Also resolve the entry itself.
        owner: The user whose links are followed, with root's (default: this process's).

    Raises:
        OSError: Another user made a link in the path, or can replace it.
    """
    owners = (0, os.geteuid() if owner is None else owner)

    def check(directory: str, found: os.stat_result, *, is_followed: bool) -> None:
        for uid in (found.st_uid, os.lstat(directory).st_uid) if is_followed else ():
            if uid not in owners:
                message = f"a link of uid {uid}, not followed"
                raise OSError(errno.ELOOP, message, os.fspath(path))

    return Path(_walk(path, check, follow_last=follow_last))


def path_owners(path: Path) -> frozenset[int]:
    """Return the users other than root that can change where a path leads.

    These are the owners of the directories and links in it; the last entry counts if it is a link.
    """
    owners = set()

    def add(directory: str, found: os.stat_result, *, is_followed: bool) -> None:
        owners.add(os.lstat(directory).st_uid)
        if is_followed:
            owners.add(found.st_uid)

    with contextlib.suppress(OSError):  # where it ends, it leads nowhere
        _walk(path, add)
    return frozenset(owners - {0})


class _Visit(Protocol):
    def __call__(self, directory: str, found: os.stat_result, *, is_followed: bool) -> None:
        """See an entry of a directory before it is entered or followed."""


def _walk(path: Path, visit: _Visit, *, follow_last: bool = True) -> str:
    """Resolve a path as the kernel does, step by step; from what does not exist, it is text.

    Raises:
        OSError: There are too many links, or the system refused.
    """
    directory, steps, links = "/", os.fspath(path.absolute()).split("/")[::-1], 0
    while steps:
        step = steps.pop()
        if step in ("", "."):
            continue
        entry = os.path.dirname(directory) if step == ".." else os.path.join(directory, step)
        try:
            found = os.lstat(entry)
            is_last = not any(steps) and not follow_last
            is_followed = stat.S_ISLNK(found.st_mode) and not is_last
            visit(directory, found, is_followed=is_followed)
            target = os.readlink(entry) if is_followed else ""
        except OSError as error:
            if error.errno == errno.EINVAL and links < _MOST_LINKS:
                steps.append(step)  # it is no link any more
                links += 1
                continue
            if error.errno not in (errno.ENOENT, errno.EACCES):
                refused = directory if error.errno == errno.ENOTDIR else os.fspath(path)
                raise OSError(error.errno, error.strerror, refused) from error
            return os.path.normpath(os.path.join(entry, *reversed(steps)))
        if not is_followed:
            directory = entry
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
        if target.startswith("/"):
            directory = "/"
        steps.extend(target.split("/")[::-1])
    return directory


def _open(path: Path, flags: int, mode: int | None) -> int:
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with beneath.closing(beneath.open_directory(path.parent)) as directory:
        try:
            return os.open(path.name, flags, dir_fd=directory)
        except FileNotFoundError:
            if mode is None:
                raise
        descriptor = os.open(path.name, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=directory)
        owner = os.fstat(directory)
        if not os.geteuid() and owner.st_uid:  # else that user's own runs could not write it
            beneath.set_owner(descriptor, owner.st_uid, owner.st_gid)
        return descriptor
