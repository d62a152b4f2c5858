"""One run of a backup: copy the databases, verify them, write the members of the snapshot.

The content and its order are decided here; `create` and `mirror` decide where it is written.
"""

import contextlib
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from sagewai_ops import __version__
from sagewai_ops.archive.age import Encryption, encrypting
from sagewai_ops.archive.authentication import AuthenticationKey, derive_key
from sagewai_ops.archive.digest import Written
from sagewai_ops.archive.manifest import FORMAT_VERSION, Entry, EntryType, Header
from sagewai_ops.archive.writer import ArchiveWriter, MemberWriter
from sagewai_ops.archive.zstd_frames import HashingSink
from sagewai_ops.backup import recipients
from sagewai_ops.backup.entries import (
    database_first,
    describe_entry,
    include_as_file,
    notes,
    open_source,
    root_facts,
)
from sagewai_ops.backup.report import BackupOptions, BackupReport, damage_causes, omission_causes
from sagewai_ops.backup.scan_items import ScanItem
from sagewai_ops.backup.scanner import HomeScan, databases, main_database, scan_home
from sagewai_ops.backup.server import ServerSource, open_server
from sagewai_ops.database.sqlite.online_copy import DatabaseCopy, attribute_damage, copy_database
from sagewai_ops.database.sqlite.read_transaction import WAIT_SECONDS
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    LockedError,
    NotFoundError,
    PermissionDeniedError,
)
from sagewai_ops.fs.trust import report as report_once
from sagewai_ops.home.application import find_version
from sagewai_ops.home.paths import DATABASE, LEGACY_MASTER_KEY, MASTER_KEY, Home, Kind
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.keys.candidates import Candidate, all_candidates, configured_key, rejected_key
from sagewai_ops.keys.trial_decryption import KeySearch, SealedReport, try_keys
from sagewai_ops.process.malloc import return_free_blocks
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.database_check import (
    DatabaseFacts,
    dated,
    examination_thread,
    next_check,
    read_schema_level,
)
from sagewai_ops.snapshots.mark import Mark, write_mark
from sagewai_ops.snapshots.member_paths import EXTERNAL, EXTERNAL_KEY
from sagewai_ops.snapshots.omissions import Omission, Reason
from sagewai_ops.snapshots.ownership import home_ids
from sagewai_ops.snapshots.quality import Content, ContentCounter, Quality, assess, engine_of
from sagewai_ops.snapshots.rebuild_cards import recorded_check
from sagewai_ops.snapshots.reference import Reference
from sagewai_ops.snapshots.server_database import (
    POSTGRESQL,
    SQLITE,
    Engine,
    ServerFacts,
    counted_database,
)

# A night without the documents and the key would be worse than one without the database.
_DAMAGED = f"{DamagedError.advice}\nthe rest alone: sagewai-ops backup --exclude 'db/*'"

# A user of Sagewai can put any file below data/: it must neither prevent a backup nor delay it.
_ARTIFACT_SECONDS = 1.0  # for the lock of one database that is not Sagewai's
_ARTIFACTS_SECONDS = 10.0  # for all of them

OpenWriter = Callable[[Header, Callable[[int], None]], MemberWriter]


@dataclass(frozen=True, slots=True)
class _Frozen:
    """Copies of the databases, by their path in the home, while Sagewai's own is verified."""

    copies: Mapping[str, DatabaseCopy]
    main: DatabaseCopy | None
    proving: "Future[DatabaseFacts] | None"
    server: ServerSource | None


@dataclass(slots=True)
class BackupRun:
    """A snapshot while it is created.

    Attributes:
        key: Authenticates the snapshot; None if the home has no master key.
        previous: `id` and `mac` of the previous snapshot of the home in the directory, if known.
        reference: The newest good snapshot of the home; None without one.
        counter: The files that were added.
        content: Of the snapshot once its members are written.
        quality: Of the snapshot then.
        mac: The HMAC of the snapshot once it is written; empty without a key.
        server: The server's database once it is written; None without one.
        moments: Of the reads, in seconds since 1970; see `ServerFacts`.
        clone_from: A directory with earlier copies of the databases; None without one.
        add_unchanged: Called with a path and its status; adds a file that need not be read.
        configure: Called before the first member, to set number, `previous` and `reference`.
    """

    home: Home
    options: BackupOptions
    id: str
    sequence: int
    created_at: datetime
    candidates: tuple[Candidate, ...] = field(repr=False)
    scan: HomeScan
    key_fingerprint: str
    files: int = 0
    content_bytes: int = 0
    database: DatabaseFacts | None = None
    keys: SealedReport = field(default_factory=SealedReport)
    unstable: list[str] = field(default_factory=list)
    archive_bytes: int = 0
    archive_sha256: str = ""
    documents: dict[str, bytes] = field(default_factory=dict, repr=False)
    stored_documents: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    key_search: KeySearch = field(default_factory=KeySearch, repr=False)
    key: AuthenticationKey | None = None
    previous: Mapping[str, str] | None = None
    reference: Reference | None = None
    counter: ContentCounter = field(default_factory=ContentCounter)
    content: Content = field(default_factory=Content)
    quality: Quality = field(default_factory=Quality)
    mac: bytes = b""
    server: ServerFacts | None = None
    moments: dict[str, float] = field(default_factory=dict)
    clone_from: Path | None = None
    add_unchanged: Callable[[str, os.stat_result], Entry | None] = lambda _path, _status: None
    configure: Callable[["BackupRun"], None] = lambda _run: None

    @property
    def moment_ns(self) -> int:
        """Start of the run, in nanoseconds since 1970, whole seconds."""
        return int(self.created_at.timestamp()) * 1_000_000_000

    @property
    def engine(self) -> Engine:
        """The engine of the database that Sagewai uses."""
        is_on_server = self.home.server_url_variable or self.options.without_database
        return POSTGRESQL if is_on_server else SQLITE

    @property
    def _last_full_check(self) -> str:
        return self.reference.full_check_at if self.reference else ""

    @property
    def omits_database(self) -> bool:
        """Whether that database is on a server, and is omitted."""
        return self.engine == POSTGRESQL and self.options.without_database

    @classmethod
    def start(
        cls,
        home: Home,
        options: BackupOptions,
        sequence: int,
        directory: Path,
        previous: Mapping[str, str] | None = None,
        reference: Reference | None = None,
        *,
        is_stored: bool = True,
    ) -> "BackupRun":
        """Scan the home and choose the key.

        Args:
            directory: Where this run writes.
            previous, reference: As the attributes.
            is_stored: Whether the snapshot is stored there, and not only copies of databases.

        Raises:
            KeyMissingError: The key is to be included and no key is found.
            UsageError: A link that `--follow` matches cannot be followed.
        """
        candidates = all_candidates(home, options.key_environment)
        key = configured_key(candidates)
        if options.custody == "sealed" and key is None:
            raise KeyMissingError(
                f"home {home.root}: no master key to include, neither in the environment nor in "
                f"{home.master_key}",
                hint="sagewai-ops status  # lists where keys are searched",
            )
        moment = datetime.now(timezone.utc)
        scan = scan_home(
            home,
            exclude=options.exclude,
            follow=options.follow,
            key_values=tuple(candidate.value for candidate in candidates),
            includes_key=options.custody == "sealed",
            snapshots=directory,
            has_server=bool(home.server_url_variable) and not options.without_database,
            outside=directory if is_stored else None,
        )
        return cls(
            home=home,
            options=options,
            id=catalog.new_id(moment),
            sequence=sequence,
            created_at=moment,
            candidates=candidates,
            scan=scan,
            key_fingerprint=key.fingerprint if key else "",
            key=derive_key(key.fingerprint, key.value) if key else None,
            previous=previous if key else None,
            reference=reference,
        )

    def write(
        self,
        stream: BinaryIO,
        path: Path | None,
        encryption: Encryption | None,
        staging: Path,
        progress: Progress | None,
    ) -> Written:
        """Copy the databases, read the state files, verify both, and write the archive.

        Args:
            path: Of the stream; None for a pipe.

        Returns:
            What the archive is compared with when it is read back.
        """
        writers: list[ArchiveWriter] = []

        def open_writer(header: Header, on_bytes: Callable[[int], None]) -> ArchiveWriter:
            writer = ArchiveWriter(
                into,
                header,
                mtime_ns=self.moment_ns,
                level=self.options.level,
                on_bytes=on_bytes,
                key=self.key,
            )
            writers.append(writer)
            return writer

        with (
            contextlib.closing(HashingSink(stream, path)) as sink,
            self._frozen(staging, progress) as frozen,
            encrypting(sink, encryption) as into,
        ):
            self._pack(frozen, open_writer, progress)
        self.archive_bytes, self.archive_sha256 = sink.size_bytes, sink.hexdigest()
        self.scan.items.clear()  # verification loads the archive's own list; memory is for one
        return_free_blocks()
        return writers[0].written

    def write_with(self, open_writer: OpenWriter, staging: Path, progress: Progress | None) -> None:
        """Do as `write`, with a writer of another kind."""
        with self._frozen(staging, progress) as frozen:
            self._pack(frozen, open_writer, progress)

    def report(self, path: Path | None, swept: Sequence[str]) -> BackupReport:
        """Return the report of the run."""
        return BackupReport(
            id=self.id,
            sequence=self.sequence,
            path=path,
            created_at=self.created_at,
            archive_bytes=self.archive_bytes,
            archive_sha256=self.archive_sha256,
            content_bytes=self.content_bytes,
            files=self.files,
            custody=self.options.custody,
            is_encrypted=self.options.encryption is not None,
            key_fingerprint=self.key_fingerprint,
            database=self.database,
            keys=self.keys,
            omissions=tuple(self.scan.omissions),
            unstable=tuple(self.unstable),
            followed=self.scan.followed,
            external=self.scan.external,
            outside_links=self.scan.outside_links,
            swept=tuple(swept),
            notes=tuple(notes(self.home, self.scan, without=self.omits_database)),
            unused_follow=tuple(self.scan.unused_follow),
            tags=self.options.tags,
            quality=self.quality,
            engine=self.engine,
            server=self.server,
            without_database=self.omits_database,
        )

    def card(self, report: BackupReport) -> dict[str, Any]:
        """Return the metadata file (card) of the archive."""
        assert report.path is not None
        return {
            "archive": report.path.name,
            "id": self.id,
            **self._identity(self._level(self.database.schema_level if self.database else "")),
            "archive_bytes": report.archive_bytes,
            "archive_sha256": report.archive_sha256,
            "content_bytes": report.content_bytes,
            "files": report.files,
            "encrypted": report.is_encrypted,
            **recipients.record(self.id, self.options.encryption, self.key),
            **self.quality.card_facts,
            **recorded_check(self._database_facts()),
            "content": self.content.card_facts(is_encrypted=report.is_encrypted),
            "verified_at": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
            **({"authentication": self.mac.hex()} if self.mac else {}),
        }

    def mark(self, directory: Path) -> None:
        """Write the high-water mark of an authenticated snapshot."""
        if self.key:
            mark = Mark(
                self.sequence, self.id, self.mac.hex(), self.key.fingerprint, since=self.sequence
            )
            if self.quality.is_good:
                mark = replace(mark, good_sequence=self.sequence, good_id=self.id)
            if not write_mark(self.home, directory, mark, self.options.key_environment):
                report_once(
                    f"snapshot {self.id}: high-water mark not written, neither in {self.home.root}"
                    " nor in the user's state directory: before the next backup, a removed or"
                    " replaced snapshot is not noticed"
                )

    def _identity(self, level: str) -> dict[str, Any]:
        application = self.options.application_version or find_version(
            self.options.key_environment, self.home.root
        )
        return {
            "sequence": self.sequence,
            "created_at": f"{self.created_at:%Y-%m-%dT%H:%M:%SZ}",
            "home": str(self.home.root),
            "home_id": home_ids(self.home)[0],
            "host": socket.gethostname(),
            "tool_version": __version__,
            "python_version": platform.python_version(),
            **({"application_version": application} if application else {}),
            "key_custody": self.options.custody,
            "key_fingerprint": self.key_fingerprint,
            "schema_level": level,
            **self._engine_facts,
            "tags": list(self.options.tags),
            **({"previous": dict(self.previous)} if self.previous else {}),
        }

    @property
    def _engine_facts(self) -> dict[str, Any]:
        omitted = {"without_database": True} if self.omits_database else {}
        return {"engine": self.engine, **omitted}

    def _database_facts(self) -> dict[str, Any]:
        return {
            "database": asdict(self.database.record) if self.database else None,
            **({"postgres": self._server_facts()} if self.engine == POSTGRESQL else {}),
        }

    def _level(self, of_file: str) -> str:
        """Return the revision of the database that Sagewai uses, and that the snapshot contains.

        Args:
            of_file: That of the SQLite file.
        """
        if self.engine == SQLITE:
            return of_file
        return self.server.level if self.server else ""

    def _freeze(self, staging: Path, progress: Progress | None) -> dict[str, DatabaseCopy]:
        """Copy every database, then read the state files at once, so that both agree."""
        copies = {}
        main = main_database(self.home, self.scan)
        deadline = None
        for number, item in enumerate(databases(self.scan)):
            is_main = item == main or item.path == DATABASE
            if not is_main and deadline is None:
                deadline = time.monotonic() + _ARTIFACTS_SECONDS
            if is_main:
                self.moments["sqlite"] = time.time()
            wait = WAIT_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                copies[item.path] = copy_database(
                    Path(item.source),
                    staging / f"{number}.db",
                    compact=self.options.compact,
                    clone_from=self.clone_from / item.path if self.clone_from else None,
                    wait_seconds=wait if is_main else min(wait, _ARTIFACT_SECONDS),
                    progress=progress,
                )
            except (DamagedError, LockedError, NotFoundError, PermissionDeniedError) as error:
                if is_main:
                    raise
                include_as_file(self.scan, item, error.message.replace(item.source, item.path))
        self.documents = read_documents(self.home)
        self.moments["documents"] = time.time()
        return copies

    @contextlib.contextmanager
    def _frozen(self, staging: Path, progress: Progress | None) -> Iterator["_Frozen"]:
        # First the server, then the SQLite file, then the documents: what a document refers to is
        # in neither database only if it was created during these reads.
        with open_server(self.home, self.options) as server:
            if server:
                self.moments["server"] = server.moment
            with self._frozen_files(staging, server, progress) as frozen:
                yield frozen

    @contextlib.contextmanager
    def _frozen_files(
        self, staging: Path, server: ServerSource | None, progress: Progress | None
    ) -> Iterator["_Frozen"]:
        copies = self._freeze(staging, progress)
        main = main_database(self.home, self.scan)
        copy = copies.get(main.path) if main else None
        path = copy.path if copy else None
        with (
            attribute_damage(self.home.database, path, hint=_DAMAGED),
            examination_thread() as examine,
        ):
            check = self.options.check or next_check(self._last_full_check, self.created_at)
            proving = examine(path, check) if path else None
            self.keys = try_keys(
                self.documents,
                path,
                self.candidates,
                key_search=self.key_search,
                others=server.sealed_values() if server else (),
            )
            yield _Frozen(copies, copy, proving, server)

    def _pack(self, frozen: "_Frozen", open_writer: OpenWriter, progress: Progress | None) -> None:
        self.configure(self)
        server = frozen.server
        size_bytes = self.scan.content_bytes + (server.size_bytes if server else 0)
        count = byte_counter(progress, "pack", size_bytes)
        if self.engine == POSTGRESQL:
            level = server.level if server else ""
        else:
            level = read_schema_level(frozen.main.path).revision if frozen.main else ""
        writer = open_writer(Header(self.id, FORMAT_VERSION, self._identity(level)), count)
        with contextlib.closing(writer):
            if server:
                self.server = server.write(writer, self.moment_ns)
            self.moments["files"] = time.time()
            for item in database_first(self.scan.items, frozen.copies):
                self._add(writer, item, frozen.copies.get(item.path))
            if self.options.custody == "sealed":
                self._add_key(writer)
            if frozen.proving:
                self.database = dated(
                    frozen.proving.result(), self.created_at, self._last_full_check
                )
            self.content_bytes = writer.content_bytes
            self._assess()
            writer.finish(self._facts())
            self.mac = writer.mac
            self.files = writer.files - 1  # without snapshot.json

    def _assess(self) -> None:
        """Compare the snapshot with the newest good one, and record whether it is good."""
        facts = self._database_facts()
        counted = self.counter.content(
            counted_database(facts), engine=engine_of(self._engine_facts), key=self.key_fingerprint
        )
        self.content = replace(counted, size_bytes=self.content_bytes)
        reference = self.reference
        # A home on a database server may have an empty database that Sagewai does not use.
        is_used = self.engine == SQLITE or bool(self.database and self.database.tables)
        self.quality = assess(
            omission_causes(
                self.scan.omissions,
                self.unstable,
                self.keys,
                self.server.unstored if self.server else (),
                self.scan.outside_files,
            ),
            damage_causes(
                self.database if is_used else None,
                {path: self.documents[path] for path in self.stored_documents},
                rejected_key(self.candidates),
            ),
            self.content,
            reference.content if reference else None,
            compared_with=reference.id if reference else "",
            accepted=self.options.accepted,
            accepts_change=self.options.accept_change,
        )

    def _add(self, writer: MemberWriter, item: ScanItem, copy: DatabaseCopy | None) -> None:
        directory = item.path.rpartition("/")[0]
        try:
            if directory in self.gone:
                # It may exist again, but the archive has no directory for this.
                raise FileNotFoundError
            status = os.stat(item.source) if copy else os.lstat(item.source)
            if item.type == "file" and item.path not in self.documents:
                unchanged = self.add_unchanged(item.path, status)
                if unchanged:
                    self.counter.add(item.path, unchanged.size_bytes)
                    return
            stream = open_source(item, copy)
        except OSError as error:
            if item.type == "folder":
                self.gone.add(item.path)
            is_gone = isinstance(error, (FileNotFoundError, NotADirectoryError))
            reason = Reason.GONE if is_gone else Reason.UNREADABLE
            detail = "" if is_gone else error.strerror or ""
            self.scan.omissions.append(Omission(item.path, reason, detail))
            self.scan.outside_links.pop(item.path, None)
            return
        if stream is None:
            kind = EntryType.DIRECTORY if item.type == "folder" else EntryType.LINK
            writer.add_directory_or_link(describe_entry(item.path, kind, status, item))
            return
        with stream:
            entry = describe_entry(item.path, EntryType.FILE, os.fstat(stream.fileno()))
            if copy:
                described = describe_entry(item.path, EntryType.FILE, status)
                writer.add_copy(described, stream, copy.path)
            elif item.path in self.documents:
                content = self.documents[item.path]
                self.counter.add(item.path, writer.add_bytes(entry, content).size_bytes)
                self.stored_documents.append(item.path)
            elif (added := writer.add_file(entry, stream, is_banned=self._banned())) is None:
                self.scan.omissions.append(Omission(item.path, Reason.HOLDS_KEY))
            else:
                self.counter.add(item.path, added.entry.size_bytes)
                if not added.is_stable:
                    self.unstable.append(item.path)

    def _banned(self) -> KeySearch | None:
        """Return what no file of the archive may contain: a key, unless they are included."""
        return None if self.options.custody == "sealed" else self.key_search

    def _add_key(self, writer: MemberWriter) -> None:
        """Add the key that is in use, where the home has no file of it."""
        key = configured_key(self.candidates)
        has_file = any(
            item.kind is Kind.KEY and Path(item.source).name == "master.key"
            for item in self.scan.items
        )
        if key is None or (has_file and key.source in (MASTER_KEY, LEGACY_MASTER_KEY)):
            return
        moment_ns = self.moment_ns
        if not any(item.path == EXTERNAL for item in self.scan.items):
            writer.add_directory_or_link(Entry(EXTERNAL, EntryType.DIRECTORY, 0o700, moment_ns))
        writer.add_bytes(Entry(EXTERNAL_KEY, EntryType.FILE, 0o600, moment_ns), key.value)

    def _server_facts(self) -> dict[str, Any] | None:
        if self.server is None:
            return None
        self.server = self.server.with_moments(self.moments)
        return self.server.as_json

    def _facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "quality": asdict(self.quality.facts),
            **self._database_facts(),
            "keys": asdict(self.keys),
            "left_out": [
                {"path": item.path, "reason": item.reason.name.lower(), "detail": item.detail}
                for item in self.scan.omissions
            ],
            "unstable": self.unstable,
            "followed": self.scan.followed,
            "external": self.scan.external,
            "home": root_facts(self.home),
        }
