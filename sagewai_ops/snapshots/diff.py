"""What differs between two snapshots, from their manifests alone: no content is read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.manifest import HEADER_NAME, Entry, EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader

# What a manifest or a header says once for the whole snapshot, and how it is called here.
_HEADER_FACTS = ("home", "home_id", "host", "key_custody", "key_fingerprint", "schema_level")


@dataclass(frozen=True, slots=True)
class FileChange:
    """A member that is in both and differs.

    Attributes:
        what: Of `content`, `mode`, `owner`, `type` and `target`, what differs.
        sizes: Bytes before and after.
    """

    path: str
    what: tuple[str, ...]
    sizes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TableChange:
    """A table whose number of rows differs; None where there is no such table."""

    table: str
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """What is in the second snapshot and not in the first, and the reverse.

    Attributes:
        added: Member -> bytes.
        removed: The same.
        unchanged: How many members are the same in both.
        facts: What is said of the whole, such as `schema_level` -> before and after.
        keys: Fingerprint -> how many sealed values it opens, before and after.
    """

    first: str
    second: str
    added: Mapping[str, int]
    removed: Mapping[str, int]
    changed: tuple[FileChange, ...]
    unchanged: int
    tables: tuple[TableChange, ...]
    facts: Mapping[str, tuple[Any, Any]]
    keys: Mapping[str, tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        """Whether the two hold the same."""
        return not (
            self.added or self.removed or self.changed or self.tables or self.facts or self.keys
        )


def compare_snapshots(first: Path, second: Path, decryption: Decryption | None) -> SnapshotDiff:
    """Compare two snapshots by their manifests.

    Raises:
        NotFoundError: There is no such file.
        KeyMissingError, DamagedError, SchemaAheadError: About one of the two.
    """
    with open_archive(first, decryption) as before, open_archive(second, decryption) as after:
        return _compare(before, after)


def _compare(before: ArchiveReader, after: ArchiveReader) -> SnapshotDiff:
    old, new = _members(before), _members(after)
    changed = tuple(
        FileChange(path, what, (old[path].size_bytes, new[path].size_bytes))
        for path in sorted(old.keys() & new.keys())
        if (what := tuple(_changes(old[path], new[path])))
    )
    return SnapshotDiff(
        first=before.header.id,
        second=after.header.id,
        added={path: new[path].size_bytes for path in sorted(new.keys() - old.keys())},
        removed={path: old[path].size_bytes for path in sorted(old.keys() - new.keys())},
        changed=changed,
        unchanged=len(old.keys() & new.keys()) - len(changed),
        tables=tuple(_tables(_database(before).get("tables"), _database(after).get("tables"))),
        facts={
            name: (one, other)
            for name in _HEADER_FACTS
            if (one := before.header.facts.get(name)) != (other := after.header.facts.get(name))
        },
        keys=dict(_keys(before, after)),
    )


def _members(reader: ArchiveReader) -> dict[str, Entry]:
    return {
        entry.path: entry
        for entry in reader.manifest.entries
        if entry.type is not EntryType.SUPERSEDED and entry.path != HEADER_NAME
    }


def _changes(old: Entry, new: Entry) -> Iterator[str]:
    """Name what differs; times do not count, a file that was only touched is the same."""
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


def _database(reader: ArchiveReader) -> Mapping[str, Any]:
    found = reader.manifest.facts.get("database")
    return found if isinstance(found, dict) else {}


def _tables(old: Any, new: Any) -> Iterator[TableChange]:
    before, after = _counts(old), _counts(new)
    for table in sorted(before.keys() | after.keys()):
        if before.get(table) != after.get(table):
            yield TableChange(table, before.get(table), after.get(table))


def _keys(before: ArchiveReader, after: ArchiveReader) -> Iterator[tuple[str, tuple[int, int]]]:
    old, new = _by_key(before), _by_key(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, (old.get(name, 0), new.get(name, 0))


def _by_key(reader: ArchiveReader) -> dict[str, int]:
    """Count the sealed values that each key opens."""
    keys = reader.manifest.facts.get("keys")
    rows = keys.get("by_key") if isinstance(keys, dict) else None
    found: dict[str, int] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("values"), int):
            name = str(row.get("fingerprint"))
            found[name] = found.get(name, 0) + row["values"]
    return found


def _counts(found: Any) -> dict[str, int]:
    items = found.items() if isinstance(found, dict) else ()
    return {str(name): count for name, count in items if isinstance(count, int)}
