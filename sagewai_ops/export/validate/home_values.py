"""Check every value of a home's tables as an export would, without a server: for `db check`.

SQLite joins the texts of each column over some hundred rows, and counts the rows that the filter
accepts otherwise, in one step that needs no Python, so that threads can check tables in parallel.
What the filter does not accept is read again and converted, value by value: the conversions of the
export decide. Memory is bounded by the joined rows, which are few and short: rows with a long text
are read one by one.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.compare import audit_chain
from sagewai_ops.export.convert.batch import Target, encode_value
from sagewai_ops.export.convert.value import RefusedError, describe_conversion
from sagewai_ops.export.mapping.target_catalog import TargetColumn, read_head_columns
from sagewai_ops.export.validate import prefilter
from sagewai_ops.export.validate.prefilter import INDEX_BYTES
from sagewai_ops.records import dataclass
from sagewai_ops.schema.postgres_head import index_entries

_ROWS = 256  # joined at once; more are no faster
_LONG_BYTES = 16 * 1024  # of unlimited texts in a row that is read alone, so 4 MiB together
_CACHED = 500  # results for texts of one column and range: few differ where all are unusual
_UNFILTERED_RANGES = 32  # for which a column that SQL accepts nowhere is not filtered again
_FIRST_ROW, _LAST_ROW = -(2**63), 2**63 - 1
# No index stores an entry that is larger when compressed better than PostgreSQL does.
_NEVER_INDEXED_BYTES = 2712

Result = tuple[str, str, bool]  # kind, description, whether the value is accepted


class Report(Protocol):
    """Collects what is found, rows by their rowids."""

    def __call__(
        self, kind: str, column: str, reason: str, rows: Sequence[int], *, is_note: bool
    ) -> None:
        """Add rows; notes are about values that an export converts."""


class _Text(bytes):
    """A TEXT of SQLite, UTF-8 or not; a BLOB is plain bytes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a scan.

    Attributes:
        condition: The SQL that accepts a value.
        accepts: Checks its joined texts; None if `condition` checks all.
        is_unlimited: A text that `condition` accepts can have any length.
        has_default: The export replaces NULL by the default.
    """

    name: str
    target: Target
    condition: str
    accepts: Callable[[bytes], bool] | None
    is_unlimited: bool
    has_default: bool


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, so that it hashes fast
class _Scan:
    """How one table is scanned.

    Attributes:
        columns: Those that exist on both sides.
        entries: The texts and lists in each index of PostgreSQL.
        condition: The SQL that accepts all entries of a row, and so limits the bytes of each
            column in an index; empty without any.
    """

    table: str
    columns: tuple[_Column, ...]
    entries: tuple[tuple[str, ...], ...]
    condition: str

    @property
    def indexed(self) -> set[str]:
        """The columns in an index."""
        return {name for entry in self.entries for name in entry}


@dataclass(frozen=True, slots=True)
class _Range:
    """Rows by their rowids, both included, and their number."""

    first: int
    last: int
    count: int


def check_values(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[str],
    report: Report,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Check the values of one table against PostgreSQL's schema at the head.

    Args:
        connection: Its text factory is changed.
        columns: Those of the home's table.
        on_progress: Called with the number of rows checked since the last call.
    """
    connection.text_factory = _Text
    scan = _plan_scan(table, columns, cut_at_nul=_cuts_at_nul(connection))
    _scan_table(connection, scan, report, on_progress)
    _check_last_numbers(connection, scan, read_head_columns(table), report)
    if table == audit_chain.AUDIT_TABLE and {*audit_chain.READ} <= {*columns}:
        for row in audit_chain.changed_events(connection):
            report("audit-hash", "metadata", audit_chain.CHANGED, [row], is_note=False)


def _plan_scan(table: str, present: Sequence[str], *, cut_at_nul: bool) -> _Scan:
    columns = []
    for column in read_head_columns(table).values():
        if column.name not in present or column.type is None:
            continue
        target = Target(column.type, nullable=not column.not_null)
        name, accepts = quoted(column.name), prefilter.bytes_filter(target)
        # The plus keeps SQLite from looking up an integer key by this condition, not by row id.
        condition = prefilter.sql_condition(f"+{name}", target)
        if cut_at_nul and accepts:
            condition = f"({condition} AND instr(ifnull({name}, ''), char(0)) = 0)"
        columns.append(
            _Column(
                column.name,
                target,
                condition,
                accepts,
                is_unlimited=accepts is not None and not prefilter.is_limited(target),
                has_default=bool(column.default) and not column.numbered,
            )
        )
    indexed = {each.name for each in columns if each.target.type.name in ("text", "text[]")}
    entries = {tuple(name for name in entry if name in indexed) for entry in index_entries()[table]}
    together = sorted({quoted(name) for entry in entries for name in entry})
    condition = prefilter.fits_indexes(together) if together else ""
    return _Scan(table, tuple(columns), tuple(sorted(entries - {()})), condition)


def _cuts_at_nul(connection: sqlite3.Connection) -> bool:
    """Return whether this SQLite cuts joined texts at the first NUL, as versions before 3.39 do."""
    statement = "SELECT length(CAST(group_concat(part, '') AS BLOB)) FROM (SELECT char(0, 65) part)"
    (length,) = connection.execute(statement).fetchone()
    return bool(length != 2)


def _scan_table(
    connection: sqlite3.Connection,
    scan: _Scan,
    report: Report,
    on_progress: Callable[[int], None] | None,
) -> None:
    unfiltered: dict[str, int] = {}  # columns, and for how many more ranges they are not filtered
    reasons: dict[tuple[str, str], str] = {}
    for rows in _ranges(connection, scan):
        accepted, suspected = _filter_rows(connection, scan, frozenset(unfiltered), rows)
        following = {name: left - 1 for name, left in unfiltered.items() if left > 1}
        if accepted < rows.count:
            uncleared = _count_refused(connection, scan, frozenset(unfiltered), rows)
            following |= {
                name: _UNFILTERED_RANGES
                for name, count in uncleared.items()
                if 2 * count >= rows.count
            }
            # Again without them: a row that was not accepted had no text among those joined.
            others = frozenset(unfiltered.keys() | uncleared.keys())
            accepted, suspected = _filter_rows(connection, scan, others, rows)
            if accepted < rows.count:
                suspected |= _filter_long_texts(connection, scan, rows)
                _check_index_entries(connection, scan, rows, report)
            suspected |= uncleared.keys()
        for column in scan.columns:
            if column.name in suspected or column.name in unfiltered:
                _check_column(connection, scan, column, rows, report, reasons)
        unfiltered = following
        if on_progress:
            on_progress(rows.count)


def _filter_rows(
    connection: sqlite3.Connection, scan: _Scan, unfiltered: frozenset[str], rows: _Range
) -> tuple[int, set[str]]:
    """Filter rows, without some columns.

    Returns:
        The number of rows that SQL accepts, and the columns with joined texts that are not.
    """
    query, joined = _filter_query(scan, unfiltered)
    accepted, *texts = connection.execute(query, (rows.first, rows.last)).fetchone()
    return accepted, {
        column.name
        for column, text in zip(joined, texts, strict=True)
        if text is not None and column.accepts and not column.accepts(text)
    }


@functools.lru_cache
def _filter_query(scan: _Scan, unfiltered: frozenset[str]) -> tuple[str, tuple[_Column, ...]]:
    """Return the query for a range: the number of accepted rows, and their texts by column."""
    filtered = [column for column in scan.columns if column.name not in unfiltered]
    joined = tuple(column for column in filtered if column.accepts)
    # The separator is a literal: an aggregate evaluates `char(10)` again for each row.
    texts = "".join(f", group_concat({quoted(column.name)}, '\n')" for column in joined)
    conditions = "".join(f" AND {column.condition}" for column in filtered)
    # As a blob, its length is known; the characters of a text are counted, and only up to a NUL.
    lengths = [
        f"ifnull(length(CAST({quoted(column.name)} AS BLOB)), 0)"
        for column in joined
        if column.is_unlimited and column.name not in scan.indexed
    ]
    if lengths:
        conditions += f" AND {' + '.join(lengths)} <= {_LONG_BYTES}"
    if scan.condition:
        conditions += f" AND {scan.condition}"
    return f"SELECT count(*){texts} {_from(scan.table)}{conditions}", joined


def _count_refused(
    connection: sqlite3.Connection, scan: _Scan, unfiltered: frozenset[str], rows: _Range
) -> dict[str, int]:
    """Count the values in these rows that SQL does not accept, by column; those with any."""
    columns = [column for column in scan.columns if column.name not in unfiltered]
    sums = ", ".join(f"sum(NOT ifnull({column.condition}, 0))" for column in columns)
    counts = connection.execute(f"SELECT {sums or 0} {_from(scan.table)}", (rows.first, rows.last))
    by_name = zip((column.name for column in columns), counts.fetchone(), strict=False)
    return {name: count for name, count in by_name if count}


def _ranges(connection: sqlite3.Connection, scan: _Scan) -> Iterator[_Range]:
    """Split a table into ranges of at most some hundred rows."""
    statement = (
        f"SELECT count(*), min(number), max(number) FROM (SELECT _rowid_ AS number FROM"
        f" {quoted(scan.table)} NOT INDEXED WHERE _rowid_ >= ? ORDER BY _rowid_ LIMIT {_ROWS})"
    )
    following = _FIRST_ROW
    while following <= _LAST_ROW:
        count, first, last = connection.execute(statement, (following,)).fetchone()
        if not count:
            return
        yield _Range(first, last, count)
        following = last + 1


def _filter_long_texts(connection: sqlite3.Connection, scan: _Scan, rows: _Range) -> set[str]:
    """Return the columns with a text in these rows that is not accepted, read one by one."""
    suspected = set()
    for column in scan.columns:
        if not column.accepts:
            continue
        statement = f"SELECT {quoted(column.name)} {_from(scan.table)}"
        for (value,) in connection.execute(statement, (rows.first, rows.last)):
            if isinstance(value, bytes) and not column.accepts(value):
                suspected.add(column.name)
                break
    return suspected


def _check_column(
    connection: sqlite3.Connection,
    scan: _Scan,
    column: _Column,
    rows: _Range,
    report: Report,
    reasons: dict[tuple[str, str], str],
) -> None:
    """Convert every value of a column in these rows, and report what is refused or changed."""
    statement = f"SELECT _rowid_, {quoted(column.name)} {_from(scan.table)}"
    cache: dict[bytes, Result | None] = {}
    by_result: dict[Result, list[int]] = {}
    for number, value in connection.execute(statement, (rows.first, rows.last)):
        if type(value) is not _Text:  # numbers of two types are equal, and differ here
            result = _check_value(column, value)
        elif value in cache:
            result = cache[value]
        else:
            result = _check_value(column, value)
            if len(cache) < _CACHED:
                cache[value] = result
        if result is not None:
            by_result.setdefault(result, []).append(number)
    found: dict[tuple[str, bool], list[int]] = {}
    for (kind, reason, is_note), numbers in by_result.items():
        reasons.setdefault((column.name, kind), reason)
        found.setdefault((kind, is_note), []).extend(numbers)
    for (kind, is_note), numbers in found.items():
        report(kind, column.name, reasons[column.name, kind], sorted(numbers), is_note=is_note)


def _check_value(column: _Column, value: _Text | bytes | float | None) -> Result | None:
    """Convert one value as the export does; None if it is accepted in the same form."""
    if value is None and column.has_default and not column.target.nullable:
        return "null", "NULL, which becomes the default", True
    stored = bytearray(value) if isinstance(value, _Text) else value
    try:
        encode_value(column.target, stored)
    except RefusedError as error:
        return error.kind, error.detail, False
    conversion = None if stored is None else describe_conversion(column.target.type.name, stored)
    return (*conversion, True) if conversion else None


def _check_index_entries(
    connection: sqlite3.Connection, scan: _Scan, rows: _Range, report: Report
) -> None:
    """Report the rows with texts that are too large for an index, or may be."""
    columns = sorted({name for entry in scan.entries for name in entry})
    names = ", ".join(map(quoted, columns))
    statement = f"SELECT _rowid_, {names} {_from(scan.table)} AND NOT ({scan.condition})"
    found: dict[tuple[tuple[str, ...], bool], list[int]] = {}
    for number, *values in connection.execute(statement, (rows.first, rows.last)):
        row = dict(zip(columns, values, strict=True))
        large = [
            (_compressed_size(texts), entry)
            for entry in scan.entries
            for texts in _entry_texts(scan, entry, row)
            if sum(map(len, texts)) > INDEX_BYTES
        ]
        if large:
            size, entry = max(large)
            found.setdefault((entry, size <= _NEVER_INDEXED_BYTES), []).append(number)
    for (entry, is_note), numbers in found.items():
        reason = f"more than {INDEX_BYTES} bytes in an index of {' and '.join(entry)}"
        reason += "; the server decides" if is_note else ""
        column = entry[0] if len(entry) == 1 else ""
        report("index-row", column, reason, numbers, is_note=is_note)


def _entry_texts(
    scan: _Scan, entry: Sequence[str], row: Mapping[str, object]
) -> Iterator[list[bytes]]:
    """Yield the texts of each entry that an index has for a row: of a list, every element."""
    texts = [value for name in entry if isinstance(value := row[name], bytes)]
    lists = {column.name for column in scan.columns if column.target.type.name == "text[]"}
    if not lists.intersection(entry):
        yield texts
        return
    try:
        elements = json.loads(texts[0]) if texts else []
    except ValueError:
        return
    for element in elements if isinstance(elements, list) else ():
        yield [str(element).encode("utf-8", "replace")]


def _compressed_size(texts: list[bytes]) -> int:
    """Return a lower bound: PostgreSQL's compression knows no entropy coding."""
    return sum(min(len(text), len(zlib.compress(text, 9))) for text in texts)


def _check_last_numbers(
    connection: sqlite3.Connection,
    scan: _Scan,
    columns: dict[str, TargetColumn],
    report: Report,
) -> None:
    """Report rows with the last number of a sequence: no insert could follow."""
    for column in scan.columns:
        if not columns[column.name].numbered:
            continue
        last = (1 << (column.target.type.size * 8 - 1)) - 1
        name = quoted(column.name)
        query = f"SELECT _rowid_ FROM {quoted(scan.table)} WHERE {name} = {last}"
        rows = [number for (number,) in connection.execute(query)]
        if rows:
            reason = f"{last} is the last number of its sequence"
            report("last-number", column.name, reason, rows, is_note=False)


def _from(table: str) -> str:
    return f"FROM {quoted(table)} NOT INDEXED WHERE _rowid_ BETWEEN ? AND ?"
