"""Homes that move to a server and are imported from it: what differs is documented."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from postgres_server import Server
from program import call
from real_homes import NAMES
from returned_homes import (
    ODD_ROWS,
    STORED,
    bring_back,
    moved,
    real_on_server,
    valid,
    value_of,
    values_of,
)
from sagewai_ops.home.paths import DATABASE, locate
from server_homes import ServerHome, content, make_server_home
from targets import counts_of, home_with, state_of


def test_a_home_that_moved_comes_back(
    original: tuple[ServerHome, dict[str, list[Any]]], tmp_path: Path
) -> None:
    """Every value of all 55 tables; the server is unchanged, and the next steps name both sides."""
    home, before = original
    state = state_of(home.server, home.database)

    answer = bring_back(home, tmp_path / "back", "--json")

    assert answer.code == 0, answer.err
    result = valid(answer)
    after = values_of(tmp_path / "back")
    for name in before:
        assert after[name] == before[name], name
    assert (result["imported"], result["rows"]) == (True, sum(map(len, before.values())))
    assert result["findings"] == []
    assert state_of(home.server, home.database) == state
    assert sorted(path.name for path in (tmp_path / "back/db").iterdir()) == ["sagewai.db"]
    assert any(line.startswith("unset SAGEWAI_DATABASE_URL") for line in result["cut_over"])
    checked = call("--home", tmp_path / "back", "db", "check", "--json")
    assert (checked.code, checked.result["findings"]) == (0, [])
    modes = {os.stat(tmp_path / "back" / name).st_mode & 0o777 for name in (".", "db", "secrets")}
    assert modes == {0o700}
    assert os.stat(tmp_path / "back" / DATABASE).st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("_postgres_session")
@pytest.mark.parametrize("name", NAMES[1:])
def test_other_real_homes_come_back(tmp_path: Path, name: str) -> None:
    """Homes of earlier layouts, too."""
    with real_on_server(tmp_path, name) as (home, before):
        answer = bring_back(home, tmp_path / "back")

        assert answer.code == 0, answer.err
        assert values_of(tmp_path / "back") == before


def test_it_moves_again(original: tuple[ServerHome, dict[str, list[Any]]], tmp_path: Path) -> None:
    """The imported home exports, and the server has the same rows as before."""
    home, _before = original
    assert bring_back(home, tmp_path / "back").code == 0

    again = moved(locate(tmp_path / "back", {}), home.server)

    assert content(home.server, again.database) == content(home.server, home.database)


def test_every_version(every_postgres: Server, tmp_path: Path) -> None:
    """Odd values, each in the form that Sagewai writes to SQLite."""
    made = make_server_home(tmp_path / "home", every_postgres)
    made.run("DELETE FROM workflow_events", *ODD_ROWS)

    answer = bring_back(made, tmp_path / "back", "--json")

    assert (answer.code, valid(answer)["findings"]) == (0, []), answer.err
    for table, column, where, expected in STORED:
        value = value_of(tmp_path / "back", f"SELECT {column} FROM {table} WHERE {where}")
        assert (value, type(value)) == (expected, type(expected)), (table, column, where)
    every_postgres.drop(made.database)


TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
NUMBERS = st.one_of(
    st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False, width=32)
)
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
NULLABLE = st.one_of(st.none(), DOCUMENTS.map(json.dumps))
TIMES = st.datetimes().map(lambda moment: f"{moment:%H:%M:%S.%f}").map("2026-02-03 {}".format)
ROWS = st.fixed_dictionaries(
    {
        "sessions": st.lists(st.tuples(TEXTS, NULLABLE, NULLABLE, TEXTS, TIMES), max_size=4),
        "agent_runs": st.lists(
            st.tuples(st.floats(allow_nan=False), st.integers(-(2**31), 2**31 - 1)), max_size=4
        ),
        "workers": st.lists(st.lists(TEXTS, max_size=4), max_size=3),
        "workflow_runs": st.lists(
            st.tuples(*[st.text("ab:é", min_size=1, max_size=3)] * 3), max_size=4, unique=True
        ),
    }
)


def fill(connection: sqlite3.Connection, rows: dict[str, list[Any]]) -> None:
    """Insert rows as Sagewai writes them."""
    for number, (agent, messages, keys, summary, moment) in enumerate(rows["sessions"]):
        connection.execute(
            "INSERT INTO sessions (session_id, project_id, agent_name, messages, memory_keys,"
            " summary, created_at, updated_at) VALUES (?, 'default', ?, ?, ?, ?, ?, ?)",
            (str(number), agent, messages or "null", keys or "[]", summary, moment, moment),
        )
    for number, (cost, tokens) in enumerate(rows["agent_runs"]):
        connection.execute(
            "UPDATE agent_runs SET cost_usd = ?, total_tokens = ? WHERE rowid = ?",
            (cost, tokens, number + 1),
        )
    for number, listed in enumerate(rows["workers"]):
        connection.execute(
            "UPDATE workers SET models_supported = ? WHERE rowid = ?",
            (json.dumps(listed), number + 1),
        )
    for number, (project, workflow, run_id) in enumerate(rows["workflow_runs"]):
        connection.execute(
            "UPDATE OR IGNORE workflow_runs SET id = ?, project_id = ?, workflow_name = ?,"
            " run_id = ? WHERE rowid = ?",
            (f"{project}:{workflow}:{run_id}", project, workflow, run_id, number + 1),
        )


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(rows=ROWS)
def test_there_and_back(
    postgres: Server, tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[Any]]
) -> None:
    """Home, server, home: equal by value, whatever the rows have that both sides can store."""
    place = tmp_path_factory.mktemp("there")
    home = home_with(place / "home", lambda connection: fill(connection, rows), rows=4)
    before = values_of(home.root)
    made = moved(home, postgres, policy="quarantine")
    kept = counts_of(postgres, made.database)

    answer = bring_back(made, place / "back", "--json")

    assert answer.code == 0, answer.err
    after = values_of(place / "back")
    for name, expected in before.items():
        if kept.get(name, 0) == len(expected):  # else the export has quarantined some
            assert after[name] == expected, name
        else:
            assert len(after[name]) == kept.get(name, 0)
    postgres.drop(made.database)
