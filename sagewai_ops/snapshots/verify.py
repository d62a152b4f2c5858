"""`snapshots verify`: read a snapshot and check every byte, and who wrote it."""

from collections.abc import Sequence
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.open import archive_digest, open_archive, size_of
from sagewai_ops.errors import DamagedError, UsageError
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.authenticity import (
    AUTHENTIC,
    NOT_AUTHENTICATED,
    Authenticity,
    require_latest,
    require_origin,
)
from sagewai_ops.snapshots.cards import is_authentic, read_card
from sagewai_ops.snapshots.catalog import id_of
from sagewai_ops.snapshots.mark import Mark


@dataclass(frozen=True, slots=True)
class VerifiedSnapshot:
    """A snapshot without damage.

    Attributes:
        members, content_bytes: None if only the hash of the archive was compared.
        authenticity_reason: Why it is not authentic; "" if it is.
    """

    id: str
    archive: Path
    members: int | None
    content_bytes: int | None
    authenticity: Authenticity
    authenticity_reason: str


def verify_hash(
    path: Path, keys: Sequence[AuthenticationKey], *, progress: Progress | None = None
) -> VerifiedSnapshot:
    """Compare the hash of an archive with the recorded one; an encrypted one needs no identity.

    It is as trustworthy as its metadata file, which a key of the home authenticates.

    Args:
        progress: Reports `verify` in bytes.

    Raises:
        UsageError: No hash is recorded.
        NotFoundError, RemoteError, OSError: It cannot be read.
        DamagedError: The hash differs.
    """
    card = read_card(path)
    recorded = card.get("archive_sha256")
    if not isinstance(recorded, str):
        raise UsageError(
            f"snapshot {path}: no hash recorded, its metadata file is missing",
            hint="sagewai-ops snapshots list --rebuild",
        )
    if archive_digest(path, byte_counter(progress, "verify", size_of(path))) != recorded:
        raise DamagedError(
            f"{path}: its hash differs from the recorded one",
            hint="use another snapshot: sagewai-ops snapshots list",
        )
    is_confirmed = is_authentic(card, keys)
    return VerifiedSnapshot(
        id=id_of(path.name),
        archive=path,
        members=None,
        content_bytes=None,
        authenticity=AUTHENTIC if is_confirmed else NOT_AUTHENTICATED,
        authenticity_reason="" if is_confirmed else "its metadata file is not authenticated",
    )


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
