"""docs/database.md against the code: every state, every kind of finding, the lock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from sagewai_ops.schema import findings, migrate_postgres, results, revision_graph, sqlite_revision

PAGE = (Path(__file__).parents[2] / "docs" / "database.md").read_text(encoding="utf-8")


def _table(header: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this header, as cells."""
    found = re.search(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found
    rows = found[1].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_state_is_documented_with_its_repair() -> None:
    """The advice of `db current` is in the row of the state."""
    rows = {row[0].strip("`"): row[-1] for row in _table("state")}

    assert rows.keys() == {*get_args(revision_graph.State), *get_args(sqlite_revision.State)}
    for state, advice in results.ADVICE.items():
        assert advice.removeprefix("sagewai-ops ").partition("  #")[0] in rows[state]


def test_every_kind_of_finding_is_documented() -> None:
    """The words that `db check --json` answers with, and no others."""
    documented = [word for row in _table("kind") for word in re.findall(r"`([a-z-]+)`", row[0])]

    assert sorted(documented) == sorted(get_args(findings.Kind))


@pytest.mark.parametrize(
    "fact",
    [str(migrate_postgres.LOCK), revision_graph.HEAD, f"({migrate_postgres.WAIT_SECONDS:.0f})"],
)
def test_numbers_and_names_are_those_of_the_code(fact: str) -> None:
    """They are what a reader finds in pg_locks and in alembic_version."""
    assert fact in PAGE
