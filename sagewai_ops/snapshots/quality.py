"""Whether a snapshot is complete, sound and plausible: only one that is all three is good.

A snapshot is complete if nothing that belongs in it was omitted, sound if its database, documents
and keys are whole, and plausible if nothing of the newest good snapshot of the home is missing or
shrank by more than half. Manifest and metadata file record the three. What an older version did not
record is unknown, and counts as good.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from typing import Any

from sagewai_ops.home.state_files import document_at
from sagewai_ops.records import dataclass
from sagewai_ops.text import size

PROPERTIES = ("complete", "sound", "plausible")
SQLITE = "sqlite"  # the engine of snapshots that name none
NO_ENGINE = "none"  # of snapshots without the database of a server
_BY_RULE_ALONE = ("database", "integrity")
_DATA = "data/"
# Files that Sagewai makes again, or that no later process reads.
_VOLATILE = ("data/blueprint_cache/", "data/scratch/", "data/workers/")


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a snapshot is not complete or not sound.

    Attributes:
        rule: Its kind, such as `unreadable` or `foreign-keys`.
        name: The path in the home, or the table.
        text: For people.
    """

    rule: str
    name: str
    text: str

    def is_accepted(self, accepted: Collection[str]) -> bool:
        """Return whether its kind, or a pattern of its name, is among those that the user accepts.

        Damage of the database has to be named by its kind: its path would accept too much.
        """
        by_name = self.rule not in _BY_RULE_ALONE
        return self.rule in accepted or (
            by_name and any(fnmatchcase(self.name, pattern) for pattern in accepted)
        )


@dataclass(frozen=True, slots=True)
class QualityFacts:
    """The record of a `Quality` in a manifest and in JSON; `compared_with` is "" without one."""

    complete: bool
    sound: bool
    plausible: bool
    omitted: tuple[Cause, ...]
    damaged: tuple[Cause, ...]
    accepted: tuple[Cause, ...]
    changes: tuple[str, ...]
    compared_with: str
    change_accepted: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """The three properties of a snapshot, with the reasons.

    Attributes:
        omitted: Why it is not complete.
        damaged: Why it is not sound.
        accepted: Causes of both kinds that the user accepts.
        changes: What is missing or shrank since `compared_with`.
        compared_with: The id of the newest good snapshot before it; "" without one.
        is_change_accepted: Whether the user intends the changes.
    """

    omitted: tuple[Cause, ...] = ()
    damaged: tuple[Cause, ...] = ()
    accepted: tuple[Cause, ...] = ()
    changes: tuple[str, ...] = ()
    compared_with: str = ""
    is_change_accepted: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether nothing that belongs in it was omitted."""
        return not self.omitted

    @property
    def is_sound(self) -> bool:
        """Whether its database, documents and keys are whole."""
        return not self.damaged

    @property
    def is_plausible(self) -> bool:
        """Whether nothing is missing or shrank, or the user intends it."""
        return not self.changes or self.is_change_accepted

    @property
    def is_good(self) -> bool:
        """Whether it has all three properties."""
        return self.is_complete and self.is_sound and self.is_plausible

    @property
    def properties(self) -> dict[str, bool]:
        """The three properties, by name."""
        values = (self.is_complete, self.is_sound, self.is_plausible)
        return dict(zip(PROPERTIES, values, strict=True))

    @property
    def card_facts(self) -> dict[str, Any]:
        """The record for a metadata file, without the names of files."""
        accepted = {"change_accepted": True} if self.is_change_accepted else {}
        compared = {"compared_with": self.compared_with} if self.compared_with else {}
        return {**self.properties, **compared, **accepted}

    @property
    def facts(self) -> QualityFacts:
        """The record for a manifest."""
        return QualityFacts(
            **self.properties,
            omitted=self.omitted,
            damaged=self.damaged,
            accepted=self.accepted,
            changes=self.changes,
            compared_with=self.compared_with,
            change_accepted=self.is_change_accepted,
        )


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a snapshot in numbers, to compare it with a later one.

    Attributes:
        size_bytes: Of all its files.
        database_bytes: 0 without a database, or if unknown.
        tables: Rows of each.
        documents: Name -> bytes.
        data_files: Files below `data/`, without those that Sagewai makes again.
        key: The fingerprint of its master key; "" without one.
    """

    size_bytes: int = 0
    engine: str = SQLITE
    database_bytes: int = 0
    tables: Mapping[str, int] = field(default_factory=dict)
    documents: Mapping[str, int] = field(default_factory=dict)
    data_files: int = 0
    key: str = ""

    def card_facts(self, *, is_encrypted: bool) -> dict[str, Any]:
        """Return the record for a metadata file, which has size, engine and key already.

        Args:
            is_encrypted: Record digests of the tables' names.
        """
        name_of = _digest if is_encrypted else str
        return {
            "database_bytes": self.database_bytes,
            "tables": {name_of(table): rows for table, rows in self.tables.items()},
            "documents": dict(self.documents),
            "data_files": self.data_files,
        }


def assess(
    omitted: Iterable[Cause],
    damaged: Iterable[Cause],
    content: Content,
    reference: Content | None,
    *,
    compared_with: str = "",
    accepted: Collection[str] = (),
    accepts_change: bool = False,
) -> Quality:
    """Return the properties of a snapshot.

    Args:
        content: Of the snapshot.
        reference: Of the newest good snapshot of the home; None without one.
        compared_with: The id of that one.
        accepted: Rules and names of causes that the user accepts.
        accepts_change: Whether the user intends what is missing.
    """
    missing, broken = tuple(omitted), tuple(damaged)
    changes = tuple(compare(reference, content)) if reference else ()
    return Quality(
        omitted=tuple(item for item in missing if not item.is_accepted(accepted)),
        damaged=tuple(item for item in broken if not item.is_accepted(accepted)),
        accepted=tuple(item for item in (*missing, *broken) if item.is_accepted(accepted)),
        changes=changes,
        compared_with=compared_with,
        is_change_accepted=bool(changes) and accepts_change,
    )


@dataclass(slots=True)
class ContentCounter:
    """Count the files of a snapshot, one at a time: a list of them would take much memory."""

    size_bytes: int = 0
    documents: dict[str, int] = field(default_factory=dict)
    data_files: int = 0

    def add(self, path: str, size_bytes: int) -> None:
        """Count a file.

        Args:
            path: In the snapshot.
        """
        self.size_bytes += size_bytes
        if path.startswith(_DATA):
            self.data_files += not path.startswith(_VOLATILE)
        elif name := document_at(path):
            self.documents[name] = max(size_bytes, self.documents.get(name, 0))

    def content(
        self, database: Mapping[str, Any] | None, *, engine: str = SQLITE, key: str = ""
    ) -> Content:
        """Return the content of the snapshot.

        Args:
            database: The facts of its database in the manifest; None without one.
            key: The fingerprint of its master key.
        """
        facts = database or {}
        return Content(
            size_bytes=self.size_bytes,
            engine=engine,
            database_bytes=facts.get("page_size", 0) * facts.get("page_count", 0),
            tables=facts.get("tables", {}),
            documents=self.documents,
            data_files=self.data_files,
            key=key,
        )


def engine_of(facts: Mapping[str, Any]) -> str:
    """Return the engine of the database in a snapshot, from its header or its metadata file.

    One without the database of its server is of no engine: it replaces no snapshot that has it.
    """
    if facts.get("without_database") is True:
        return NO_ENGINE
    return str(facts.get("engine") or SQLITE)


def recorded_content(card: Mapping[str, Any]) -> Content:
    """Return the content that a metadata file records; what it does not record is 0."""
    facts = card.get("content")
    counts = facts if isinstance(facts, dict) else {}
    return Content(
        size_bytes=_number(card.get("content_bytes")),
        engine=engine_of(card),
        database_bytes=_number(counts.get("database_bytes")),
        tables=_numbers(counts.get("tables")),
        documents=_numbers(counts.get("documents")),
        data_files=_number(counts.get("data_files")),
        key=str(card.get("key_fingerprint") or ""),
    )


def compare(before: Content, after: Content) -> Iterator[str]:
    """Yield what is missing, or shrank by more than half, one phrase each.

    Databases of two engines are not compared: retention keeps the newest snapshot of each.
    """
    if before.engine == after.engine:
        yield from _compare_tables(before, after)
    for name, size_bytes in before.documents.items():
        present = after.documents.get(name)
        if present is None:
            yield f"{name}: missing, had {size(size_bytes)}"
        elif _is_loss(size_bytes, present):
            yield f"{name}: {size(present)}, had {size(size_bytes)}"
    if before.key and not after.key:
        yield f"master key: missing, was {before.key}"
    if before.data_files and not after.data_files:
        yield f"data: no files, had {before.data_files}"
    # A database that was compacted has all of its rows.
    rest_before = before.size_bytes - before.database_bytes
    rest_after = after.size_bytes - after.database_bytes
    if _is_loss(before.size_bytes, after.size_bytes) and _is_loss(rest_before, rest_after):
        yield f"content: {size(after.size_bytes)}, had {size(before.size_bytes)}"


def _compare_tables(before: Content, after: Content) -> Iterator[str]:
    if before.tables and not after.tables:
        rows = sum(before.tables.values())
        yield f"database: missing, had {rows} rows in {len(before.tables)} tables"
        return
    names = {_digest(table): table for table in after.tables}
    for recorded, rows in before.tables.items():
        table = names.get(recorded, recorded)
        present = after.tables.get(table)
        if rows and present is None:
            yield f"table {table}: missing, had {rows} rows"
        elif present is not None and _is_loss(rows, present):
            yield f"table {table}: {present} rows, had {rows}"


def _digest(table: str) -> str:
    """Return the digest of a table's name, which no name of Sagewai's begins like."""
    text = f"sagewai-ops table v1\0{table}".encode("utf-8", "surrogateescape")
    return "#" + hashlib.sha256(text).hexdigest()[:16]


def _is_loss(before: int, after: int) -> bool:
    """Return whether more than half was lost."""
    return after * 2 < before


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _numbers(value: object) -> dict[str, int]:
    found = value if isinstance(value, dict) else {}
    return {name: _number(count) for name, count in found.items() if isinstance(name, str)}
