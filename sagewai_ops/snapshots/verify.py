"""`snapshots verify`: read a snapshot and check every byte, and who wrote it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.open import open_archive
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.snapshots.authenticity import Authenticity, require_latest, require_origin
from sagewai_ops.snapshots.mark import Mark


@dataclass(frozen=True, slots=True)
class VerifiedSnapshot:
    """A snapshot without damage.

    Attributes:
        authenticity_reason: Why it is not authentic; "" if it is.
    """

    id: str
    archive: Path
    members: int
    content_bytes: int
    authenticity: Authenticity
    authenticity_reason: str


def verify_snapshot(
    path: Path,
    decryption: Decryption | None,
    keys: Sequence[AuthenticationKey],
    *,
    authentic: bool = False,
    mark: Mark | None = None,
    progress: Progress | None = None,
) -> VerifiedSnapshot:
    """Compare every byte of a snapshot with its manifest, and check its origin.

    Args:
        keys: Of the home.
        authentic: Refuse every snapshot that is not authentic.
        mark: Of the home, if the snapshot was chosen as the newest one.
        progress: Reports `verify` in bytes.

    Raises:
        NotFoundError, KeyMissingError, SchemaAheadError: It cannot be read.
        DamagedError: It is damaged, forged, or not authentic.
    """
    with open_archive(path, decryption) as reader:
        reader.verify(on_bytes=byte_counter(progress, "verify", reader.content_bytes))
        origin = require_origin(reader, path, keys, authentic=authentic)
        if mark:
            require_latest(reader.header, path, origin, mark, keys)
        entries = reader.manifest.entries
        return VerifiedSnapshot(
            id=reader.header.id,
            archive=path,
            members=len(entries),
            content_bytes=sum(entry.size_bytes for entry in entries),
            authenticity=origin.authenticity,
            authenticity_reason=origin.reason,
        )
