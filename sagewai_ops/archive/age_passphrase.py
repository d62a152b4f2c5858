"""The age format with a passphrase, streamed, as `age -d` and `rage -d` read it.

Source: the age specification, version 1 (header, scrypt stanza, STREAM payload); the primitives
are those of `cryptography`.
"""

import base64
import hmac
import io
import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from sagewai_ops.archive.zstd_frames import Sink
from sagewai_ops.errors import DamagedError, KeyMissingError, UsageError
from sagewai_ops.text import shell_word

# scrypt needs 2**(WORK_FACTOR_LOG2 + 10) bytes of memory: 256 MiB, as in the age program.
WORK_FACTOR_LOG2 = 18
# A header is authentic only after scrypt: anyone can demand 1 GiB, and more only with permission.
_MAX_WORK_FACTOR_LOG2 = 20
_MAX_ALLOWED_LOG2 = 22  # the age program refuses more
_CHUNK_BYTES = 64 * 1024
_TAG_BYTES = 16
_NONCE_BYTES = 16
_FILE_KEY_BYTES = 16
_MAX_HEADER_BYTES = 1024
_VERSION = b"age-encryption.org/v1\n"
_SALT_LABEL = b"age-encryption.org/v1/scrypt"
_HEADER = re.compile(
    rb"age-encryption\.org/v1\n-> scrypt ([A-Za-z0-9+/]{22}) ([1-9][0-9]?)\n"
    rb"([A-Za-z0-9+/]{43})\n---( ([A-Za-z0-9+/]{43})\n)"
)


class PassphraseSink:
    """Encrypt into a sink with a passphrase.

    Args:
        work_factor_log2: Of scrypt; 0 for `WORK_FACTOR_LOG2`.
    """

    def __init__(self, sink: Sink, passphrase: str, *, work_factor_log2: int = 0) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        work_factor_log2 = work_factor_log2 or WORK_FACTOR_LOG2
        file_key = os.urandom(_FILE_KEY_BYTES)
        salt = os.urandom(16)
        wrap_cipher = ChaCha20Poly1305(_scrypt(passphrase, salt, work_factor_log2))
        header = _VERSION + b"-> scrypt %s %d\n%s\n---" % (
            _encode(salt),
            work_factor_log2,
            _encode(wrap_cipher.encrypt(bytes(12), file_key, None)),
        )
        nonce = os.urandom(_NONCE_BYTES)
        sink.write(header + b" " + _encode(_header_mac(file_key, header)) + b"\n" + nonce)
        self._sink = sink
        self._cipher = ChaCha20Poly1305(_derive(file_key, nonce, b"payload"))
        self._counter = 0
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        """Encrypt plaintext."""
        self._pending += data
        whole = (len(self._pending) - 1) // _CHUNK_BYTES  # the last chunk may be the end
        if whole < 1:
            return
        with memoryview(self._pending) as view:
            self._sink.write(
                b"".join(
                    self._encrypt(bytes(view[start : start + _CHUNK_BYTES]), last=False)
                    for start in range(0, whole * _CHUNK_BYTES, _CHUNK_BYTES)
                )
            )
        del self._pending[: whole * _CHUNK_BYTES]

    def close(self) -> None:
        """Write the last chunk."""
        self._sink.write(self._encrypt(bytes(self._pending), last=True))

    def abandon(self) -> None:
        """Discard pending plaintext."""
        self._pending.clear()

    def _encrypt(self, chunk: bytes, *, last: bool) -> bytes:
        encrypted = self._cipher.encrypt(_chunk_nonce(self._counter, last=last), chunk, None)
        self._counter += 1
        return encrypted


def is_passphrase_stream(stream: BinaryIO) -> bool:
    """Check whether an age stream needs a passphrase; the stream is rewound."""
    head = stream.read(len(_VERSION) + 10)
    stream.seek(0)
    return head.startswith(_VERSION + b"-> scrypt ")


def decrypt_stream(
    stream: BinaryIO, passphrase: str, name: str, *, allow_work_factor: bool = False
) -> Iterator[bytes]:
    """Decrypt a stream from its start, in chunks of at most 64 KiB.

    Args:
        allow_work_factor: Accept a work factor above 2^20, which needs more than 1 GiB of memory.

    Raises:
        UsageError: It has a higher work factor.
        KeyMissingError: The passphrase is wrong.
        DamagedError: The stream is changed or truncated.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    head = stream.read(_MAX_HEADER_BYTES)
    match = _HEADER.match(head)
    if match is None or int(match[2]) > _MAX_ALLOWED_LOG2:
        raise DamagedError(f"snapshot {name}: invalid age header")
    if int(match[2]) > _MAX_WORK_FACTOR_LOG2 and not allow_work_factor:
        raise UsageError(
            f"snapshot {name}: work factor 2^{int(match[2])} of its passphrase needs"
            f" {2 ** (int(match[2]) - 20)} GiB of memory, more than 2^{_MAX_WORK_FACTOR_LOG2}"
            " is not allowed",
            hint=f"sagewai-ops snapshots verify {shell_word(name)} --allow-work-factor"
            " --passphrase-file FILE",
        )
    wrap_cipher = ChaCha20Poly1305(_scrypt(passphrase, _decode(match[1]), int(match[2])))
    try:
        file_key = wrap_cipher.decrypt(bytes(12), _decode(match[3]), None)
    except InvalidTag:
        raise KeyMissingError(
            f"snapshot {name}: wrong passphrase",
            hint=f"sagewai-ops snapshots verify {shell_word(name)} --passphrase-file FILE",
        ) from None
    # The encoded texts are compared: base64 has bits without a meaning.
    if not hmac.compare_digest(_encode(_header_mac(file_key, head[: match.start(4)])), match[5]):
        raise DamagedError(f"snapshot {name}: age header changed")
    rest = io.BytesIO(head[match.end() :])  # a remote stream cannot go back

    def read(count: int) -> bytes:
        piece = rest.read(count)
        return piece if len(piece) == count else piece + stream.read(count - len(piece))

    cipher = ChaCha20Poly1305(_derive(file_key, read(_NONCE_BYTES), b"payload"))
    counter = 0
    chunk = read(_CHUNK_BYTES + _TAG_BYTES)
    while True:
        following = read(_CHUNK_BYTES + _TAG_BYTES)
        try:
            yield cipher.decrypt(_chunk_nonce(counter, last=not following), chunk, None)
        except InvalidTag:
            raise DamagedError(f"snapshot {name}: decryption failed at chunk {counter}") from None
        if not following:
            return
        counter, chunk = counter + 1, following


def _scrypt(passphrase: str, salt: bytes, work_factor_log2: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(salt=_SALT_LABEL + salt, length=32, n=2**work_factor_log2, r=8, p=1).derive(
        passphrase.encode()
    )


def _derive(file_key: bytes, salt: bytes, label: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=32, salt=salt or None, info=label).derive(file_key)


def _header_mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), header, "sha256")


def _chunk_nonce(counter: int, *, last: bool) -> bytes:
    return counter.to_bytes(11, "big") + (b"\1" if last else b"\0")


def _encode(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4))
