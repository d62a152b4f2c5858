"""The record of a PostgreSQL database in a snapshot: `postgres` in the manifest, docs/format.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, replace
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

from sagewai_ops.archive.manifest import Entry, Manifest
from sagewai_ops.errors import DamagedError
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.member_paths import SERVER_DIRECTORY, is_within

Engine: TypeAlias = Literal["sqlite", "postgresql"]
SQLITE: Engine = "sqlite"
POSTGRESQL: Engine = "postgresql"


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table in a snapshot.

    Attributes:
        columns: Of its rows, in order; columns that the server computes are not among them.
        bytes: Of the text of its rows.
        sha256: Of that text, all members joined.
        stem: The members are `postgres/<stem>.copy.0001` and so on.
        members: How many.
    """

    schema: str
    name: str
    columns: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str
    stem: str
    members: int

    @property
    def place(self) -> str:
        """Schema and name."""
        return f"{self.schema}.{self.name}"

    @property
    def paths(self) -> Iterator[str]:
        """The members, in order."""
        for number in range(1, self.members + 1):
            yield f"{SERVER_DIRECTORY}/{self.stem}.copy.{number:04}"


@dataclass(frozen=True, slots=True)
class StoredSequence:
    """A sequence in a snapshot, and its value."""

    schema: str
    name: str
    last_value: int
    is_called: bool


@dataclass(frozen=True, slots=True)
class UnstoredObject:
    """An object of the database that a snapshot does not contain, or not as it is.

    Attributes:
        kind: Such as `view` or `trigger`.
        is_data: It has rows, which the snapshot does not contain.
    """

    kind: str
    name: str
    reason: str
    is_data: bool

    @property
    def text(self) -> str:
        """For people."""
        return f"server: {self.kind} {self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The database of a server in a snapshot.

    Attributes:
        schema: The one of Sagewai's tables, the only one that a snapshot contains.
        revision: The rows of `alembic_version`.
        encoding: Of the database.
        text_encoding: Of the members.
        lsn: Position in the write-ahead log; "" if unknown.
        extensions: Name -> version.
        excluded: Tables that `--exclude-table` omitted.
        moments: UTC, of the reads: `server`, `sqlite`, `documents`, `files`.
        distance_ms: Between the server's snapshot and the reading of the documents.
    """

    version: str
    database: str
    schema: str
    revision: tuple[str, ...]
    encoding: str
    text_encoding: str
    collation: str
    ctype: str
    standby: bool
    lsn: str
    extensions: Mapping[str, str]
    tables: tuple[StoredTable, ...]
    sequences: tuple[StoredSequence, ...]
    excluded: tuple[str, ...]
    unstored: tuple[UnstoredObject, ...]
    moments: Mapping[str, str] = field(default_factory=dict)
    distance_ms: int = 0

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.tables)

    @property
    def level(self) -> str:
        """The revision for the header; "" without one."""
        return self.revision[0] if self.revision else ""

    def with_moments(self, moments: Mapping[str, float]) -> ServerFacts:
        """Return the record with the times of the reads, in seconds since 1970."""
        distance = moments["documents"] - moments["server"]
        in_order = sorted(moments.items(), key=lambda item: item[1])
        return replace(
            self,
            moments={
                name: datetime.fromtimestamp(moment, timezone.utc).isoformat(
                    timespec="milliseconds"
                )
                for name, moment in in_order
            },
            distance_ms=round(distance * 1000),
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """The record for a manifest."""
        return asdict(self)


def read_server(manifest: Manifest) -> ServerFacts | None:
    """Return the record of a manifest; None without a server's database.

    Raises:
        DamagedError: It lists more members than the manifest.
    """
    import msgspec

    recorded = manifest.facts.get("postgres")
    if not recorded:
        return None
    facts = msgspec.convert(recorded, ServerFacts)
    if sum(table.members for table in facts.tables) > len(manifest.entries):
        raise DamagedError("manifest.json: field postgres: more members than entries")
    return facts


def counted_database(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return rows and size of the database that Sagewai uses, as `ContentCounter` needs them.

    Args:
        facts: Of a manifest.
    """
    if "postgres" not in facts:
        return facts.get("database")
    tables = (facts["postgres"] or {}).get("tables", ())
    return {
        "tables": {f"{table['schema']}.{table['name']}": table["rows"] for table in tables},
        "page_size": 1,
        "page_count": sum(table["bytes"] for table in tables),
    }


def is_server_member(manifest: Manifest, entry: Entry) -> bool:
    """Return whether an entry belongs to the database of a server, not to the home."""
    return bool(manifest.facts.get("postgres")) and is_within(entry.path, SERVER_DIRECTORY)
