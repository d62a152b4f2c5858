"""Files on an SFTP server: open, read, list, replace, create, with several requests in transit."""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from datetime import datetime, timezone

from sagewai_ops.remote.sftp_protocol import (
    CREATE,
    EXCLUSIVE,
    MOST_DATA_BYTES,
    MOST_REQUESTS,
    WRITE,
    Attributes,
    Channel,
    Kind,
    ProtocolError,
    Status,
    StatusError,
    string,
)
from sagewai_ops.remote.store import ObjectFacts

_PIECE_BYTES = 1 << 20  # that a reader returns, at most
_MOST_OBJECTS = 1_000_000  # in one directory; a snapshot has two
_LISTS = 8  # requests for more of a directory at once
_LINK = b"hardlink@openssh.com"
_REPLACE = b"posix-rename@openssh.com"


class Reader:
    """Reads a file with several requests in transit, in order.

    Attributes:
        end: Of the part that is read; set before the first piece.
        done: Up to where it was returned.
    """

    def __init__(self, handle: bytes, offset: int) -> None:
        self._handle = handle
        self._requests: deque[tuple[int, int, int]] = deque()  # id, offset, size
        self._asked = offset
        self.done = offset
        self.end = offset

    def piece(self, channel: Channel) -> bytes:
        """Return the next bytes, at most 1 MiB; empty at the end of the file."""
        parts: list[bytes] = []
        size = 0
        while size < _PIECE_BYTES and self.done < self.end:
            while len(self._requests) < MOST_REQUESTS and self._asked < self.end:
                count = min(MOST_DATA_BYTES, self.end - self._asked)
                self._requests.append((self._ask(channel, self._asked, count), self._asked, count))
                self._asked += count
            if not self._requests:
                break  # it has ended earlier
            number, offset, count = self._requests.popleft()
            try:
                data = channel.expect(number, Kind.DATA).string()
            except StatusError as error:
                if error.status != Status.EOF:
                    raise
                break
            if not data or len(data) > count:
                raise ProtocolError(f"{len(data)} bytes, not {count}")
            if len(data) < count:  # allowed; the rest is asked for first
                rest = (offset + len(data), count - len(data))
                self._requests.appendleft((self._ask(channel, *rest), *rest))
            parts.append(data)
            size += len(data)
            self.done += len(data)
        return b"".join(parts)

    def end_early(self, channel: Channel) -> None:
        """Close the file, whatever was asked for."""
        for number, _offset, _count in self._requests:
            channel.forget(number)
        close_file(channel, self._handle)

    def _ask(self, channel: Channel, offset: int, count: int) -> int:
        return channel.send(Kind.READ, string(self._handle) + struct.pack(">QI", offset, count))


def open_file(channel: Channel, path: bytes, flags: int) -> bytes:
    """Open a file, private if it is created, and return its handle.

    Raises:
        StatusError, ProtocolError, ConnectionClosedError: As for all of this module.
    """
    mode = struct.pack(">II", 4, 0o600)  # attributes: permissions
    number = channel.send(Kind.OPEN, string(path) + struct.pack(">I", flags) + mode)
    return channel.expect(number, Kind.HANDLE).string()


def close_file(channel: Channel, handle: bytes) -> None:
    """Close a file or a directory."""
    channel.status(channel.send(Kind.CLOSE, string(handle)))


def attributes_of(channel: Channel, handle: bytes) -> Attributes:
    """Return what the server states of an open file."""
    return channel.expect(channel.send(Kind.FSTAT, string(handle)), Kind.ATTRS).attributes()


def size_of(channel: Channel, handle: bytes) -> int:
    """Return the size of an open file, in bytes."""
    size = attributes_of(channel, handle).size_bytes
    if size is None:
        raise ProtocolError("a file without a size")
    return size


def replace_file(channel: Channel, path: bytes, final: bytes) -> None:
    """Rename a file, in one step where the server can."""
    if _REPLACE in channel.extensions:
        names = string(path) + string(final)
        channel.status(channel.send(Kind.EXTENDED, string(_REPLACE) + names))
        return
    with contextlib.suppress(StatusError):
        channel.status(channel.send(Kind.REMOVE, string(final)))
    channel.status(channel.send(Kind.RENAME, string(path) + string(final)))


def link_file(channel: Channel, path: bytes, final: bytes) -> bool | None:
    """Add a name to a file unless it exists; return None where the server cannot."""
    if _LINK not in channel.extensions:
        return None
    try:
        names = string(path) + string(final)
        channel.status(channel.send(Kind.EXTENDED, string(_LINK) + names))
    except StatusError as error:
        # FAILURE for a name that exists, and for a file system without links.
        if error.status not in (Status.FAILURE, Status.UNSUPPORTED):
            raise
        try:
            channel.expect(channel.send(Kind.LSTAT, string(final)), Kind.ATTRS)
        except StatusError:
            return None
        return False
    return True


def create_file(channel: Channel, path: bytes, content: bytes) -> bool:
    """Write a small file unless its name exists; return whether it was written."""
    try:
        flags = WRITE | CREATE | EXCLUSIVE
        handle = open_file(channel, path, flags)
    except StatusError as error:
        if error.status != Status.FAILURE:
            raise
        channel.expect(channel.send(Kind.LSTAT, string(path)), Kind.ATTRS)
        return False
    try:
        for start in range(0, len(content), MOST_DATA_BYTES):
            head = string(handle) + struct.pack(">Q", start)
            part = content[start : start + MOST_DATA_BYTES]
            channel.status(channel.send(Kind.WRITE, head, part))
        close_file(channel, handle)
    except StatusError:
        with contextlib.suppress(StatusError):
            channel.status(channel.send(Kind.REMOVE, string(path)))
        raise
    return True


def list_directory(channel: Channel, directory: bytes) -> list[ObjectFacts]:
    """Return the regular files of a directory, in any order."""
    handle = channel.expect(channel.send(Kind.OPENDIR, string(directory)), Kind.HANDLE).string()
    found: list[ObjectFacts] = []
    requests = deque(channel.send(Kind.READDIR, string(handle)) for _each in range(_LISTS))
    is_at_end = False
    while requests:
        try:
            fields = channel.expect(requests.popleft(), Kind.NAME)
        except StatusError as error:
            if error.status != Status.EOF:
                raise
            is_at_end = True
            continue
        count = fields.number()
        if not count:
            raise ProtocolError("a list without entries and without an end")
        for _each in range(count):
            name = os.fsdecode(fields.string())
            fields.string()  # as `ls -l` shows it
            facts = file_facts(name, fields.attributes())
            if facts is not None and "/" not in name and name not in (".", ".."):
                found.append(facts)
        if len(found) > _MOST_OBJECTS:
            raise ProtocolError(f"more than {_MOST_OBJECTS} files")
        if not is_at_end:
            requests.append(channel.send(Kind.READDIR, string(handle)))
    close_file(channel, handle)
    return found


def file_facts(name: str, attributes: Attributes) -> ObjectFacts | None:
    """Return the facts of a regular file, None of anything else."""
    if not attributes.is_file or attributes.size_bytes is None:
        return None
    modified = datetime.fromtimestamp(attributes.modified or 0, timezone.utc)
    return ObjectFacts(name, attributes.size_bytes, modified)
