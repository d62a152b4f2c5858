"""Audit chains: every event contains its own hash and that of the previous event.

The hash is SHA-256 over the previous hash and a canonical JSON text of the event. It covers
`metadata` as Python parses it, and jsonb writes some numbers differently (1e22, 1e16, -0.0): an
event with such a number verifies on SQLite and no longer on PostgreSQL. This also affects events
that Sagewai itself writes to PostgreSQL; here each is detected and reported.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sagewai_ops.database.sqlite.read_transaction import quoted, text_of
from sagewai_ops.export.compare.normalise import NULL, unescaped
from sagewai_ops.export.convert.value import RefusedError, jsonb

if TYPE_CHECKING:
    from sagewai_ops.export.mapping.plan import PlannedTable

AUDIT_TABLE = "audit_event"
CHANGED = "jsonb changes a number that its hash covers"
COVERED = (
    "org_id",
    "project_id",
    "actor_user_id",
    "action",
    "target_type",
    "target_id",
    "seq",
    "metadata",
    "created_at",
)
READ = (*COVERED, "prev_hash", "hash", "id")
_COLUMNS = ", ".join(map(quoted, READ))
_KEYS_KEPT = 100
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(?:\+00(?::?00)?|Z)?")
# Documents whose numbers jsonb may write differently: every such document, and some others.
_SUSPICIOUS = "metadata GLOB '*[0-9][eE][-+0-9]*' OR metadata GLOB '*-0*'"
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def event_hash(previous: str | None, event: dict[str, Any]) -> str:
    """Compute an event's hash.

    Args:
        previous: The hash of the previous event in its chain; None for the first.
        event: The columns of `COVERED`, `metadata` parsed, `created_at` with +00:00.
    """
    text = (previous or "") + _canonical(event)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AuditTrail:
    """Verify the events read back from the target, and list those that broke during the export.

    An event that does not verify in the home either was broken before; it is counted separately.

    Args:
        source: The frozen copy, with the rows of the home before any repair.
        table: The columns sent; if one that the hash covers is missing, nothing is verified.
    """

    def __init__(self, source: sqlite3.Connection, table: PlannedTable) -> None:
        places = {column.name: place for place, column in enumerate(table.columns)}
        self._source = source
        self._places = [places[name] for name in READ] if places.keys() >= set(READ) else []
        self.verified = 0
        self.broken_before = 0
        self.broken: list[str] = []
        self.broken_count = 0

    def add(self, targets: Sequence[Sequence[bytes]]) -> None:
        """Verify a batch of events, as columns."""
        if not self._places:
            return
        texts = [
            [None if value == NULL else unescaped(value).decode() for value in targets[place]]
            for place in self._places
        ]
        for event in zip(*texts, strict=True):
            if _verifies(event):
                self.verified += 1
            elif verified_before(self._source, "id", event[-1]):
                self.broken_count += 1
                if len(self.broken) < _KEYS_KEPT:
                    self.broken.append(event[-1] or "")
            else:
                self.broken_before += 1

    def merge(self, other: dict[str, Any]) -> None:
        """Add the counts of another worker for the same table, from its `as_dict`."""
        self.verified += other["verified"]
        self.broken_before += other["broken_before"]
        self.broken_count += other["broken"]
        self.broken = [*self.broken, *other["keys"]][:_KEYS_KEPT]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        return {
            "verified": self.verified,
            "broken_before": self.broken_before,
            "broken": self.broken_count,
            "keys": self.broken,
        }


def trail_of(source: sqlite3.Connection, table: PlannedTable) -> AuditTrail | None:
    """Return a verifier if the table is the audit trail."""
    return AuditTrail(source, table) if table.name == AUDIT_TABLE else None


def verified_before(source: sqlite3.Connection, column: str, key: object) -> bool:
    """Return whether an event verifies in the home.

    Args:
        column: The column of `key`: `id` or `rowid`.
    """
    query = f"SELECT {_COLUMNS} FROM {quoted(AUDIT_TABLE)} WHERE {column} = ?"
    row = source.execute(query, (key,)).fetchone()
    return row is not None and _verifies([text_of(value) for value in row])


def changed_events(source: sqlite3.Connection) -> Iterator[int]:
    """Yield the rowids of events that verify now and would not as `jsonb`."""
    query = f"SELECT rowid, {_COLUMNS} FROM {quoted(AUDIT_TABLE)} WHERE {_SUSPICIOUS}"
    for rowid, *row in source.execute(query):
        texts = [text_of(value) for value in row]
        if not is_unchanged_by_jsonb(texts[COVERED.index("metadata")] or "") and _verifies(texts):
            yield rowid


def is_unchanged_by_jsonb(document: str) -> bool:
    """Return whether a document hashes the same after `jsonb` wrote its numbers.

    A document that `jsonb` refuses is unchanged: it is a finding of its own.
    """
    try:
        jsonb(bytearray(document.encode("utf-8", "surrogateescape")))
    except RefusedError:
        return True
    try:
        written = json.loads(document, parse_float=_as_jsonb_writes_it)
        return _canonical(json.loads(document)) == _canonical(written)
    except ValueError:
        return False  # 1e5000 is written with more digits than Python reads


def _as_jsonb_writes_it(number: str) -> float:
    """Return a number as Python reads what `jsonb` writes: digits alone, and no negative zero."""
    value = Decimal(number)
    digits = format(abs(value) if value.is_zero() else value, "f")
    return float(digits) if "." in digits else int(digits)


def _verifies(texts: Sequence[str | None]) -> bool:
    """Return whether an event matches its hash; `texts` are the columns `READ`."""
    event: dict[str, Any] = dict(zip(COVERED, texts, strict=False))
    try:
        event["seq"] = int(event["seq"])
        event["metadata"] = json.loads(event["metadata"])
        event["created_at"] = _isoformat(event["created_at"])
    except (TypeError, ValueError, RecursionError):
        return False
    return event_hash(texts[-3], event) == texts[-2]


def _isoformat(moment: str) -> str:
    match = _MOMENT.fullmatch(moment)
    if not match:
        raise ValueError(moment)
    fraction = (match[3] or "").ljust(6, "0")
    tail = "" if fraction == "000000" else f".{fraction}"
    return f"{match[1]}T{match[2]}{tail}+00:00"
