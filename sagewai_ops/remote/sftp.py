"""Places on an SFTP server, over the `ssh` program that is installed.

`ssh` reads the user's configuration: keys, agent, jump hosts and known hosts are those of a login.
Nothing is asked: a host or a key that needs an answer is an error. An object that is being uploaded
has a hidden name; it is synchronised, where the server can, before it gets its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, TypeVar

from sagewai_ops.errors import (
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.remote import sftp_protocol
from sagewai_ops.remote.sftp_files import (
    Reader,
    attributes_of,
    close_file,
    create_file,
    file_facts,
    link_file,
    list_directory,
    open_file,
    replace_file,
    size_of,
)
from sagewai_ops.remote.sftp_protocol import (
    MOST_DATA_BYTES,
    MOST_REQUESTS,
    Channel,
    ConnectionClosedError,
    Kind,
    ProtocolError,
    Status,
    StatusError,
    string,
)
from sagewai_ops.remote.store import Deletion, ObjectFacts
from sagewai_ops.text import printable, shell_word

if TYPE_CHECKING:
    from sagewai_ops.remote.address import Address
    from sagewai_ops.remote.store import Upload

_TIMEOUT_SECONDS = 60.0
_END_SECONDS = 2.0  # for ssh to end by itself
_STALE_SECONDS = 86400  # after which an upload was given up
_HIDDEN, _PARTIAL = ".", ".partial"  # around the name of what is being uploaded
_FSYNC = b"fsync@openssh.com"
# What sftp(1) sets too, and what in a user's configuration would start something else.
_OPTIONS = (
    *("BatchMode=yes", "ForwardX11=no", "ForwardAgent=no", "PermitLocalCommand=no"),
    *("ClearAllForwardings=yes", "RemoteCommand=none", "RequestTTY=no"),
)

Result = TypeVar("Result")


_ListOfFacts = list[ObjectFacts]  # within the class, `list` is its method


class SftpStore:
    """A directory on an SFTP server, as a `Store`.

    Args:
        environment: Of the program, such as SSH_AUTH_SOCK.

    Raises:
        UsageError: `ssh` is not installed.
    """

    def __init__(
        self,
        address: Address,
        environment: Mapping[str, str],
        *,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> None:
        program = shutil.which("ssh", path=environment.get("PATH"))
        if program is None:
            raise UsageError("ssh: not installed", hint="apt-get install openssh-client")
        self._address = address
        self._command = [program, *ssh_arguments(address)]
        # Without the secrets of this program's own variables.
        self._environment = {
            name: value for name, value in environment.items() if not name.startswith("SAGEWAI_")
        }
        self._timeout = timeout_seconds
        self._lock = threading.RLock()  # one call at a time, from any thread
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    @property
    def address(self) -> str:
        """The name in the configuration, or else the URL."""
        return self._address.shown

    def list(self) -> list[ObjectFacts]:
        """List the regular files of the directory, without uploads in progress."""
        found = (each for each in self._entries() if not _is_partial(each.name))
        return sorted(found, key=lambda each: each.name)

    def facts(self, name: str) -> ObjectFacts | None:
        """Return the facts of a file; None if there is no regular file of that name."""
        path = self._path(name)

        def ask(channel: Channel) -> ObjectFacts | None:
            try:
                number = channel.send(Kind.LSTAT, string(path))
                attributes = channel.expect(number, Kind.ATTRS).attributes()
            except StatusError as error:
                if error.status == Status.NO_SUCH_FILE:
                    return None
                raise
            return file_facts(name, attributes)

        return self._call(name, ask)

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Read exactly `count` bytes of a file."""
        pieces = self._read(name, offset, count) if count else ()
        return b"".join(pieces)

    def stream(self, name: str) -> Generator[bytes, None, None]:
        """Yield the bytes of a file in pieces of 1 MiB."""
        yield from self._read(name, 0, None)

    def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Write a small file; see `Store.put`."""
        path = self._path(name)
        with self._partial(name) as upload:
            upload.write(content)
            upload.close()
            if replace:
                self._call(name, lambda channel: replace_file(channel, upload.path, path))
                upload.is_named = True
                return True
            linked = self._call(name, lambda channel: link_file(channel, upload.path, path))
        if linked is not None:
            return linked
        return self._call(name, lambda channel: create_file(channel, path, content))

    @contextlib.contextmanager
    def upload(self, name: str, expected_bytes: int) -> Generator[Upload, None, None]:  # noqa: ARG002
        """Open a file for writing; at an exception in the block, nothing of it remains."""
        with self._partial(name) as upload:
            with contextlib.suppress(PermissionDeniedError):  # rights to write only
                self._sweep(upload)
            yield upload

    def delete(self, name: str) -> Deletion:
        """Delete a file; one that does not exist is deleted."""
        path = self._path(name)
        with contextlib.suppress(NotFoundError):
            self._call(
                name, lambda channel: channel.status(channel.send(Kind.REMOVE, string(path)))
            )
        return Deletion.DELETED

    def close(self) -> None:
        """End the program."""
        self._end(signal.SIGTERM)

    def _end(self, *signals: signal.Signals) -> None:
        """Close the pipes, wait, and send signals until the program has ended."""
        process, self._process, self._channel = self._process, None, None
        if process is None:
            return
        with uninterrupted():
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            for signal_number in (*signals, signal.SIGKILL):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END_SECONDS)
                    return
                process.send_signal(signal_number)
            process.wait()

    def _connect(self) -> Channel:
        if self._channel is not None:
            return self._channel
        with uninterrupted():
            self._process = process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                bufsize=0,
                start_new_session=True,  # a Ctrl-C ends this program, which ends ssh in order
            )
        streams = (process.stdin, process.stdout, process.stderr)
        to, source, errors = (stream.fileno() for stream in streams if stream is not None)
        self._channel = channel = Channel(to, source, errors, self._timeout)
        channel.begin()
        return channel

    def _call(self, name: str, function: Callable[[Channel], Result]) -> Result:
        """Call a function with the connection, and raise its errors as those of this program."""
        where = f"{self.address}: {printable(name)}" if name else self.address
        try:
            with self._lock:
                return function(self._connect())
        except StatusError as error:
            raise self._refusal(error, where, name) from None
        except ProtocolError as error:
            if self._process is not None:
                self._process.terminate()  # it would wait for a server that does not answer
            self.close()
            raise RemoteError(f"{where}: {error}", hint=self._hint()) from None
        except (ConnectionClosedError, OSError) as error:
            raise self._ended() from error

    def _refusal(self, error: StatusError, where: str, name: str) -> OpsError:
        text = printable(str(error)) or f"status {error.status}"
        if error.status == Status.NO_SUCH_FILE:
            path = self._address.prefix or "."
            hint = f"ssh {' '.join(_login(self._address))} mkdir -p {shell_word(path)}"
            return NotFoundError(f"{where}: not found", hint="" if name else hint)
        if error.status == Status.PERMISSION_DENIED:
            return PermissionDeniedError(f"{where}: {text}", hint=self._hint())
        return RemoteError(f"{where}: {text}", hint=f"{self._hint()} df -h")

    def _ended(self) -> OpsError:
        """Return the error of a connection that has ended, with the last words of ssh."""
        process, channel = self._process, self._channel
        notes, code = bytearray(), None
        if process is not None and channel is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_END_SECONDS)
            notes = channel.notes
            if process.stderr is not None:
                with contextlib.suppress(OSError):
                    notes += process.stderr.read() or b""
        self.close()
        # The last line, because warnings and the server's banner precede it.
        lines = [line.strip() for line in notes.decode("utf-8", "replace").splitlines()]
        last = next((printable(line) for line in reversed(lines) if line), "")
        last = last[:300].rstrip(".")
        message = f"{self.address}: {last or f'ssh ended with {code}'}"
        if "Permission denied" in last:
            return PermissionDeniedError(message, hint=self._hint())
        return RemoteError(message, hint=self._hint())

    def _hint(self) -> str:
        return f"ssh {' '.join(_login(self._address))}"

    def _path(self, name: str) -> bytes:
        """Return the path of a name.

        Raises:
            RemoteError: It is not one of the directory itself.
        """
        if not name or "/" in name or "\0" in name or name in (".", ".."):
            raise RemoteError(f"object {printable(name)!r}: not a name")
        return os.fsencode(os.path.join(self._address.prefix, name))

    def _entries(self) -> _ListOfFacts:
        directory = os.fsencode(self._address.prefix or ".")
        return self._call("", lambda channel: list_directory(channel, directory))

    def _read(self, name: str, offset: int, count: int | None) -> Generator[bytes, None, None]:
        """Yield a part of a file, or all of it.

        Args:
            count: In bytes; None for the size that the server states.
        """
        path = self._path(name)
        handle = self._call(name, lambda channel: open_file(channel, path, sftp_protocol.READ))
        reader = Reader(handle, offset)
        try:
            if count is None:
                count = self._call(name, lambda channel: size_of(channel, handle))
            reader.end = offset + count
            while reader.done < reader.end:
                if piece := self._call(name, reader.piece):
                    yield piece
                else:
                    raise RemoteError(
                        f"{self.address}: {printable(name)}: ends at byte {reader.done}, not at"
                        f" {reader.end}"
                    )
        finally:
            with contextlib.suppress(OpsError):
                if self._channel is not None:
                    self._call(name, reader.end_early)

    @contextlib.contextmanager
    def _partial(self, name: str) -> Generator[_SftpUpload, None, None]:
        final = self._path(name)
        hidden = f"{_HIDDEN}{name}.{secrets.token_hex(4)}{_PARTIAL}"
        path = self._path(hidden)
        flags = sftp_protocol.WRITE | sftp_protocol.CREATE | sftp_protocol.EXCLUSIVE
        upload = _SftpUpload(self, name, path, final)
        try:
            upload.open(flags)
            yield upload
        finally:
            if not upload.is_named:
                self._remove_partial(upload)

    def _remove_partial(self, upload: _SftpUpload) -> None:
        """Remove what was uploaded, over a new connection if that of the upload is broken."""

        def remove(channel: Channel) -> None:
            upload.forget(channel)
            channel.status(channel.send(Kind.REMOVE, string(upload.path)))

        for _attempt in range(2):
            try:
                return self._call(upload.name, remove)
            except NotFoundError:
                return None
            except OpsError:
                if self._channel is not None:
                    return None
        return None

    def _sweep(self, upload: _SftpUpload) -> None:
        """Remove uploads that were given up a day ago, by the clock of the server."""
        handle = upload.handle
        now = self._call("", lambda channel: attributes_of(channel, handle).modified)
        for each in self._entries():
            age = (now or 0) - each.modified_at.timestamp()
            if _is_partial(each.name) and age > _STALE_SECONDS:
                self.delete(each.name)


class _SftpUpload:
    """A file with a hidden name, which `finish` replaces by its own."""

    def __init__(self, store: SftpStore, name: str, path: bytes, final: bytes) -> None:
        self._store = store
        self.name = name
        self.path = path
        self._final = final
        self.handle = b""
        self._channel: Channel | None = None  # on which it is open
        self._done = 0
        self._numbers: deque[int] = deque()
        self.is_named = False

    def open(self, flags: int) -> None:
        """Create the file."""

        def create(channel: Channel) -> None:
            self.handle = open_file(channel, self.path, flags)
            self._channel = channel

        self._store._call(self.name, create)  # noqa: SLF001 - its own module

    def write(self, data: bytes, /) -> int:
        """Send bytes; some requests are in transit when it returns."""
        self._store._call(self.name, lambda channel: self._send(channel, data))  # noqa: SLF001
        return len(data)

    def close(self) -> None:
        """Wait for all bytes to be written, and synchronise them where the server can."""

        def complete(channel: Channel) -> None:
            while self._numbers:
                channel.status(self._numbers.popleft())
            if _FSYNC in channel.extensions:
                channel.status(channel.send(Kind.EXTENDED, string(_FSYNC) + string(self.handle)))
            size = size_of(channel, self.handle)
            close_file(channel, self.handle)
            self._channel = None
            if size != self._done:
                raise ProtocolError(f"{size} bytes long after an upload of {self._done} bytes")

        self._store._call(self.name, complete)  # noqa: SLF001

    def forget(self, channel: Channel) -> None:
        """Forget the requests in transit, and close the file if it is open on this connection."""
        if channel is self._channel:
            while self._numbers:
                channel.forget(self._numbers.popleft())
            channel.forget(channel.send(Kind.CLOSE, string(self.handle)))

    def finish(self) -> None:
        """Rename it to its name."""
        self.close()
        store = self._store
        store._call(self.name, lambda channel: replace_file(channel, self.path, self._final))  # noqa: SLF001
        self.is_named = True

    def _send(self, channel: Channel, data: bytes) -> None:
        if channel is not self._channel:
            raise ProtocolError("the connection of the upload has ended")
        view = memoryview(data)
        for start in range(0, len(data), MOST_DATA_BYTES):
            part = view[start : start + MOST_DATA_BYTES]
            if len(self._numbers) >= MOST_REQUESTS:
                channel.status(self._numbers.popleft())
            head = string(self.handle) + struct.pack(">Q", self._done)
            self._numbers.append(channel.send(Kind.WRITE, head, part))
            self._done += len(part)


def ssh_arguments(address: Address) -> list[str]:
    """Return the arguments of `ssh` that start the SFTP server of a host."""
    options = [f"-o{option}" for option in _OPTIONS]
    *login, host = _login(address)
    return [*options, *login, "-s", "--", host, "sftp"]


def _login(address: Address) -> list[str]:
    port = ["-p", str(address.port)] if address.port else []
    user = ["-l", address.user] if address.user else []
    return [*port, *user, address.bucket]


def _is_partial(name: str) -> bool:
    return name.startswith(_HIDDEN) and name.endswith(_PARTIAL)
