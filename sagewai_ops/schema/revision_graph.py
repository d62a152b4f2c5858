"""The graph of revisions: ids, order, and the meaning of the rows of `alembic_version`.

Between the two 006 and their merge, `alembic_version` has two rows. The graph is read from the
revision files themselves, as text: neither Alembic nor SQLAlchemy is loaded.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from sagewai_ops.errors import NotFoundError
from sagewai_ops.records import dataclass

BASE = "base"
HEAD = "020_fleet_task_lease"
_IDS = re.compile(r"^(?:down_)?revision = (.*)$", re.MULTILINE)
_NUMBER = re.compile(r"(\d{3,})_")

State = Literal["current", "behind", "ahead", "forked", "unknown", "empty", "unmanaged"]


@dataclass(frozen=True, slots=True)
class Position:
    """The revisions of a PostgreSQL database.

    Attributes:
        heads: The rows of `alembic_version`, sorted; empty also without the table.
        state: `empty` has no tables; `unmanaged` has tables but no revision; `forked` is at both
            006, from which an upgrade continues; `unknown` is at an unknown revision, or at several
            that Alembic never writes together; `ahead` is at a later Sagewai's revision.
    """

    heads: tuple[str, ...]
    state: State


@functools.cache
def parents() -> dict[str, tuple[str, ...]]:
    """Return the parents of every revision, oldest first; the two 006 in Alembic's order."""
    from sagewai_ops.migrations import versions

    graph = {}
    for script in sorted(Path(versions.__path__[0]).glob("*.py")):
        ids = _IDS.findall(script.read_text(encoding="utf-8"))
        if ids:
            revision, before = (tuple(re.findall(r'"(\w+)"', listed)) for listed in ids)
            graph[revision[0]] = before
    return graph


@functools.cache
def revisions() -> tuple[str, ...]:
    """Return the ids of the revisions, oldest first."""
    return tuple(parents())


@functools.cache
def ancestors(revision: str) -> frozenset[str]:
    """Return a revision and all before it; of `base`, none."""
    if revision == BASE:
        return frozenset()
    before = frozenset(parent for after in parents()[revision] for parent in ancestors(after))
    return before | {revision}


def applied(heads: Collection[str]) -> frozenset[str]:
    """Return the revisions that a database has run, from its rows; all must be known."""
    return frozenset(revision for head in heads for revision in ancestors(head))


def position_of(heads: Collection[str], *, tables: bool) -> Position:
    """Return the meaning of the rows of `alembic_version`.

    Args:
        heads: The rows.
        tables: The schema has a table other than `alembic_version`.
    """
    rows = tuple(sorted(heads))
    return Position(rows, _state(rows, tables=tables))


def _state(rows: tuple[str, ...], *, tables: bool) -> State:
    if not rows:
        return "unmanaged" if tables else "empty"
    unknown = [row for row in rows if row not in parents()]
    if unknown:
        later = all(_number(row) > _number(HEAD) for row in unknown)
        return "ahead" if later and len(unknown) == len(rows) else "unknown"
    if any(row in ancestors(other) for row in rows for other in rows if other != row):
        return "unknown"  # one is an ancestor of the other: Alembic never writes both
    if len(rows) > 1:
        return "forked"
    return "current" if rows == (HEAD,) else "behind"


def _number(revision: str) -> int:
    """Return the number at the beginning of a revision id, or -1."""
    match = _NUMBER.match(revision)
    return int(match[1]) if match else -1


def find_revision(name: str) -> str:
    """Find a revision by its id, by an unambiguous prefix, or as `head` or `base`.

    Raises:
        NotFoundError: Not found, or ambiguous.
    """
    if name in ("head", "heads", HEAD):
        return HEAD
    if name == BASE or name in parents():
        return name
    found = [revision for revision in revisions() if name and revision.startswith(name)]
    if len(found) == 1:
        return found[0]
    reason = f"ambiguous, {' or '.join(found)}" if found else "not found"
    raise NotFoundError(f"revision {name}: {reason}", hint="sagewai-ops db history")
