"""The plan of a restore: the members to write, and the entries of the target that they replace.

A dry run makes the same plan and fails for the same reasons, as far as they can be found without
extracting the archive. Nothing is written.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.manifest import Entry, EntryType, is_safe_path
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.postgres.sessions import require_home_unused
from sagewai_ops.database.url import VARIABLES, PostgresUrl, resolve
from sagewai_ops.errors import (
    DamagedError,
    NotFoundError,
    SchemaAheadError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs.free_space import nearest_existing, require_free_bytes
from sagewai_ops.fs.volumes import LOST_AND_FOUND, has_only_directories, names_in
from sagewai_ops.home.companions import DISCARDED
from sagewai_ops.home.paths import (
    COMPANION,
    DATABASE,
    MASTER_KEY,
    SIDECAR_SUFFIXES,
    Home,
    Kind,
    kind_of,
    layout_of,
)
from sagewai_ops.home.server_record import PLACE, read_server_record
from sagewai_ops.process.privileges import own_account
from sagewai_ops.records import dataclass
from sagewai_ops.restore.companions import companion_warnings, plan_replica
from sagewai_ops.restore.links import check_links
from sagewai_ops.schema.postgres_replaced import replaced_schema
from sagewai_ops.schema.revision_graph import HEAD, revisions
from sagewai_ops.snapshots.authenticity import (
    AUTHENTIC,
    NOT_AUTHENTICATED,
    Origin,
    require_latest,
    require_origin,
)
from sagewai_ops.snapshots.catalog import is_archive_name
from sagewai_ops.snapshots.mark import read_mark
from sagewai_ops.snapshots.member_paths import MemberPaths, is_within
from sagewai_ops.snapshots.server_database import POSTGRESQL, ServerFacts, read_server
from sagewai_ops.snapshots.trust import keys_of
from sagewai_ops.swap import pending, swap
from sagewai_ops.text import printable

if TYPE_CHECKING:
    from sagewai_ops.database.sqlite.litestream import Replica, ReplicaState
    from sagewai_ops.restore.conversion import ConversionPlan

TargetState = Literal["absent", "empty", "not empty"]
DatabaseCheck = Literal["recorded", "full"]
# The parts with which the database of a server is restored.
_DATABASES = frozenset((DATABASE, DATABASE.partition("/")[0]))
# Never in a snapshot: SQLite would apply a sidecar, and this program would use its own files.
_NEVER_ARCHIVED = (Kind.SIDECAR, Kind.LOCK, Kind.OWN)


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """The options of a restore.

    Attributes:
        replace: Replace a home that exists; the previous one is kept.
        if_empty: Replace empty directories too; they are kept.
        only: Parts of the home or paths in it; empty for all of it.
        key_file: A master key to install in the restored home.
        without_key: Restore even if no key opens the encrypted values.
        revoke_sessions: End sessions and revoke API tokens.
        rebind_fleet: Assign the fleet's rows to the organisation id of the target's path.
        key_home: Another home whose key may be used, such as the original.
        require_authentic: Refuse a snapshot that is not authentic.
        is_latest: It was chosen as the newest of its directory: then it must be authentic, if this
            home authenticates its snapshots, and not older than the high-water mark.
        allow_rollback: Accept it in any case, unless it is forged.
        same_owner: As root, keep the owners that the snapshot records.
        server: Where a database that was on a server is restored; None for files alone.
        requires_server: Refuse a snapshot with such a database, unless `server` is given.
        to_sqlite: Restore such a database to the SQLite file of the home.
        check: `full` to check a database again that was checked at the backup, else `recorded`.
        replica: Where the database comes from; None for the snapshot.
        accept_change: Accept a replica that lacks rows of the snapshot.
    """

    decryption: Decryption | None = None
    replace: bool = False
    if_empty: bool = False
    only: tuple[str, ...] = ()
    key_file: Path | None = None
    without_key: bool = False
    revoke_sessions: bool = False
    rebind_fleet: bool = False
    wait_seconds: float = 0.0
    same_owner: bool = False
    key_home: Home | None = None
    key_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    require_authentic: bool = False
    is_latest: bool = False
    allow_rollback: bool = False
    server: PostgresUrl | None = None
    requires_server: bool = False
    to_sqlite: bool = False
    check: DatabaseCheck = "recorded"
    replica: "Replica | None" = None
    accept_change: bool = False


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """The plan of a restore; `restore` executes the same.

    Attributes:
        target: The restored home.
        state: Of the target: `absent`, `empty` or `not empty`.
        paths: The entries that are replaced; None for the whole home.
        sealed: Number of encrypted values in the snapshot.
        has_database: Whether the snapshot has one that was copied and checked.
        is_on_server: Whether the database that Sagewai used is that of a server.
        origin, application_version: Of the original home: its path, and Sagewai's version or "".
        revokes_sessions: Whether sessions and API tokens are revoked.
        rebinds_fleet: Whether the fleet's rows get the organisation id of the target's path.
        owner: The user who will own everything; "" for the owners that the snapshot records.
        followed: Path that is written in place of a link -> where the original link led to.
        outside_links: Path in the target -> the target of a link that leads out of the home.
        origin_state: Whether the snapshot is authentic.
        server: The database of a server that is restored too; None for files alone.
        server_name: The server that it is restored to; "" for none.
        conversion: How it becomes the SQLite database of the home; None if it does not.
        replica: The state of the replica that the database comes from; None for the snapshot.
    """

    snapshot_id: str
    archive: Path
    target: Path
    state: TargetState
    paths: tuple[str, ...] | None
    files: int
    size_bytes: int
    schema_level: str
    key_custody: str
    key_fingerprint: str
    sealed: int
    has_database: bool
    is_on_server: bool
    origin: str
    application_version: str
    revokes_sessions: bool
    rebinds_fleet: bool
    owner: str
    followed: Mapping[str, str]
    outside_links: Mapping[str, str]
    origin_state: Origin
    server: ServerFacts | None
    server_name: str
    conversion: "ConversionPlan | None"
    replica: "ReplicaState | None"
    warnings: tuple[str, ...]

    @property
    def is_authentic(self) -> bool:
        """Whether this home wrote the snapshot."""
        return self.origin_state.authenticity == AUTHENTIC


def plan_restore(archive: Path, target: Home, options: RestoreOptions) -> RestorePlan:
    """Plan a restore from the manifest and the state of the target; nothing is written.

    Raises:
        As `restore.restore`, for everything that can be found without extracting the archive.
    """
    with open_archive(archive, options.decryption) as reader:
        pending.require_settled(target.root)
        plan = build_plan(reader, archive, target, options, member_paths(reader, options))
    if plan.server and options.server:
        from sagewai_ops.restore.server import open_server_restore

        # What a run would do until the rows, rolled back.
        schema = replaced_schema(swap.next_moment(target.root))
        with open_server_restore(options.server, schema, replace=options.replace) as session:
            session.expect(plan.server, is_authentic=plan.is_authentic)
    return plan


def member_paths(reader: ArchiveReader, options: RestoreOptions) -> MemberPaths:
    """Return the paths of the members of an archive; a home on SQLite has no record of a server."""
    return MemberPaths(reader.manifest, omitted=(PLACE,) if options.to_sqlite else ())


def build_plan(
    reader: ArchiveReader, archive: Path, target: Home, options: RestoreOptions, places: MemberPaths
) -> RestorePlan:
    """Plan the restore of an open archive."""
    facts, header = reader.manifest.facts, reader.header
    origin, warnings = _require_origin(reader, archive, target, options)
    _require_known_schema(header.facts)
    parts = parse_parts(options)
    replaces_names = not (parts and target.root.is_dir()) and not swap.can_swap_whole(target.root)
    wanted = _Wanted.of(reader, places, parts, needs_names=replaces_names)
    check_links(wanted.links.items())
    if options.to_sqlite:  # the snapshot may lack the file
        wanted.parts |= _DATABASES
        wanted.top_names |= _DATABASES - {DATABASE}
    for part in parts:
        if part not in wanted.parts:
            raise NotFoundError(
                f"snapshot {header.id}: {part} not found in it",
                hint=f"sagewai-ops snapshots show {header.id} --files",
            )
    if options.key_file and not includes_secrets(options):
        raise UsageError(
            "--install-key: needs secrets/, which is not restored",
            hint=f"--only {','.join(options.only)},secrets",
        )
    state = require_free_target(target, options)
    server = _server_part(reader, options, parts)
    conversion = None
    if server and options.to_sqlite:
        from sagewai_ops.restore.conversion import plan_conversion

        conversion = plan_conversion(server)
    require_target_unused(target, options)
    replaced = _replaced_paths(target.root, wanted.top_names, parts)
    if conversion and parts and replaced is not None and "db" not in replaced:
        replaced = (*replaced, PLACE)
    swap.refuse_mounts(target.root, replaced)
    # The holes of a sparse file are not known before it is written.
    converted_bytes = sum(table.bytes for table in server.tables) if server and conversion else 0
    require_free_bytes(target.root, wanted.dense_bytes + converted_bytes, option="--to DIR")
    return RestorePlan(
        snapshot_id=header.id,
        archive=archive,
        target=target.root,
        state=state,
        paths=replaced,
        files=wanted.files,
        size_bytes=wanted.size_bytes,
        schema_level=str(header.facts.get("schema_level", "")),
        key_custody=str(header.facts.get("key_custody", "")),
        key_fingerprint=str(header.facts.get("key_fingerprint", "")),
        sealed=facts.get("keys", {}).get("total", 0),
        has_database=bool(facts.get("database")),
        is_on_server=header.facts.get("engine") == POSTGRESQL,
        origin=str(header.facts.get("home", "")),
        application_version=str(header.facts.get("application_version", ""))[:64],
        revokes_sessions=options.revoke_sessions,
        rebinds_fleet=options.rebind_fleet,
        owner="" if options.same_owner else own_account().name,
        followed=wanted.followed,
        outside_links=wanted.outside_links,
        origin_state=origin,
        server=server,
        server_name=options.server.display if server and options.server else "",
        conversion=conversion,
        replica=plan_replica(reader, options, parts),
        warnings=(
            *warnings,
            *places.warnings(target),
            *_schema_warnings(facts),
            *companion_warnings(target.root, replaced, options.replica),
            *(_server_warnings(reader, server) if server or not parts else ()),
            *(_variable_warnings(target, options) if conversion else ()),
        ),
    )


def require_free_target(target: Home, options: RestoreOptions) -> TargetState:
    """Check that the target is empty or may be replaced; return its state.

    Raises:
        TargetBusyError: It is neither, or no home.
    """
    state = _state(target.root)
    is_free = options.if_empty and state != "absent" and has_only_directories(target.root)
    if state == "not empty" and not (options.replace or options.only or is_free):
        raise TargetBusyError(
            f"{target.root}: not empty",
            hint="replace it, the previous home is kept: --replace\nor restore elsewhere: --to DIR",
        )
    _refuse_snapshot_directory(target.root, state)
    return state


def storage_directory(target: Path, options: RestoreOptions) -> Path:
    """Return the directory in which a restore stores what it needs for its time.

    It is on the file system of the target, and writable if the target is.
    """
    if target.is_dir() and (options.only or not swap.can_swap_whole(target)):
        return target
    return nearest_existing(target.parent)


def require_target_unused(target: Home, options: RestoreOptions) -> None:
    """Check that no process has a file of the target open, and that its server has no session.

    The environment names the server of the home of the run, not that of any other target.

    Raises:
        TargetBusyError: It is in use.
        UsageError: Its tables are on a server that no variable names.
        OpsError: The server is not reachable, or refuses.
    """
    is_home = options.key_home is not None and options.key_home.root == target.root
    has_server = (is_home and _state(target.root) == "not empty") or bool(
        read_server_record(target.root)
    )
    environment = options.key_environment if has_server else {}
    require_home_unused(target, environment, target.root / DATABASE)


def _require_origin(
    reader: ArchiveReader, archive: Path, target: Home, options: RestoreOptions
) -> tuple[Origin, tuple[str, ...]]:
    """Return the origin of the snapshot, by the keys of the target and of the original home.

    Returns:
        (the origin; a warning if it is unknown although this home authenticates its snapshots).

    Raises:
        NotAuthenticError: It is forged, or not what the options require.
    """
    environment = options.key_environment
    keys = list(keys_of(target, environment, key_file=options.key_file))
    homes = [target]
    if options.key_home and options.key_home.root != target.root:
        keys += keys_of(options.key_home, {})
        homes.append(options.key_home)
    origin = require_origin(reader, archive, keys, authentic=options.require_authentic)
    existing = [home for home in homes if home.root.is_dir()]
    marks = [mark for home in existing if (mark := read_mark(home, archive.parent, environment))]
    if options.is_latest and not options.allow_rollback:
        for mark in marks:
            require_latest(reader.header, archive, origin, mark, keys)
    if not marks or origin.authenticity != NOT_AUTHENTICATED:
        return origin, ()
    # Of every one: a forged snapshot states any sequence, and may be named by its id.
    since = min(mark.since for mark in marks)
    more = f"and this home authenticates its snapshots since sequence {since}"
    origin = Origin(origin.authenticity, f"{origin.reason}, {more}")
    return origin, (f"snapshot: {origin.words}",)


def target_path(entry: Entry, places: MemberPaths, parts: tuple[str, ...]) -> str | None:
    """Return the path in the home of a member to restore; None for any other.

    Args:
        parts: Requested paths, restored with the directories above them. Empty for everything.
    """
    path = places.path_of(entry)
    if path is None or entry.type is EntryType.SUPERSEDED:
        return None
    if kind_of(path) is Kind.COMPANION:  # in snapshots of version 0.2.0 and older
        return None
    if not parts and is_within(path, LOST_AND_FOUND):  # of the volume that the home was
        return None
    if not parts or any(is_within(path, part) for part in parts):
        return path
    is_above = entry.type is EntryType.DIRECTORY and any(is_within(part, path) for part in parts)
    return path if is_above else None


def parse_parts(options: RestoreOptions) -> tuple[str, ...]:
    """Return the requested parts as paths relative to the home.

    Raises:
        UsageError: One leads out of the home.
    """
    parts = tuple(part.strip("/") for part in options.only)
    for part in parts:
        if not is_safe_path(part):
            raise UsageError(
                f"--only {part}: not a path inside a home",
                hint="name paths relative to the home: --only config,db",
            )
    return parts


def includes_secrets(options: RestoreOptions) -> bool:
    """Return whether the requested parts include the directory of the key."""
    parts = [part.strip("/").split("/", 1)[0] for part in options.only]
    return not parts or MASTER_KEY.split("/", 1)[0] in parts


def _require_known_schema(header: Mapping[str, Any]) -> None:
    level = str(header.get("schema_level", ""))
    if level and level not in revisions():
        raise SchemaAheadError(
            f"snapshot: database at revision {level:.80}, newer than this program",
            hint="install a newer sagewai-ops, or extract files: sagewai-ops snapshots extract",
        )


def _schema_warnings(facts: Mapping[str, Any]) -> Iterator[str]:
    if (facts.get("database") or {}).get("schema_state") in ("ahead", "unknown"):
        yield (
            "the database has columns unknown to this program, of a later Sagewai or your own: "
            "they are restored unchanged and were not examined"
        )


def _server_part(
    reader: ArchiveReader, options: RestoreOptions, parts: tuple[str, ...]
) -> ServerFacts | None:
    """Return the database of a server that is restored too; None for files alone.

    Raises:
        UsageError: It would be, and no URL is given.
    """
    found = read_server(reader.manifest)
    is_requested = not parts or not _DATABASES.isdisjoint(parts)
    if options.to_sqlite:
        if found is None:
            raise UsageError(
                f"--to-sqlite: snapshot {reader.header.id} has no database of a server",
                hint="sagewai-ops restore ...  # without --to-sqlite",
            )
        if not is_requested:
            raise UsageError(
                "--to-sqlite: needs db/, which is not restored",
                hint=f"--only {','.join(options.only)},db",
            )
        return found
    if found is None or not is_requested:
        return None
    if options.server is None:
        if options.requires_server:
            raise UsageError(
                f"snapshot {reader.header.id}: its database is of a PostgreSQL server, and no URL"
                " is given for it",
                hint="sagewai-ops restore ... --url-file FILE  # with the URL of a database\n"
                "sagewai-ops restore ... --to-sqlite  # to the SQLite file of the home\n"
                "sagewai-ops restore ... --without-database  # files alone",
            )
        return None
    return found


def _server_warnings(reader: ArchiveReader, restored: ServerFacts | None) -> Iterator[str]:
    """Yield what becomes of the database of a server."""
    header, server = reader.header, read_server(reader.manifest)
    if header.facts.get("without_database"):
        yield "the database was on a server and is not in the snapshot (--without-database)"
    if restored:
        if restored.level != HEAD:
            yield (
                f"the database is at revision {printable(restored.level) or 'none'}, not at {HEAD}:"
                " sagewai-ops db upgrade"
            )
        yield from (f"not in the snapshot: {item.text}" for item in restored.unstored)
        for name in restored.excluded:
            yield f"not in the snapshot: table {printable(name)} (--exclude-table)"
    elif server:
        yield (
            f"the database was on a server (PostgreSQL {printable(server.version)}, {server.rows}"
            f" rows in {len(server.tables)} tables) and is NOT restored:"
            f" sagewai-ops restore {header.id} --only db --url-file FILE"
        )


def _variable_warnings(target: Home, options: RestoreOptions) -> Iterator[str]:
    """Warn if the environment names a server, which Sagewai would use."""
    names = [name for name in VARIABLES if options.key_environment.get(name)]
    if isinstance(resolve(options.key_environment, target.database), PostgresUrl):
        yield (
            f"{' and '.join(names)}: names a server, which Sagewai would use, not the restored"
            f" database: unset {' '.join(names)}"
        )


@dataclass(slots=True)
class _Wanted:
    """The members to restore, summed up: they may be a million.

    Attributes:
        parts: Those of the requested parts that the snapshot contains.
        dense_bytes: Of the files without holes.
    """

    files: int = 0
    size_bytes: int = 0
    dense_bytes: int = 0
    parts: set[str] = field(default_factory=set)
    top_names: set[str] = field(default_factory=set)
    followed: dict[str, str] = field(default_factory=dict)
    outside_links: dict[str, str] = field(default_factory=dict)
    links: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        reader: ArchiveReader,
        places: MemberPaths,
        parts: tuple[str, ...],
        *,
        needs_names: bool,
    ) -> "_Wanted":
        """Sum up the members of an archive.

        Args:
            needs_names: Collect `top_names`.

        Raises:
            DamagedError: One is a file that no snapshot contains.
        """
        found = cls()
        origins = reader.manifest.facts.get("followed", {})
        for entry in reader.manifest.entries:
            path = target_path(entry, places, parts)
            if path is None:
                continue
            if kind_of(path) in _NEVER_ARCHIVED:
                raise DamagedError(
                    f"snapshot: contains {path[:200]}, which this program never archives",
                    hint="use another snapshot: sagewai-ops snapshots list",
                )
            found.parts.update(part for part in parts if is_within(path, part))
            if needs_names:
                found.top_names.add(path.split("/", 1)[0])
            found.files += entry.type is EntryType.FILE
            found.size_bytes += entry.size_bytes
            found.dense_bytes += 0 if entry.is_sparse else entry.size_bytes
            if entry.path in origins:
                found.followed[path] = origins[entry.path]
            if entry.is_outside:
                found.outside_links[path] = entry.target
            if entry.type is EntryType.LINK:
                found.links[path] = entry
        return found


def _state(root: Path) -> TargetState:
    if not os.path.lexists(root):
        return "absent"
    if not root.is_dir():
        raise TargetBusyError(f"{root}: not a directory", hint="restore elsewhere: --to DIR")
    return "not empty" if names_in(root) else "empty"


def _refuse_snapshot_directory(root: Path, state: str) -> None:
    """Refuse a snapshot directory as the target: the option of another command was meant."""
    if state != "not empty" or layout_of(root) != "empty":
        return
    if any(map(is_archive_name, os.listdir(root))):
        raise TargetBusyError(
            f"{root}: a snapshot directory, not a home", hint="name the home: --to DIR"
        )


def _replaced_paths(
    root: Path, top_names: set[str], parts: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return the paths to replace in the target; None to replace the whole directory."""
    if not parts or not root.is_dir():
        if swap.can_swap_whole(root):
            return None
        present = swap.entries_of(root) if root.is_dir() else set()
        return tuple(sorted(top_names | {MASTER_KEY.split("/", 1)[0]} | present))
    replaced: dict[str, None] = {}
    for part in parts:
        paths = replaced_database(root) if part == DATABASE else [_highest_missing(root, part)]
        replaced.update(dict.fromkeys(paths))
    # A directory includes the paths below it.
    return tuple(
        path for path in replaced if not any(path.startswith(other + "/") for other in replaced)
    )


def replaced_database(root: Path) -> list[str]:
    """Return the paths of a home that are replaced with its database."""
    directory, _, name = DATABASE.rpartition("/")
    own = {name, *(name + suffix for suffix in SIDECAR_SUFFIXES)}
    own |= {DISCARDED, COMPANION.rpartition("/")[2]}
    if not (root / directory).is_dir() or own.issuperset(os.listdir(root / directory)):
        # Its directory contains nothing else: replaced in one step, so that the database is never
        # next to the sidecars of the other, which SQLite would apply to it.
        return [directory]
    return [*(DATABASE + suffix for suffix in SIDECAR_SUFFIXES), COMPANION, DATABASE]


def _highest_missing(root: Path, part: str) -> str:
    path = ""
    for name in part.split("/"):
        path = f"{path}/{name}" if path else name
        if not os.path.lexists(root / path):
            break
    return path
