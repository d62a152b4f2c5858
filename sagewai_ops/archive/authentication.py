"""The origin of a snapshot: an HMAC that only the holder of the home's master key can compute.

Neither a hash nor age's encryption shows who wrote an archive: its recipient is public. The key of
the HMAC is derived from the master key by HKDF and opens nothing; docs/format.md, section 11.
"""

import hmac
import json
import struct
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from sagewai_ops.archive.manifest import Header
from sagewai_ops.records import dataclass

MAC_BYTES = 32
NO_MAC = bytes(MAC_BYTES)  # in the place of one: the writer had no key, or there is no predecessor
_INFO = b"sagewai-ops snapshot authentication v2"
_SNAPSHOT = b"sagewai-ops snapshot v2\0"
_RECORD = b"sagewai-ops %s v2\0"
# One for all: a list has thousands of records, and a new encoder takes longer than its work.
_encode_record = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_WRAP = b"sagewai-ops former key v2\0"
_NUMBERS = struct.Struct("<QQ")  # manifest offset, sequence
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class AuthenticationKey:
    """A key that authenticates snapshots.

    Attributes:
        fingerprint: Of the master key that it is derived from.
    """

    fingerprint: str
    secret: bytes = field(repr=False)

    def mac(self, header: Header, digest: bytes, manifest_start: int) -> bytes:
        """Return the HMAC of a snapshot.

        Args:
            digest: The SHA-256 of an archive's frames, or of a mirror's manifest.
            manifest_start: Offset of the manifest in the tar stream; 0 for a mirror.
        """
        facts = header.facts
        message = [
            _SNAPSHOT,
            digest,
            previous_mac(header),
            _NUMBERS.pack(manifest_start, facts.get("sequence", 0)),
        ]
        for text in (header.id, facts.get("home_id", "")):
            content = text.encode("utf-8", "surrogateescape")
            message += (_LENGTH.pack(len(content)), content)
        return hmac.digest(self.secret, b"".join(message), "sha256")

    def record_mac(self, kind: str, record: Mapping[str, Any]) -> str:
        """Return the HMAC of a JSON record without its own field `mac`, in hex.

        Args:
            kind: `card` or another name, so that a record of one kind does not pass as another.
        """
        facts = dict(record)
        facts.pop("mac", None)
        message = _RECORD % kind.encode() + _encode_record(facts).encode()
        return hmac.digest(self.secret, message, "sha256").hex()

    def wrap(self, other: "AuthenticationKey") -> bytes:
        """Encrypt another key, which is random to everyone without this one."""
        return bytes(a ^ b for a, b in zip(other.secret, self._pad(other.fingerprint), strict=True))

    def unwrap(self, fingerprint: str, wrapped: bytes) -> "AuthenticationKey":
        """Return the key that `wrap` encrypted.

        Args:
            fingerprint: Of its master key.

        Raises:
            ValueError: It has another length.
        """
        secret = bytes(a ^ b for a, b in zip(wrapped, self._pad(fingerprint), strict=True))
        return AuthenticationKey(fingerprint, secret)

    def _pad(self, fingerprint: str) -> bytes:
        return hmac.digest(self.secret, _WRAP + fingerprint.encode(), "sha256")


def derive_key(fingerprint: str, master_key: bytes) -> AuthenticationKey:
    """Derive the key of snapshots from a master key.

    It is the first block of HKDF-SHA256 (RFC 5869) without a salt. The module `cryptography` has
    the same, and loading it would take longer than a small backup.

    Args:
        master_key: The 44 characters of the file.
    """
    extracted = hmac.digest(NO_MAC, master_key, "sha256")
    return AuthenticationKey(fingerprint, hmac.digest(extracted, _INFO + b"\x01", "sha256"))


def previous_mac(header: Header) -> bytes:
    """Return the HMAC of the previous snapshot that a header names; zeros without one."""
    previous = header.facts.get("previous")
    return bytes.fromhex(previous["mac"]) if previous else NO_MAC


def previous_id(header: Header) -> str:
    """Return the id of the previous snapshot that a header names; "" without one."""
    previous = header.facts.get("previous")
    return str(previous["id"]) if previous else ""
