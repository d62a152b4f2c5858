"""What a restore would do: which members go where, and what of the target they take the place of.

Everything that can be known without extracting the archive is known here, so a dry run refuses
what the run would refuse. Nothing is written.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.manifest import Entry, EntryType, is_safe_path
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.errors import (
    DamagedError,
    NotFoundError,
    SchemaAheadError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs.free_space import require_free_bytes
from sagewai_ops.home.paths import (
    DATABASE,
    MASTER_KEY,
    SIDECAR_SUFFIXES,
    Home,
    Kind,
    kind_of,
    layout_of,
)
from sagewai_ops.schema.revision_graph import revisions
from sagewai_ops.snapshots.catalog import is_archive_name
from sagewai_ops.snapshots.member_paths import MemberPaths
from sagewai_ops.swap import swap

# What no snapshot carries; in one that does, it would be played into the restored database or
# taken for this program's own.
_NEVER_CARRIED = (Kind.SIDECAR, Kind.LOCK, Kind.OWN)


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What a restore is asked to do.

    Attributes:
        replace: Put aside what the target holds.
        only: Parts of the home or paths in it; empty for all of it.
        key_file: A master key to use, which becomes the restored home's own.
        without_key: Restore even if nothing opens the sealed values.
        revoke_sessions: End the sessions and API tokens that would be valid again.
        rebind_fleet: Give the fleet's rows to the organisation id of the target's path.
        key_home: Another home whose key may be used, such as the one the snapshot is of.
    """

    decryption: Decryption | None = None
    replace: bool = False
    only: tuple[str, ...] = ()
    key_file: Path | None = None
    without_key: bool = False
    revoke_sessions: bool = False
    rebind_fleet: bool = False
    wait_seconds: float = 0.0
    key_home: Home | None = None
    key_environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore would do; `restore` makes the same and then does it.

    Attributes:
        target: The home that comes to be.
        state: Of the target: `absent`, `empty` or `not empty`.
        paths: What is exchanged in it; None for the whole.
        sealed: How many sealed values the snapshot holds.
        origin: The path of the home that it was taken of.
        revokes_sessions: Whether sessions and API tokens end.
        rebinds_fleet: Whether the fleet's rows get the organisation id of the target's path.
    """

    snapshot_id: str
    archive: Path
    target: Path
    state: str
    paths: tuple[str, ...] | None
    files: int
    size_bytes: int
    schema_level: str
    key_custody: str
    key_fingerprint: str
    sealed: int
    origin: str
    revokes_sessions: bool
    rebinds_fleet: bool
    warnings: tuple[str, ...]


def plan_restore(archive: Path, target: Home, options: RestoreOptions) -> RestorePlan:
    """Read the manifest and look at the target; nothing is written.

    Raises:
        As `restore.restore`, for everything that is known before the archive is extracted.
    """
    with open_archive(archive, options.decryption) as reader:
        swap.require_settled(target.root)
        return build_plan(reader, archive, target, options, MemberPaths(reader.manifest))


def build_plan(
    reader: ArchiveReader, archive: Path, target: Home, options: RestoreOptions, places: MemberPaths
) -> RestorePlan:
    """Make the plan for an archive that is open."""
    facts, header = reader.manifest.facts, reader.header
    _refuse_schema(header.facts)
    parts = parse_parts(options)
    wanted = [
        (path, entry)
        for entry in reader.manifest.entries
        if (path := target_path(entry, places, parts)) is not None
    ]
    _refuse_foreign(path for path, _entry in wanted)
    for part in parts:
        if not any(_is_within(path, part) for path, _entry in wanted):
            raise NotFoundError(
                f"snapshot {header.id}: nothing in it is {part}",
                hint=f"sagewai-ops snapshots show {header.id} --files",
            )
    if options.key_file and not includes_secrets(options):
        raise UsageError(
            "--install-key: a key is installed in secrets/, which is not restored",
            hint=f"add it: --only {','.join(options.only)},secrets",
        )
    state = _state(target.root)
    if state == "not empty" and not (options.replace or options.only):
        raise TargetBusyError(
            f"{target.root}: not empty",
            hint="put it aside and restore in its place: --replace\nor restore beside it: --to DIR",
        )
    _refuse_snapshots(target.root, state)
    require_unused(target.root, target.root / DATABASE)
    exchanged = _exchanged(target.root, [path for path, _entry in wanted], parts)
    swap.refuse_mounts(target.root, exchanged)
    # How much of a sparse file is holes is not known before it is written.
    needed = sum(entry.size_bytes for _path, entry in wanted if not entry.is_sparse)
    require_free_bytes(target.root, needed, option="--to DIR")
    return RestorePlan(
        snapshot_id=header.id,
        archive=archive,
        target=target.root,
        state=state,
        paths=exchanged,
        files=sum(entry.type is EntryType.FILE for _path, entry in wanted),
        size_bytes=sum(entry.size_bytes for _path, entry in wanted),
        schema_level=str(header.facts.get("schema_level", "")),
        key_custody=str(header.facts.get("key_custody", "")),
        key_fingerprint=str(header.facts.get("key_fingerprint", "")),
        sealed=as_int(as_mapping(facts.get("keys")).get("total"), 0),
        origin=str(header.facts.get("home", "")),
        revokes_sessions=options.revoke_sessions,
        rebinds_fleet=options.rebind_fleet,
        warnings=(*places.warnings(target), *_schema_warnings(facts)),
    )


def target_path(entry: Entry, places: MemberPaths, parts: tuple[str, ...]) -> str | None:
    """Give the path in the home of a member that is to be restored; None for any other.

    Args:
        parts: Paths that are asked for; the directories above them come along. Empty for
            everything.
    """
    path = places.path_of(entry)
    if path is None or entry.type is EntryType.SUPERSEDED:
        return None
    if not parts or any(_is_within(path, part) for part in parts):
        return path
    is_above = entry.type is EntryType.DIRECTORY and any(_is_within(part, path) for part in parts)
    return path if is_above else None


def parse_parts(options: RestoreOptions) -> tuple[str, ...]:
    """Give the parts that are asked for, as paths relative to the home.

    Raises:
        UsageError: One leads elsewhere.
    """
    parts = tuple(part.strip("/") for part in options.only)
    for part in parts:
        if not is_safe_path(part):
            raise UsageError(
                f"--only {part}: not a path inside a home",
                hint="name parts by their place in the home: --only config,db",
            )
    return parts


def includes_secrets(options: RestoreOptions) -> bool:
    """Tell whether what is asked for includes the directory of the key."""
    parts = [part.strip("/").split("/", 1)[0] for part in options.only]
    return not parts or MASTER_KEY.split("/", 1)[0] in parts


def as_mapping(value: object) -> Mapping[str, Any]:
    """Take a JSON object of an archive that may lie; anything else is an empty one."""
    return value if isinstance(value, dict) else {}


def as_int(value: object, default: int) -> int:
    """Take a whole number of an archive that may lie."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _is_within(path: str, part: str) -> bool:
    return path == part or path.startswith(part + "/")


def _refuse_schema(header: Mapping[str, Any]) -> None:
    level = str(header.get("schema_level", ""))
    if level and level not in revisions():
        raise SchemaAheadError(
            f"snapshot: its database is at {level:.80}, newer than this program",
            hint="install a newer sagewai-ops, or take files out: sagewai-ops snapshots extract",
        )


def _schema_warnings(facts: Mapping[str, Any]) -> Iterator[str]:
    """Say what a database has that this program does not know, and that it took all the same."""
    if as_mapping(facts.get("database")).get("schema_state") in ("ahead", "unknown"):
        yield (
            "its database has columns that this program does not know, of a later Sagewai or of "
            "your own: they come back as they are, and nobody looked into them"
        )


def _refuse_foreign(paths: Iterable[str]) -> None:
    for path in paths:
        if kind_of(path) in _NEVER_CARRIED:
            raise DamagedError(
                f"snapshot: it carries {path[:200]}, which none of this program does",
                hint="use another snapshot: sagewai-ops snapshots list",
            )


def _state(root: Path) -> str:
    if not os.path.lexists(root):
        return "absent"
    if not root.is_dir():
        raise TargetBusyError(f"{root}: not a directory", hint="restore elsewhere: --to DIR")
    return "not empty" if os.listdir(root) else "empty"


def _refuse_snapshots(root: Path, state: str) -> None:
    """Refuse a directory of snapshots: `--to` of a backup was meant, or its variable is set."""
    if state != "not empty" or layout_of(root) != "empty":
        return
    if any(map(is_archive_name, os.listdir(root))):
        raise TargetBusyError(
            f"{root}: holds snapshots and no home", hint="name the home: --to DIR"
        )


def _exchanged(root: Path, wanted: list[str], parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """List what is exchanged in the target: None for the whole of it."""
    if not root.is_dir():
        return None
    if not parts:
        if swap.can_swap_whole(root):
            return None
        fresh = {path.split("/", 1)[0] for path in wanted}
        return tuple(sorted(fresh | {MASTER_KEY.split("/", 1)[0]} | swap.entries_of(root)))
    exchanged: dict[str, None] = {}
    for part in parts:
        exchanged.update(dict.fromkeys(_exchanged_for(root, part)))
    # Of two, one inside the other, the outer one says it all.
    return tuple(
        path for path in exchanged if not any(path.startswith(other + "/") for other in exchanged)
    )


def _exchanged_for(root: Path, part: str) -> list[str]:
    if part != DATABASE:
        return [_highest_missing(root, part)]
    directory, _, name = DATABASE.rpartition("/")
    own = {name, *(name + suffix for suffix in SIDECAR_SUFFIXES)}
    if not (root / directory).is_dir() or own.issuperset(os.listdir(root / directory)):
        # Its directory holds nothing else: exchanged in one step, the database is never seen beside
        # the sidecars of the other, which SQLite would play into it.
        return [directory]
    return [*(DATABASE + suffix for suffix in SIDECAR_SUFFIXES), DATABASE]


def _highest_missing(root: Path, part: str) -> str:
    path = ""
    for name in part.split("/"):
        path = f"{path}/{name}" if path else name
        if not os.path.lexists(root / path):
            break
    return path
