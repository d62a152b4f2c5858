"""How a home's tables differ from a fresh home's."""

from __future__ import annotations

import sqlite3

import pytest

from sagewai_ops.schema import sqlite_catalog, sqlite_head
from sagewai_ops.schema.drift import find_drift

STATUS = "status IN ('pending','claimed','completed','failed')"


def test_fresh_home_has_no_drift(fresh: sqlite3.Connection) -> None:
    """The measure does not differ from itself."""
    assert find_drift(fresh) == ()


@pytest.mark.parametrize(
    ("table", "old", "new", "shown"),
    [
        ("workers", "  pool TEXT DEFAULT 'default' NOT NULL,\n", "", "missing column"),
        ("workers", "pool TEXT", "pool VARCHAR(9)", "pool: type, a fresh home has TEXT, found"),
        ("workers", "  status TEXT DEFAULT 'active' NOT NULL", "  status TEXT DEFAULT 'active'",
         "status: missing not null, a fresh home has NOT NULL"),
        ("workers", "project_id TEXT", "project_id TEXT NOT NULL", "project_id: extra not null"),
        ("workers", "DEFAULT 'active'", "DEFAULT 'idle'",
         "default, a fresh home has 'active', found 'idle'"),
        ("workers", "DEFAULT 'active'", "", "default, a fresh home has 'active', found none"),
        ("workers", "  org_id TEXT", "  org_id TEXT, region TEXT", "region: extra column, found"),
        ("rate_limits", "PRIMARY KEY (bucket_key, window_start)", "PRIMARY KEY (bucket_key)",
         "window_start: primary key, a fresh home has position 2, found none"),
        ("fleet_tasks", f"CONSTRAINT ck_fleet_tasks_status CHECK ({STATUS})",
         "CHECK (run_id <> '')",
         "missing check, a fresh home has status in ( 'pending' , 'claimed'"),
        ("fleet_tasks", f"CHECK ({STATUS})", f"CHECK ({STATUS}), CHECK (attempts >= 0)",
         "extra check, found attempts > = 0"),
        ("org", "UNIQUE (slug)", "UNIQUE (name)", "missing unique, a fresh home has slug"),
        ("org", "UNIQUE (slug)", "UNIQUE (slug), UNIQUE (name)", "extra unique, found name"),
        ("prompt_logs", "ON DELETE CASCADE", "",
         "missing foreign key, a fresh home has run_id references agent_runs (run_id) on delete"),
        ("agent", "PRIMARY KEY (id)", "PRIMARY KEY (id), FOREIGN KEY (name) REFERENCES org (id)",
         "extra foreign key, found name references org (id)"),
    ],
)  # fmt: skip
def test_difference_is_found(
    fresh: sqlite3.Connection, table: str, old: str, new: str, shown: str
) -> None:
    """Every part of a table's DDL is compared, and the line has both sides."""
    definition = sqlite_head.tables()[table].statement
    assert old in definition
    fresh.execute(f"DROP TABLE {table}")
    fresh.execute(definition.replace(old, new))

    found = [item.shown for item in find_drift(fresh) if not item.kind.endswith("-index")]

    assert any(shown in line for line in found), found
    assert all(line.startswith(table) for line in found)


def test_missing_and_different_indexes_are_found(fresh: sqlite3.Connection) -> None:
    """By name, and under the same name by columns, uniqueness and condition."""
    fresh.execute("DROP INDEX idx_workers_pool")
    fresh.execute("DROP INDEX ux_membership_org")
    fresh.execute("CREATE INDEX ux_membership_org ON membership (user_id DESC, lower(role))")

    found = {item.name: item for item in find_drift(fresh)}

    assert set(found) == {"idx_workers_pool", "ux_membership_org"}
    assert found["idx_workers_pool"].is_addable
    assert not found["ux_membership_org"].is_addable
    assert found["ux_membership_org"].shown == (
        "membership.ux_membership_org: different index, a fresh home has unique index on user_id,"
        " org_id where project_id is null, found index on user_id DESC, (expression)"
    )


def test_missing_table_is_a_single_difference(fresh: sqlite3.Connection) -> None:
    """Its columns and indexes are not listed."""
    fresh.execute("DROP TABLE harness_spend")

    assert [(item.table, item.kind) for item in find_drift(fresh)] == [
        ("harness_spend", "missing-table")
    ]


def test_order_of_columns_and_the_users_own_indexes_are_no_drift(
    fresh: sqlite3.Connection,
) -> None:
    """An upgraded home has the same columns in another order, and may be indexed better."""
    fresh.execute("DROP TABLE agent")
    columns = list(reversed(sqlite_head.tables()["agent"].statement.splitlines()[1:-2]))
    key = "PRIMARY KEY (id)"
    fresh.execute(f"CREATE TABLE agent ({''.join(columns)} {key})")
    for statement in sqlite_head.tables()["agent"].indexes.values():
        fresh.execute(statement)
    fresh.execute("CREATE INDEX my_own ON agent (created_at)")

    assert find_drift(fresh) == ()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a IN ('x','Y')", "\"a\"  in ( 'x',\n'Y' )"),
        ("a /* why */ > 1 -- because", "[A] > 1"),
        ("`project_id` IS NULL", "project_id is null"),
    ],
)
def test_expressions_are_compared_without_their_spelling(left: str, right: str) -> None:
    """Blanks, quotes, comments and the case of words do not matter."""
    assert sqlite_catalog.normalised(left) == sqlite_catalog.normalised(right)


@pytest.mark.parametrize(
    ("left", "right"), [("a = 'x'", "a = 'X'"), ('"my col" = 1', "my col = 1"), ("a > 1", "a < 1")]
)
def test_different_expressions_stay_different(left: str, right: str) -> None:
    """Strings keep their case, and names that need their quotes keep them."""
    assert sqlite_catalog.normalised(left) != sqlite_catalog.normalised(right)
