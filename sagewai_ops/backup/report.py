"""What a backup is asked to do, and what it says of the snapshot that it took."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sagewai_ops.archive.age import Encryption
from sagewai_ops.archive.zstd_frames import DEFAULT_LEVEL
from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.snapshots.database_check import DatabaseReport
from sagewai_ops.snapshots.omissions import Omission

CUSTODIES = ("exclude", "sealed")


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """What a backup is asked to do.

    Attributes:
        encryption: None writes a clear archive.
        custody: `exclude` keeps the master key out; `sealed` carries it, encrypted with the rest.
        exclude: Patterns on paths relative to the home.
        compact: Rewrite the database without its free pages.
        level: Of zstd.
        tags: Words that the card and the archive bear.
        wait_seconds: For another run on the same home.
        key_environment: Where keys outside the home are looked for.
    """

    encryption: Encryption | None = None
    custody: str = "exclude"
    exclude: tuple[str, ...] = ()
    compact: bool = False
    level: int = DEFAULT_LEVEL
    tags: tuple[str, ...] = ()
    wait_seconds: float = 0.0
    key_environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A snapshot that was taken and proved.

    Attributes:
        path: Of the archive; None if it went into a pipe.
        unstable: Files that changed at every attempt to read them, carried as last read.
        archive_bytes: Of the archive as it is stored.
        content_bytes: Of the files in it.
        format: `archive`, or `directory` for a tree; of that, `path` is the directory,
            `archive_bytes` all that is in it, and `archive_sha256` the hash of its manifest.
        kept_files: Of a tree, the files that are those of the tree before.
    """

    id: str
    sequence: int
    path: Path | None
    created_at: datetime
    archive_bytes: int
    archive_sha256: str
    content_bytes: int
    files: int
    custody: str
    is_encrypted: bool
    key_fingerprint: str
    database: DatabaseReport | None
    keys: SealedReport
    omissions: tuple[Omission, ...]
    unstable: tuple[str, ...]
    followed: Mapping[str, str]
    external: Mapping[str, str]
    swept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    format: str = "archive"
    kept_files: int = 0

    @property
    def losses(self) -> tuple[Omission, ...]:
        """What should have been carried and could not be."""
        return tuple(item for item in self.omissions if item.reason.is_loss)

    @property
    def is_complete(self) -> bool:
        """Whether all was carried as it was, and every sealed value has its key."""
        return not (self.losses or self.unstable or self.keys.unopened)

    @property
    def is_sound(self) -> bool:
        """Whether the checks of the database found nothing."""
        return self.database is None or self.database.is_sound

    def warnings(self) -> Iterator[str]:
        """Say what is missing or wrong, one line each."""
        for item in self.losses:
            detail = f": {item.detail}" if item.detail else ""
            yield f"{item.path}: not carried, {item.reason.value}{detail}"
        for path in self.unstable:
            yield f"{path}: changed whenever it was read, carried as last read"
        for value in self.keys.unopened:
            yield f"{value.place} {value.where}: sealed, {value.reason}"
        if self.database:
            for finding in self.database.integrity:
                yield f"database: {finding}"
            if self.database.foreign_key_violations:
                yield (
                    f"database: {self.database.foreign_key_violations} rows refer to nothing, in "
                    + ", ".join(self.database.foreign_key_tables)
                )
