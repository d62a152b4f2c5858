"""Encryption of a whole archive as one age stream, to recipients or under a passphrase.

Recipients are age's own (X25519) and ssh public keys, handled by `pyrage`, which streams. Its
passphrase mode holds the whole message in memory, so passphrases go through `passphrase`.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sagewai_ops.archive import age_passphrase as passphrases
from sagewai_ops.archive.zstd_frames import Sink
from sagewai_ops.errors import DamagedError, KeyMissingError, NotFoundError, OpsError, UsageError

AGE_MAGIC = b"age-encryption.org/v1\n"
_PIECE_BYTES = 256 * 1024
_QUEUED_PIECES = 8


@dataclass(frozen=True, slots=True)
class Encryption:
    """How to encrypt: to recipients, or under a passphrase, never both (age forbids it)."""

    recipients: tuple[str, ...] = ()
    passphrase: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Decryption:
    """How to decrypt: with any of the identities, or with a passphrase."""

    identities: tuple[str, ...] = field(default=(), repr=False)
    passphrase: str = field(default="", repr=False)


class EncryptedSink(Protocol):
    """A sink whose content is complete once it is closed."""

    def write(self, data: bytes, /) -> Any:
        """Take all of `data`."""
        ...

    def close(self) -> None:
        """Write what is pending and the end of the stream."""
        ...

    def abandon(self) -> None:
        """Stop after a failure; what was written is worthless."""
        ...


def read_recipients(path: Path) -> tuple[str, ...]:
    """Read a recipients file: one a line, `#` begins a comment.

    Raises:
        NotFoundError, UsageError: No such file, or no recipient in it.
    """
    recipients = tuple(
        line.strip()
        for line in _text_of(path, "recipients file").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not recipients:
        raise UsageError(f"recipients file {path}: no recipient in it")
    return recipients


def read_identity(path: Path) -> tuple[str, ...]:
    """Read an identity file: age's lines `AGE-SECRET-KEY-1...`, or one ssh private key.

    Raises:
        NotFoundError, UsageError: No such file, or no identity in it.
    """
    text = _text_of(path, "identity file")
    if "PRIVATE KEY-----" in text:
        return (text,)
    identities = tuple(line.strip() for line in text.splitlines() if line.startswith("AGE-SECRET-"))
    if not identities:
        raise UsageError(
            f"identity file {path}: no age identity and no ssh key in it",
            hint="a passphrase goes through --passphrase-file",
        )
    return identities


def read_passphrase(text: str, name: str) -> str:
    """Take the passphrase from a file's text: its first line, without the line's end.

    Raises:
        UsageError: It is empty.
    """
    first = text.split("\n", 1)[0].rstrip("\r")
    if not first:
        raise UsageError(f"passphrase file {name}: its first line is empty")
    return first


def temporary_identity() -> tuple[str, str]:
    """Make an identity for one run: (recipient, identity).

    A backup encrypts to it as well, so that it can read its own archive back; then it is forgotten.
    """
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    return str(identity.to_public()), str(identity)


def check_recipients(recipients: Sequence[str]) -> None:
    """Make sure that every recipient is one before any work is done.

    Raises:
        UsageError: One is not; the message names it, for it is public.
    """
    for recipient in recipients:
        _recipient(recipient)


def open_encrypted_sink(sink: Sink, encryption: Encryption) -> EncryptedSink:
    """Give a sink that encrypts into `sink`."""
    if encryption.passphrase:
        return passphrases.PassphraseSink(sink, encryption.passphrase)
    return _RecipientsSink(sink, encryption.recipients)


def decrypt_stream(
    stream: BinaryIO, decryption: Decryption, name: str
) -> Generator[bytes, None, None]:
    """Decrypt an age stream from its beginning, in pieces.

    Args:
        name: Of the archive, for messages.

    Raises:
        KeyMissingError: The stream needs another identity or passphrase.
        DamagedError: It was changed or cut.
    """
    stream.seek(0)
    if passphrases.is_passphrase_stream(stream):
        if not decryption.passphrase:
            raise KeyMissingError(
                f"snapshot {name}: encrypted with a passphrase, none was given",
                hint="use --passphrase-file FILE",
            )
        yield from passphrases.decrypt_stream(stream, decryption.passphrase, name)
        return
    if not decryption.identities:
        raise KeyMissingError(
            f"snapshot {name}: encrypted to a recipient, no identity was given",
            hint="use --identity FILE",
        )
    yield from _decrypted(stream, decryption.identities, name)


class _RecipientsSink:
    """Feeds pyrage, which pulls, from a caller who pushes: a thread and a short queue between."""

    def __init__(self, sink: Sink, recipients: Sequence[str]) -> None:
        self._recipients = [_recipient(recipient) for recipient in recipients]
        self._sink = sink
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED_PIECES)
        self._rest = memoryview(b"")
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="age-encrypt", daemon=True)
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
        """Answer pyrage's call for plaintext."""
        if not self._rest and not self._ended:
            piece = self._queue.get()
            self._ended = piece is None
            self._rest = memoryview(piece or b"")
        taken = self._rest if count < 0 else self._rest[:count]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)

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

        written = _Written(self._sink)
        try:
            pyrage.encrypt_io(self, written, self._recipients)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            # pyrage keeps nothing but the words of what the sink raised.
            self._failure = written.failures[0] if written.failures else error


@dataclass(frozen=True, slots=True)
class _Written:
    """The part of a file that pyrage's writer calls; hides the sink's other methods."""

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
    """The consumer of a decrypted stream has what it wanted."""


class _Pieces:
    """What pyrage writes to: a short queue that a generator empties."""

    def __init__(self) -> None:
        self.queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUED_PIECES)
        self.is_stopped = False
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def write(self, data: bytes) -> int:
        self._kept.append(bytes(data))
        self._kept_bytes += len(data)
        if self._kept_bytes >= _PIECE_BYTES:
            self.flush()
        return len(data)

    def flush(self) -> None:
        if self._kept:
            self.put(b"".join(self._kept))
            self._kept.clear()
            self._kept_bytes = 0

    def put(self, piece: bytes | BaseException | None) -> None:
        while not self.is_stopped:
            try:
                self.queue.put(piece, timeout=0.2)
            except queue.Full:
                continue
            else:
                return
        raise _StoppedError


def _decrypted(stream: BinaryIO, identities: Sequence[str], name: str) -> Iterator[bytes]:
    import pyrage

    keys = [_identity(identity) for identity in identities]
    pieces = _Pieces()

    def run() -> None:
        try:
            pyrage.decrypt_io(stream, pieces, keys)
            pieces.flush()
            pieces.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer's thread
            if not pieces.is_stopped:
                pieces.put(error)

    thread = threading.Thread(target=run, name="age-decrypt", daemon=True)
    thread.start()
    try:
        while (piece := pieces.queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise _refusal(piece, name) from piece
            yield piece
    finally:
        pieces.is_stopped = True
        thread.join()


def _refusal(error: BaseException, name: str) -> BaseException:
    if "no matching keys" in str(error).lower():
        return KeyMissingError(
            f"snapshot {name}: none of the identities given opens it",
            hint="name the identity of one of its recipients: --identity FILE",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return DamagedError(f"snapshot {name}: its encryption does not hold: {error}")


def _recipient(text: str) -> Any:
    import pyrage

    kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise UsageError(
            f"recipient {text[:80]}: not an age or ssh public key: {error}",
            hint="age-keygen -y KEYFILE  # prints the recipient of an identity",
        ) from error


def _identity(text: str) -> Any:
    import pyrage

    try:
        if text.startswith("AGE-SECRET-"):
            return pyrage.x25519.Identity.from_str(text)
        return pyrage.ssh.Identity.from_buffer(text.encode())
    except pyrage.IdentityError as error:
        # The identity itself is secret: only what pyrage says of it is shown.
        raise UsageError(f"identity: not usable: {error}") from error


def _text_of(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{what} {path}: does not exist") from None
    except UnicodeDecodeError:
        raise UsageError(f"{what} {path}: not a text file") from None
