"""Digests of what was written to an archive."""

import hashlib

from sagewai_ops.archive.manifest import Entry
from sagewai_ops.archive.tar import member_header
from sagewai_ops.records import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """What the writer of an archive knows of it.

    Attributes:
        archive: SHA-256 of all its bytes, before encryption.
        members: The `MemberDigest` of the members that it wrote.
    """

    archive: bytes
    members: bytes


class MemberDigest:
    """SHA-256 of the tar headers and the hashes of the contents of all members, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add_header(self, entry: Entry) -> bytes:
        """Add the tar header of a member, and return it."""
        header = member_header(entry)
        self._digest.update(header)
        return header

    def add_content(self, entry: Entry) -> None:
        """Add the hash of the content of the member whose header is the last one."""
        self._digest.update(entry.sha256)

    def digest(self) -> bytes:
        """Return the digest."""
        return self._digest.digest()
