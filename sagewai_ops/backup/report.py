"""The options of a backup and its report."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from datetime import datetime
from pathlib import Path

from sagewai_ops.archive.age import Encryption
from sagewai_ops.archive.zstd_frames import DEFAULT_LEVEL
from sagewai_ops.home.paths import DATABASE
from sagewai_ops.home.state_files import document_damage, document_name, in_use
from sagewai_ops.keys.candidates import Candidate
from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.records import dataclass
from sagewai_ops.remote.read_back import ReadBack
from sagewai_ops.snapshots.database_check import Check, DatabaseFacts
from sagewai_ops.snapshots.omissions import Omission
from sagewai_ops.snapshots.quality import Cause, Quality
from sagewai_ops.snapshots.server_database import SQLITE, Engine, ServerFacts, UnstoredObject
from sagewai_ops.text import shell_word

_UNOPENED = "unopened"
_LINKED = "linked-file"
_SHOWN_PLACES = 5
_OF_FILES = ("special", "leaves", "unreadable", "name", "holds_key")  # rules of omitted files
CUSTODIES = ("exclude", "sealed")


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """Options of a backup.

    Attributes:
        encryption: None writes a plain archive.
        custody: `exclude` omits the master key; `sealed` includes it, encrypted with the rest.
        exclude: Patterns on paths relative to the home.
        follow: Patterns on paths of links whose target directory is included.
        compact: Rewrite the database without its free pages.
        level: Of zstd.
        tags: Labels in the header and the metadata file of the archive.
        wait_seconds: For another run on the same home.
        key_environment: Variables that may hold keys.
        unencrypted: Write a plain archive next to encrypted ones.
        is_automatic: Another command needs this snapshot: encrypt it like the newest one.
        accepted: Rules, and patterns of paths or tables, of causes that the user accepts.
        accept_change: The user intends what is missing since the newest good snapshot.
        application_version: Of Sagewai; "" for that of its package, if it is found.
        without_database: Omit the database of a server.
        exclude_tables: Patterns on `table` and `schema.table` of the server to omit.
        work_dir: Where the database is copied; None for next to the home, or next to a plain
            archive.
        allow_clear: Write a plain archive to a remote place.
        read_back: How much of an archive in a remote place is read back.
        check: How the database is checked; None for a full check every seven days, else a quick
            one.
        reads_all: Of a mirror, read every file, also those whose status is unchanged.
        mirror: The directory whose mirror is stored in a repository; None for that of the home.
        init_repository: Create the repository if it does not exist.
    """

    encryption: Encryption | None = None
    custody: str = "exclude"
    exclude: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()
    compact: bool = False
    level: int = DEFAULT_LEVEL
    tags: tuple[str, ...] = ()
    wait_seconds: float = 0.0
    key_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    unencrypted: bool = False
    is_automatic: bool = False
    accepted: tuple[str, ...] = ()
    accept_change: bool = False
    application_version: str = ""
    without_database: bool = False
    exclude_tables: tuple[str, ...] = ()
    work_dir: Path | None = None
    allow_clear: bool = False
    read_back: ReadBack = field(default_factory=ReadBack)
    check: Check | None = None
    reads_all: bool = False
    mirror: Path | None = None
    init_repository: bool = False


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A verified snapshot.

    Attributes:
        path: Of the archive; None for a pipe.
        unstable: Files that changed at every attempt to read them, stored as last read.
        followed: Link in the home -> the target that is stored in its place.
        outside_links: Link -> target outside the home, stored as a link.
        unused_follow: Patterns of `--follow` that match no link.
        archive_bytes: Of the archive as it is stored.
        content_bytes: Of the files in it.
        format: `archive`, or `directory` for a mirror; then `path` is its directory,
            `archive_bytes` the size of its files, and `archive_sha256` the hash of its manifest.
        engine: Of the database that Sagewai uses.
        server: The server's database; None without a server, or without its database.
        without_database: The database is on a server, and was omitted.
        kept_files: Of a mirror, the files that are unchanged since the previous run.
        reused_files: Those of them that were not read again, as their status is unchanged.
        last_read_at: When the oldest of these was read; None without one.
        quality: Whether it is complete, sound and plausible.
        read_back_bytes: How much of an archive in a remote place was read back; else None.
        warned: What was noticed about the place.
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
    database: DatabaseFacts | None
    keys: SealedReport
    omissions: tuple[Omission, ...]
    unstable: tuple[str, ...]
    followed: Mapping[str, str]
    external: Mapping[str, str]
    outside_links: Mapping[str, str]
    swept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unused_follow: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    format: str = "archive"
    kept_files: int = 0
    reused_files: int = 0
    last_read_at: datetime | None = None
    quality: Quality = field(default_factory=Quality)
    engine: Engine = SQLITE
    server: ServerFacts | None = None
    without_database: bool = False
    read_back_bytes: int | None = None
    warned: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether everything is stored as it was read once, and every secret has its key."""
        return self.quality.is_complete

    @property
    def unstored(self) -> tuple[UnstoredObject, ...]:
        """Objects of the server's database that the snapshot does not contain."""
        return self.server.unstored if self.server else ()

    @property
    def is_sound(self) -> bool:
        """Whether database, documents and keys are whole."""
        return self.quality.is_sound

    def warnings(self) -> Iterator[str]:
        """Yield a line for each cause why the snapshot is not good, and for unused patterns."""
        yield from self.warned
        closed = [cause for cause in self.quality.omitted if cause.rule == _UNOPENED]
        if len(closed) > 1:  # usually one lost key
            yield (
                f"{len(closed)} sealed values in {_places(closed)}: no key opens them, such as"
                f" {closed[0].text};"
                " sagewai-ops keys check names all, sagewai-ops keys check --extra-key FILE"
                " tries another key"
            )
        for cause in (*self.quality.omitted, *self.quality.damaged):
            if len(closed) < 2 or cause.rule != _UNOPENED:
                yield cause.text
        for pattern in self.unused_follow:
            yield f"--follow {pattern}: no link that leaves the home matches"
        for item in self.unstored:
            if not item.is_data:
                yield item.text
        if not self.quality.is_plausible:
            yield from self.quality.changes
            yield (
                f"snapshot {self.id}: not plausible, compared with {self.quality.compared_with}; "
                "if the change is intended: sagewai-ops backup --accept-change"
            )
        yield from self._next_steps()

    def _next_steps(self) -> Iterator[str]:
        """Yield what was created although something is wrong, and what to do about it."""
        omitted, damaged = self.quality.omitted, self.quality.damaged
        if not (omitted or damaged):
            return
        words = [word for word, causes in (("complete", omitted), ("sound", damaged)) if causes]
        state = f"created, but not {' and not '.join(words)}"
        yield f"snapshot {self.id}: {state}; it is {self.path or 'on stdout'}"
        files = [cause for cause in omitted if cause.rule in _OF_FILES]
        if files:
            name = shell_word(files[0].name)
            yield f"if it is not needed: sagewai-ops backup --exclude {name}"
        elif omitted:
            name = shell_word(omitted[0].name)
            if omitted[0].rule == _LINKED:
                yield f"to include the file: sagewai-ops backup --follow {name}"
            yield f"if it is known and harmless: sagewai-ops backup --accept {name}"
        if damaged:
            yield (
                "sagewai-ops db check lists what is wrong; if it is known and harmless:"
                f" sagewai-ops backup --accept {damaged[0].rule}"
            )


def _places(causes: Iterable[Cause]) -> str:
    """Return the first places of causes, for people."""
    places = list(dict.fromkeys(cause.name for cause in causes))
    more = f" and {len(places) - _SHOWN_PLACES} more" if len(places) > _SHOWN_PLACES else ""
    return ", ".join(places[:_SHOWN_PLACES]) + more


def omission_causes(
    omissions: Iterable[Omission],
    unstable: Iterable[str],
    keys: SealedReport,
    unstored: Iterable[UnstoredObject],
    linked_files: Mapping[str, str],
) -> Iterator[Cause]:
    """Yield why a snapshot is not complete.

    Args:
        linked_files: Links to files of the owner that are stored as links, and their targets.
    """
    for item in omissions:
        if item.reason.is_loss:
            detail = f": {item.detail}" if item.detail else ""
            text = f"{item.path}: omitted, {item.reason.value}{detail}"
            yield Cause(item.reason.name.lower(), item.path, text)
    for path, target in linked_files.items():
        text = f"{path}: stored as a link, its file {target} is not in the snapshot"
        yield Cause(_LINKED, path, text)
    for path in unstable:
        text = f"{path}: changed at every attempt to read it, stored as last read"
        yield Cause("unstable", path, text)
    for value in keys.unopened:
        yield Cause(_UNOPENED, value.place, f"{value.place} {value.where}: sealed, {value.reason}")
    for lacking in unstored:
        if lacking.is_data:
            yield Cause("unstored", lacking.name, lacking.text)


def damage_causes(
    database: DatabaseFacts | None, documents: Mapping[str, bytes], key: Candidate | None
) -> Iterator[Cause]:
    """Yield why a snapshot is not sound.

    Args:
        database: Sagewai's own; None without one.
        documents: By path, those that Sagewai reads.
        key: The master key that Sagewai would use, if it refuses it.
    """
    if database:
        if not database.tables and not database.integrity:
            yield Cause("database", DATABASE, "database: empty, it has no tables")
        for finding in database.integrity:
            yield Cause("integrity", DATABASE, f"database: {finding}")
        if database.foreign_key_violations:
            yield Cause(
                "foreign-keys",
                DATABASE,
                f"database: {database.foreign_key_violations} rows with a broken "
                "reference, in " + ", ".join(database.foreign_key_tables),
            )
    for path in in_use(documents):
        if damage := document_damage(document_name(path), documents[path]):
            yield Cause("document", path, f"{path}: {damage}")
    if key and key.is_file and not key.value:
        yield Cause("key", key.source, f"{key.source}: {key.problem}")
