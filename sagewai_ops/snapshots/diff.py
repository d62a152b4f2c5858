"""Compare two snapshots by their manifests; no content is read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import HEADER_NAME, Entry, EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.authenticity import require_origin
from sagewai_ops.snapshots.member_paths import SERVER_DIRECTORY
from sagewai_ops.snapshots.server_database import SQLITE, read_server

_HEADER_FACTS = ("home", "home_id", "host", "key_custody", "key_fingerprint", "schema_level")
Attribute: TypeAlias = Literal["content", "mode", "owner", "type", "target"]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A member that differs between the two.

    Attributes:
        what: The attributes that differ.
    """

    path: str
    what: tuple[Attribute, ...]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class TableChange:
    """A table whose number of rows differs; None where the table does not exist."""

    table: str
    rows_before: int | None
    rows_after: int | None


@dataclass(frozen=True, slots=True)
class FactChange:
    """A property of the whole snapshot that differs; None where it is missing."""

    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key that opens another number of encrypted values."""

    values_before: int
    values_after: int


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """The differences of two snapshots.

    Attributes:
        first: Id of the older one.
        same: Whether the two are equal.
        added: Member -> bytes.
        removed: Member -> bytes.
        unchanged: Number of equal members.
        facts: By the name of the property, such as `schema_level`.
        keys: By fingerprint.
    """

    first: str
    second: str
    same: bool
    added: Mapping[str, int]
    removed: Mapping[str, int]
    changed: tuple[FileChange, ...]
    unchanged: int
    tables: tuple[TableChange, ...]
    facts: Mapping[str, FactChange]
    keys: Mapping[str, KeyChange]


def compare_snapshots(
    first: Path, second: Path, decryption: Decryption | None, keys: Sequence[AuthenticationKey] = ()
) -> SnapshotDiff:
    """Compare two snapshots by their manifests.

    Args:
        keys: Show the origin of the snapshots.

    Raises:
        NotFoundError: No such file.
        KeyMissingError, DamagedError, SchemaAheadError: One of the two cannot be read.
    """
    with open_archive(first, decryption) as before, open_archive(second, decryption) as after:
        require_origin(before, first, keys)
        require_origin(after, second, keys)
        return _compare(before, after)


def _compare(before: ArchiveReader, after: ArchiveReader) -> SnapshotDiff:
    old, new = _members(before), _members(after)
    changed = tuple(
        FileChange(path, attributes, old[path].size_bytes, new[path].size_bytes)
        for path in sorted(old.keys() & new.keys())
        if (attributes := tuple(_changed_attributes(old[path], new[path])))
    )
    tables = _changed_counts(*(_rows_by_table(reader) for reader in (before, after)))
    keys = _changed_counts(*(_values_by_key(reader) for reader in (before, after)))
    added = {path: new[path].size_bytes for path in sorted(new.keys() - old.keys())}
    removed = {path: old[path].size_bytes for path in sorted(old.keys() - new.keys())}
    facts = {
        name: FactChange(first, second)
        for name in _HEADER_FACTS
        if (first := before.header.facts.get(name)) != (second := after.header.facts.get(name))
    } | _changed_engine(before, after)
    return SnapshotDiff(
        first=before.header.id,
        second=after.header.id,
        same=not (added or removed or changed or tables or facts or keys),
        added=added,
        removed=removed,
        changed=changed,
        unchanged=len(old.keys() & new.keys()) - len(changed),
        tables=tuple(TableChange(table, *counts) for table, counts in tables.items()),
        facts=facts,
        keys={
            key: KeyChange(old_count or 0, count or 0) for key, (old_count, count) in keys.items()
        },
    )


def _changed_engine(before: ArchiveReader, after: ArchiveReader) -> dict[str, FactChange]:
    """Return the changed properties of the database; a file has no version of its own."""
    facts = [_engine_facts(reader) for reader in (before, after)]
    return {
        name: FactChange(facts[0].get(name), facts[1].get(name))
        for name in sorted(facts[0].keys() | facts[1].keys())
        if facts[0].get(name) != facts[1].get(name)
    }


def _engine_facts(reader: ArchiveReader) -> dict[str, str]:
    facts = {"engine": str(reader.header.facts.get("engine", SQLITE))}
    if reader.header.facts.get("without_database"):
        facts["database"] = "omitted"
    server = read_server(reader.manifest)
    if server:
        facts |= {"server": server.version, "encoding": server.encoding, "schema": server.schema}
    return facts


def _members(reader: ArchiveReader) -> dict[str, Entry]:
    """Return the members by path; of a table on a server, one for all of its rows."""
    members = {
        entry.path: entry
        for entry in reader.manifest.entries
        if entry.type is not EntryType.SUPERSEDED and entry.path != HEADER_NAME
    }
    server = read_server(reader.manifest)
    for table in server.tables if server else ():
        for path in table.paths:
            members.pop(path, None)
        path = f"{SERVER_DIRECTORY}/{table.stem}"
        content = bytes.fromhex(table.sha256)
        members[path] = Entry(
            path, EntryType.FILE, 0o600, 0, size_bytes=table.bytes, sha256=content
        )
    return members


def _changed_attributes(old: Entry, new: Entry) -> Iterator[Attribute]:
    """Yield the attributes that differ, except times."""
    if old.type is not new.type:
        yield "type"
        return
    if old.sha256 != new.sha256:
        yield "content"
    if old.target != new.target:
        yield "target"
    if old.mode != new.mode:
        yield "mode"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner"


def _changed_counts(
    old: Mapping[str, int], new: Mapping[str, int]
) -> dict[str, tuple[int | None, int | None]]:
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _rows_by_table(reader: ArchiveReader) -> dict[str, int]:
    server = read_server(reader.manifest)
    return {
        **(reader.manifest.facts.get("database") or {}).get("tables", {}),
        **{table.place: table.rows for table in (server.tables if server else ())},
    }


def _values_by_key(reader: ArchiveReader) -> dict[str, int]:
    """Count the encrypted values that each key opens."""
    found: Counter[str] = Counter()
    for row in reader.manifest.facts.get("keys", {}).get("by_key", ()):
        found[row["fingerprint"]] += row["values"]
    return found
