"""Version 3 of the SFTP protocol over the pipes of a program: packets, requests, replies.

The server is an attacker: packets are at most as long as OpenSSH's, replies belong to requests that
were sent, and no more data is taken than was asked for.

Source: draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for the extensions.
"""

from __future__ import annotations

import enum
import os
import select
import stat
import struct
import time
from collections.abc import Mapping

from sagewai_ops.process.frames import enlarge_pipe
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.records import dataclass

VERSION = 3
MOST_PACKET_BYTES = 256 * 1024  # SFTP_MAX_MSG_LENGTH of OpenSSH
MOST_DATA_BYTES = 32 * 1024  # of one read or write, which every server accepts
MOST_REQUESTS = 64  # in transit, as sftp(1) sends
_MOST_OUTGOING_BYTES = 256 * 1024  # that wait for the pipe
_PIPE_BYTES = 1 << 20
_MOST_NOTE_BYTES = 16 * 1024  # of what the program writes to its standard error

_SIZE, _OWNER, _MODE, _TIMES, _EXTENDED = 1, 2, 4, 8, 0x80000000  # flags of attributes

READ, WRITE, CREATE, EXCLUSIVE = 1, 2, 8, 0x20  # flags of OPEN


class Kind(enum.IntEnum):
    """The types of packets that are used."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200


class Status(enum.IntEnum):
    """The codes of STATUS that have a meaning here."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    UNSUPPORTED = 8


class ProtocolError(Exception):
    """The server sent what it cannot mean, or did not answer."""


class ConnectionClosedError(Exception):
    """The program has closed its output."""


class StatusError(Exception):
    """The server refused a request.

    Attributes:
        status: The code, also one that is unknown here.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a server states of a file.

    Attributes:
        mode: None if it states none.
        modified: In seconds since 1970.
    """

    size_bytes: int | None
    mode: int | None
    modified: int | None

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.mode is not None and stat.S_ISREG(self.mode)


class Fields:
    """The fields of a packet, read one after the other.

    Raises:
        ProtocolError: By each method, if the packet is too short.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def number(self) -> int:
        """Read 32 bits."""
        return int.from_bytes(self._take(4), "big")

    def long_number(self) -> int:
        """Read 64 bits."""
        return int.from_bytes(self._take(8), "big")

    def string(self) -> bytes:
        """Read bytes with their length."""
        return self._take(self.number())

    def attributes(self) -> Attributes:
        """Read the attributes of a file."""
        flags = self.number()
        size = self.long_number() if flags & _SIZE else None
        if flags & _OWNER:
            self._take(8)
        mode = self.number() if flags & _MODE else None
        modified = None
        if flags & _TIMES:
            self.number()
            modified = self.number()
        if flags & _EXTENDED:
            for _each in range(self.number()):
                self.string()
                self.string()
        return Attributes(size, mode, modified)

    @property
    def is_at_end(self) -> bool:
        """Whether all were read."""
        return self._at >= len(self._content)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._content):
            raise ProtocolError("a packet that is too short")
        found = self._content[self._at : end]
        self._at = end
        return found


def string(content: bytes) -> bytes:
    """Return bytes with their length."""
    return struct.pack(">I", len(content)) + content


class Channel:
    """Requests and replies over the pipes of a program.

    A signal can end the waiting at any time; the packets remain whole, so that the caller can
    remove what it has begun.

    Args:
        timeout_seconds: Without any byte in either direction.

    Attributes:
        extensions: That the server offers, with their versions.
        notes: The end of what the program wrote to its standard error.
    """

    def __init__(self, to: int, source: int, errors: int, timeout_seconds: float) -> None:
        self._to, self._source, self._errors = to, source, errors
        self._timeout = timeout_seconds
        self._poll = select.poll()
        for descriptor in (to, source, errors):
            os.set_blocking(descriptor, False)
        for descriptor in (to, source):
            enlarge_pipe(descriptor)
        self._poll.register(source, select.POLLIN)
        self._poll.register(errors, select.POLLIN)
        self._polls_output = False
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._waiting: set[int] = set()
        self._forgotten: set[int] = set()
        self._replies: dict[int, tuple[int, bytes]] = {}
        self._next_id = 0
        self._version: bytes | None = None
        self.extensions: Mapping[bytes, bytes] = {}
        self.notes = bytearray()

    def begin(self) -> None:
        """Agree on the version.

        Raises:
            ProtocolError, ConnectionClosedError: As for `reply`.
        """
        self._outgoing += struct.pack(">IBI", 5, Kind.INIT, VERSION)
        while self._version is None:
            self._pump()
        fields = Fields(self._version)
        if (version := fields.number()) != VERSION:
            raise ProtocolError(f"version {version} of SFTP, not {VERSION}")
        extensions = {}
        while not fields.is_at_end:
            name = fields.string()
            extensions[name] = fields.string()
        self.extensions = extensions

    def send(self, kind: Kind, content: bytes, data: bytes | memoryview = b"") -> int:
        """Send a request, possibly before earlier ones are answered, and return its id.

        Args:
            data: Sent after `content`, with its length.
        """
        while len(self._outgoing) > _MOST_OUTGOING_BYTES:
            self._pump()
        with uninterrupted():
            number = self._next_id
            self._next_id = (number + 1) & 0xFFFFFFFF
            tail = 4 + len(data) if kind is Kind.WRITE else 0
            self._outgoing += struct.pack(">IBI", 5 + len(content) + tail, kind, number)
            self._outgoing += content
            if tail:
                self._outgoing += struct.pack(">I", len(data))
                self._outgoing += data
            self._waiting.add(number)
        return number

    def reply(self, number: int) -> tuple[int, Fields]:
        """Return the type and the fields of the reply to a request, except for its id.

        Raises:
            ProtocolError: The server sent what it cannot mean, or nothing in time.
            ConnectionClosedError: The program has ended.
        """
        while number not in self._replies:
            if number not in self._waiting:
                raise ProtocolError("no such request")
            self._pump()
        kind, content = self._replies.pop(number)
        return kind, Fields(content)

    def status(self, number: int) -> None:
        """Check the reply to a request that has no other than a status.

        Raises:
            StatusError: The server refused it.
        """
        self.expect(number, Kind.STATUS)

    def expect(self, number: int, kind: Kind) -> Fields:
        """Return the fields of a reply of one type.

        Raises:
            StatusError: The server refused the request.
            ProtocolError: The reply is of another type.
        """
        found, fields = self.reply(number)
        if found == Kind.STATUS:
            code = fields.number()
            if code != Status.OK:
                message = b"" if fields.is_at_end else fields.string()
                raise StatusError(code, message[:200].decode("utf-8", "replace"))
            if kind is Kind.STATUS:
                return fields
        if found != kind:
            raise ProtocolError(f"a reply of type {found}, not {int(kind)}")
        return fields

    def forget(self, number: int) -> None:
        """Drop the reply to a request, also one that comes later."""
        if number in self._waiting:
            self._forgotten.add(number)
        self._replies.pop(number, None)

    def _pump(self) -> None:
        """Wait until some bytes can be sent or received, and do so."""
        if bool(self._outgoing) != self._polls_output:
            self._polls_output = bool(self._outgoing)
            if self._polls_output:
                self._poll.register(self._to, select.POLLOUT)
            else:
                self._poll.unregister(self._to)
        deadline = time.monotonic() + self._timeout
        ready: list[tuple[int, int]] = []
        while not ready:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ProtocolError(f"no answer in {self._timeout:.0f} s")
            ready = self._poll.poll(left * 1000)
        descriptors = {descriptor for descriptor, _events in ready}
        with uninterrupted():
            if self._errors in descriptors:
                self._take_notes()
            if self._to in descriptors:
                self._write()
            if self._source in descriptors:
                self._read()

    def _take_notes(self) -> None:
        content = os.read(self._errors, _MOST_NOTE_BYTES)
        if not content:
            self._poll.unregister(self._errors)
        self.notes += content
        del self.notes[:-_MOST_NOTE_BYTES]

    def _write(self) -> None:
        try:
            done = os.write(self._to, self._outgoing)
        except BlockingIOError:
            return
        except BrokenPipeError:
            # Why it ended is known after its output is read to its end.
            self._outgoing.clear()
            return
        del self._outgoing[:done]

    def _read(self) -> None:
        content = os.read(self._source, _PIPE_BYTES)
        if not content:
            raise ConnectionClosedError
        self._incoming += content
        at = 0
        while len(self._incoming) - at >= 5:
            length = int.from_bytes(self._incoming[at : at + 4], "big")
            if not 5 <= length <= MOST_PACKET_BYTES:
                raise ProtocolError(f"a packet of {length} bytes")
            if len(self._incoming) - at < 4 + length:
                break
            self._accept(bytes(memoryview(self._incoming)[at + 4 : at + 4 + length]))
            at += 4 + length
        del self._incoming[:at]

    def _accept(self, packet: bytes) -> None:
        kind = packet[0]
        if self._version is None:
            if kind != Kind.VERSION:
                raise ProtocolError(f"a first packet of type {kind}")
            self._version = packet[1:]
            return
        number = int.from_bytes(packet[1:5], "big")
        if number not in self._waiting:
            raise ProtocolError("a reply to no request")
        self._waiting.remove(number)
        if number in self._forgotten:
            self._forgotten.remove(number)
        else:
            self._replies[number] = (kind, packet[5:])
