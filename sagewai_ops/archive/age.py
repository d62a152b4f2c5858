"""Encryption of an archive as one age stream, to recipients or with a passphrase.

`pyrage` encrypts to recipients, age's own (X25519) and ssh public keys, and streams. Its passphrase
mode keeps the whole message in memory, so `age_passphrase` implements that.
"""

import contextlib
import queue
from collections.abc import Generator, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sagewai_ops.archive import age_passphrase
from sagewai_ops.archive.zstd_frames import Sink
from sagewai_ops.errors import DamagedError, KeyMissingError, NotFoundError, OpsError, UsageError
from sagewai_ops.fs.given_files import decode_given, read_given_file
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.process.threads import Thread
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

AGE_MAGIC = b"age-encryption.org/v1\n"
_PIECE_BYTES = 256 * 1024
_QUEUED_PIECES = 8


@dataclass(frozen=True, slots=True)
class Encryption:
    """Recipients or a passphrase, never both (age forbids it)."""

    recipients: tuple[str, ...] = ()
    passphrase: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Decryption:
    """Identities, any of which may decrypt, or a passphrase.

    Attributes:
        allow_work_factor: Accept a header that demands gigabytes of memory for the passphrase.
    """

    identities: tuple[str, ...] = field(default=(), repr=False)
    passphrase: str = field(default="", repr=False)
    allow_work_factor: bool = False


class EncryptedSink(Protocol):
    """A sink whose content is complete once it is closed."""

    def write(self, data: bytes, /) -> Any:
        """Write all of `data`."""
        ...

    def close(self) -> None:
        """Write pending data and the end of the stream."""
        ...

    def abandon(self) -> None:
        """Stop after a failure; the output is incomplete."""
        ...


def read_recipients(path: Path) -> tuple[str, ...]:
    """Read a recipients file: one a line, `#` begins a comment.

    Raises:
        NotFoundError, UsageError: The file does not exist, or contains no recipient.
    """
    recipients = tuple(
        line.strip()
        for line in _read_text(path, "recipients file").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not recipients:
        raise UsageError(f"recipients file {path}: no recipient found")
    return recipients


def read_identity(path: Path) -> tuple[str, ...]:
    """Read an identity file: age's lines `AGE-SECRET-KEY-1...`, or one ssh private key.

    Raises:
        NotFoundError, UsageError: The file does not exist, or contains no identity.
    """
    what = "identity file"
    return parse_identity(_read_text(path, what, is_private=True), f"{what} {path}")


def parse_identity(text: str, name: str) -> tuple[str, ...]:
    """Return the identities of a text, as for `read_identity`.

    Args:
        name: Of the text, for errors.

    Raises:
        UsageError: It contains none.
    """
    if "PRIVATE KEY-----" in text:
        return (text,)
    identities = tuple(line.strip() for line in text.splitlines() if line.startswith("AGE-SECRET-"))
    if not identities:
        raise UsageError(
            f"{name}: no age identity or ssh key found; a passphrase is read from --passphrase-file"
        )
    return identities


def read_passphrase(text: str, name: str) -> str:
    """Return the passphrase of a text: its first line, without the line break.

    Args:
        name: Of the text, for errors.

    Raises:
        UsageError: The line is empty.
    """
    first = text.split("\n", 1)[0].rstrip("\r")
    if not first:
        raise UsageError(f"{name}: first line empty")
    return first


def temporary_identity() -> tuple[str, str]:
    """Return (recipient, identity) of a new key pair for one run.

    A backup also encrypts to it, reads its archive back, and discards it.
    """
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    return str(identity.to_public()), str(identity)


def check_recipients(recipients: Sequence[str]) -> None:
    """Check that every recipient is valid.

    Raises:
        UsageError: One is not; the message names it, since it is public.
    """
    for recipient in recipients:
        _parse_recipient(recipient)


def open_encrypted_sink(sink: Sink, encryption: Encryption) -> EncryptedSink:
    """Return a sink that encrypts into `sink`."""
    if encryption.passphrase:
        return age_passphrase.PassphraseSink(sink, encryption.passphrase)
    return _RecipientsSink(sink, encryption.recipients)


@contextlib.contextmanager
def encrypting(sink: Sink, encryption: Encryption | None) -> Iterator[Sink]:
    """Open a sink that encrypts into `sink`, or that one without encryption.

    It is complete after the block, and abandoned if that fails.
    """
    if encryption is None:
        yield sink
        return
    encrypted: EncryptedSink | None = None
    try:
        with uninterrupted():  # a signal must not lose its thread
            encrypted = open_encrypted_sink(sink, encryption)
        yield encrypted
        encrypted.close()
    except BaseException:
        if encrypted:
            encrypted.abandon()
        raise


def decrypt_stream(
    stream: BinaryIO, decryption: Decryption, name: str
) -> Generator[bytes, None, None]:
    """Decrypt an age stream from its start, in pieces.

    Args:
        name: Of the archive, for messages.

    Raises:
        KeyMissingError: The stream needs another identity or passphrase.
        DamagedError: It is changed or truncated.
    """
    stream.seek(0)
    if age_passphrase.is_passphrase_stream(stream):
        if not decryption.passphrase:
            raise KeyMissingError(
                f"snapshot {name}: encrypted with a passphrase",
                hint=f"sagewai-ops snapshots verify {shell_word(name)} --passphrase-file FILE",
            )
        yield from age_passphrase.decrypt_stream(
            stream, decryption.passphrase, name, allow_work_factor=decryption.allow_work_factor
        )
        return
    if not decryption.identities:
        raise KeyMissingError(
            f"snapshot {name}: encrypted to a recipient",
            hint=f"sagewai-ops snapshots verify {shell_word(name)} --identity FILE",
        )
    yield from _decrypt(stream, decryption.identities, name)


class _RecipientsSink:
    """Pass what the caller writes to pyrage, which reads in a thread, through a short queue."""

    def __init__(self, sink: Sink, recipients: Sequence[str]) -> None:
        self._recipients = [_parse_recipient(recipient) for recipient in recipients]
        self._sink = sink
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED_PIECES)
        self._rest = memoryview(b"")
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="age-encrypt", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            self._put(data[start : start + _PIECE_BYTES])

    def close(self) -> None:
        self._put(None)
        self._thread.join()
        if self._failure:
            raise self._failure

    def abandon(self) -> None:
        self._failure = self._failure or OpsError("encryption: abandoned")
        with self._queue.mutex:
            self._queue.queue.clear()
            self._queue.not_full.notify_all()
        self._queue.put(None)
        self._thread.join()

    def read(self, count: int = -1) -> bytes:
        """Return plaintext to pyrage."""
        if not self._rest and not self._ended:
            piece = self._queue.get()
            self._ended = piece is None
            self._rest = memoryview(piece or b"")
        data = self._rest if count < 0 else self._rest[:count]
        self._rest = self._rest[len(data) :]
        return bytes(data)

    def _put(self, piece: bytes | None) -> None:
        while self._failure is None:
            try:
                self._queue.put(piece, timeout=0.2)
            except queue.Full:
                continue
            else:
                return
        if piece is not None:
            raise self._failure

    def _run(self) -> None:
        import pyrage

        output = _SinkOutput(self._sink)
        try:
            pyrage.encrypt_io(self, output, self._recipients)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            # pyrage keeps only the message of the sink's error.
            self._failure = output.failures[0] if output.failures else error


@dataclass(frozen=True, slots=True)
class _SinkOutput:
    """The methods of a file that pyrage calls; hides the sink's other methods."""

    sink: Sink
    failures: list[BaseException] = field(default_factory=list)

    def write(self, data: bytes) -> int:
        try:
            self.sink.write(bytes(data))
        except BaseException as error:
            self.failures.append(error)
            raise
        return len(data)

    def flush(self) -> None:
        return None


class _StoppedError(Exception):
    """The consumer of a decrypted stream stopped reading."""


class _PieceQueue:
    """The output of pyrage: a short queue that a generator empties."""

    def __init__(self) -> None:
        self.queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUED_PIECES)
        self.is_stopped = False
        self._buffered: list[bytes] = []
        self._buffered_bytes = 0

    def write(self, data: bytes) -> int:
        self._buffered.append(bytes(data))
        self._buffered_bytes += len(data)
        if self._buffered_bytes >= _PIECE_BYTES:
            self.flush()
        return len(data)

    def flush(self) -> None:
        if self._buffered:
            self.put(b"".join(self._buffered))
            self._buffered.clear()
            self._buffered_bytes = 0

    def put(self, piece: bytes | BaseException | None) -> None:
        while not self.is_stopped:
            try:
                self.queue.put(piece, timeout=0.2)
            except queue.Full:
                continue
            else:
                return
        raise _StoppedError


def _decrypt(stream: BinaryIO, identities: Sequence[str], name: str) -> Iterator[bytes]:
    import pyrage

    keys = [_parse_identity(identity) for identity in identities]
    pieces = _PieceQueue()

    def run() -> None:
        try:
            pyrage.decrypt_io(stream, pieces, keys)
            pieces.flush()
            pieces.put(None)
        except BaseException as error:  # noqa: BLE001 - raised in the consumer's thread
            if not pieces.is_stopped:
                pieces.put(error)

    thread = Thread(target=run, name="age-decrypt", daemon=True)
    try:
        thread.start()  # raises after the start if a signal came
        while (piece := pieces.queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise _translate_error(piece, name) from piece
            yield piece
    finally:
        pieces.is_stopped = True
        if thread.ident is not None:
            thread.join()


def _translate_error(error: BaseException, name: str) -> BaseException:
    if "no matching keys" in str(error).lower():
        return KeyMissingError(
            f"snapshot {name}: not encrypted to any of these identities",
            hint=f"sagewai-ops snapshots verify {shell_word(name)} --identity FILE",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return DamagedError(f"snapshot {name}: decryption failed: {error}")


def _parse_recipient(text: str) -> Any:
    import pyrage

    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise UsageError(
            f"recipient {text[:80]}: not an age or ssh public key: {error}",
            hint="age-keygen -y KEYFILE  # prints the recipient of an identity",
        ) from error


def _parse_identity(text: str) -> Any:
    import pyrage

    try:
        if text.startswith("AGE-SECRET-"):
            return pyrage.x25519.Identity.from_str(text)
        return pyrage.ssh.Identity.from_buffer(text.encode())
    except pyrage.IdentityError as error:
        # The identity is secret, pyrage's message is not.
        raise UsageError(f"identity: invalid: {error}") from error


def _read_text(path: Path, what: str, *, is_private: bool = False) -> str:
    private, public = (what, "") if is_private else ("", what)
    try:
        content = read_given_file(path, private=private, public=public)
    except FileNotFoundError:
        raise NotFoundError(f"{what} {path}: not found") from None
    except OSError as error:
        raise from_os_error(error, path, what) from error
    return decode_given(content, f"{what} {path}")
