"""Escrow the master key for the loss of the home: as an age file, and on paper.

The key leaves this process encrypted only. Each file is written under a temporary name, read back
and decrypted with an identity of this run, then renamed. So the ciphertext has one additional
recipient, whose identity no longer exists.
"""

import base64
import binascii
import hmac
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import field
from datetime import datetime
from pathlib import Path

from sagewai_ops.archive.age import (
    Decryption,
    Encryption,
    decrypt_stream,
    open_encrypted_sink,
    temporary_identity,
)
from sagewai_ops.errors import DamagedError, NotFoundError, OpsError, TargetBusyError, UsageError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.given_files import resolve_given_path
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import Home
from sagewai_ops.keys.candidates import ENVIRONMENT, KEYRING, Candidate
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

_BEGIN = "-----BEGIN AGE ENCRYPTED FILE-----"
_END = "-----END AGE ENCRYPTED FILE-----"
_ARMOR_COLUMNS = 64  # of age's armor, which is strict PEM (RFC 7468)


@dataclass(frozen=True, slots=True)
class Escrow:
    """An encrypted key, with an identity to verify it.

    Args:
        key: The plaintext.
        recipients: Public keys.
        content: The age file.
        identity: Decrypts it too; never written anywhere.
    """

    key: Candidate
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    identity: str = field(repr=False)


def seal_key(key: Candidate, recipients: Sequence[str]) -> Escrow:
    """Encrypt a key to recipients.

    Args:
        key: With a value.
        recipients: age or ssh public keys; doubles count once.

    Raises:
        UsageError: One is not a recipient.
    """
    everyone = tuple(dict.fromkeys(recipients))
    own, identity = temporary_identity()
    buffer = io.BytesIO()
    with uninterrupted():  # a signal must not lose the sink's thread; it takes a moment
        sink = open_encrypted_sink(buffer, Encryption(recipients=(*everyone, own)))
        try:
            sink.write(key.value)
        except BaseException:
            sink.abandon()
            raise
        sink.close()
    return Escrow(key, everyone, buffer.getvalue(), identity)


def check_place(path: Path, home: Home, keys: Sequence[Candidate], *, force: bool) -> None:
    """Check that a file can be written.

    Args:
        keys: Their files are never overwritten.
        force: Whether an existing file can be replaced.

    Raises:
        UsageError: It is in the home, or is a key's own file.
        TargetBusyError: It exists without `force`, or it is a directory.
        NotFoundError: The directory for it does not exist.
    """
    real = Path(os.path.realpath(path))
    if real.is_relative_to(home.root):
        raise UsageError(f"escrow {path}: in the home, with which it would be lost")
    if any(key.path and Path(os.path.realpath(key.path)) == real for key in keys):
        raise UsageError(f"escrow {path}: is itself a key file")
    if not path.parent.is_dir():
        raise NotFoundError(f"escrow {path}: directory not found")
    if path.is_dir():
        raise TargetBusyError(f"escrow {path}: is a directory")
    if os.path.lexists(path) and not force:
        raise TargetBusyError(f"escrow {path}: exists", hint="sagewai-ops keys escrow --force ...")


def write_key(path: Path, escrow: Escrow) -> None:
    """Write the age file, mode 0600, renamed after verification.

    Raises:
        DamagedError: The file read back does not decrypt to the key; it is removed.
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    _write_verified(path, escrow.content, escrow, lambda content: content)


def write_sheet(path: Path, escrow: Escrow, home: Home, moment: datetime) -> None:
    """Write the recovery sheet, mode 0600, renamed after verification.

    Raises:
        DamagedError, NoSpaceError, PermissionDeniedError, OpsError: As `write_key`.
    """
    text = sheet_of(escrow, home, moment)
    _write_verified(path, text.encode(), escrow, lambda content: ciphertext_of(content.decode()))


def sheet_of(escrow: Escrow, home: Home, moment: datetime) -> str:
    """Return the text with all steps to recover the key, with the identity of one recipient."""
    own = f"sagewai-ops --home {_quoted(home.root)}"
    lines = [
        "RECOVERY SHEET OF A SAGEWAI MASTER KEY",
        "",
        f"key fingerprint  {escrow.key.fingerprint}",
        f"home             {_shown(os.fspath(home.root))}",
        f"date             {moment:%Y-%m-%d %H:%M} UTC",
        "recipients       any one of these can decrypt it:",
        *(f"  {_shown(recipient)}" for recipient in escrow.recipients),
        "",
        "The key itself is not on this sheet. The block below is the key, encrypted with age",
        "(https://age-encryption.org) to the recipients above. To recover it:",
        "",
        "1. Scan or type the block into a file key.age, its first and last line included. Each",
        f"   line between these two has {_ARMOR_COLUMNS} characters, only the last may have fewer.",
        "2. Decrypt it with the age identity or the ssh private key of a recipient:",
        "     (umask 077; age -d -i IDENTITY key.age > master.key)",
        "   It has 44 characters. A mistyped block does not decrypt.",
        "3. With Sagewai stopped, check that this key decrypts the secrets of the home:",
        f"     {own} keys check --extra-key master.key",
        f"   The fingerprint of this key (key file) must be {escrow.key.fingerprint}.",
        "4. Install it as the user that runs Sagewai, with these modes (with wider ones Sagewai",
        "   replaces the key). If there is a key already, keep it, values may be encrypted under",
        "   it: first rename it to a name that begins with master.key.legacy-.",
        f"     install -d -m 0700 {_quoted(home.master_key.parent)}",
        f"     install -m 0600 master.key {_quoted(home.master_key)}",
        *_elsewhere(escrow.key),
        "   and remove master.key.",
        "If the home is lost too, do this instead of 3 and 4:",
        f"     {own} restore latest --install-key master.key",
        "",
        *_armored(escrow.content),
        "",
    ]
    return "\n".join(lines)


def ciphertext_of(sheet: str) -> bytes:
    """Return the age file from the text of a sheet.

    Raises:
        DamagedError: It has no complete block.
    """
    _before, begin, rest = sheet.partition(f"\n{_BEGIN}\n")
    block, end, _after = rest.partition(f"\n{_END}\n")
    if not begin or not end:
        raise DamagedError("recovery sheet: no complete block")
    try:
        return base64.b64decode("".join(block.split()), validate=True)
    except binascii.Error as error:
        raise DamagedError(f"recovery sheet: block is not base64, {error}") from error


def _armored(content: bytes) -> list[str]:
    text = base64.b64encode(content).decode("ascii")
    starts = range(0, len(text), _ARMOR_COLUMNS)
    return [_BEGIN, *(text[start : start + _ARMOR_COLUMNS] for start in starts), _END]


def _write_verified(
    path: Path, content: bytes, escrow: Escrow, decode: Callable[[bytes], bytes]
) -> None:
    with translate_os_errors(path):
        resolved = resolve_given_path(path, follow_last=False)
    atomic.replace(
        resolved,
        content,
        mode=atomic.PRIVATE_FILE,
        verify=lambda file: _verify(path, decode(_read(file)), escrow),
    )


def _read(file: Path) -> bytes:
    with open(beneath.open_file(file), "rb") as stream:
        return stream.read()


def _verify(path: Path, content: bytes, escrow: Escrow) -> None:
    """Decrypt the file that was read back, and compare.

    Raises:
        DamagedError: It is not the key.
    """
    decryption = Decryption(identities=(escrow.identity,))
    try:
        value = b"".join(decrypt_stream(io.BytesIO(content), decryption, path.name))
    except OpsError as error:
        raise DamagedError(f"escrow {path}: does not decrypt after writing") from error
    if not hmac.compare_digest(value, escrow.key.value):
        raise DamagedError(f"escrow {path}: decrypts to another value than the key")


def _elsewhere(key: Candidate) -> list[str]:
    """Return a line if Sagewai would not read the file."""
    if key.source not in (ENVIRONMENT, KEYRING):
        return []
    return [f"   It came from {key.source}, which Sagewai prefers to that file: set it there too,"]


def _shown(text: str) -> str:
    """Escape what a printer cannot show."""
    return text if text.isprintable() else ascii(text)


def _quoted(path: Path) -> str:
    text = os.fspath(path)
    return shell_word(text) if text.isprintable() else ascii(text)
