"""What a run finds: as much as a plan does, never too much, and what it means for audit chains."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dirty_homes import hash_again
from postgres_server import Server
from sagewai_ops.export.export import Options, export
from sagewai_ops.export.report import Report, TableReport
from sagewai_ops.export.validate import server_probes
from sagewai_ops.home.paths import Home
from targets import at_head, copy_of, counts_of, exported, home_with, url_of

MANY = 1500  # more than SQLite lets a condition be deep


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a little in every table."""
    return home_with(tmp_path_factory.mktemp("original") / "home", rows=5)


@pytest.fixture
def changed(original: Home, tmp_path: Path) -> Callable[..., Home]:
    """Copy it and run statements on its database, each with its values.

    `hashed` is an audit event that gets the hash that it has after them.
    """

    def change(*statements: str | tuple[str, Any], hashed: int = 0) -> Home:
        home = copy_of(original, tmp_path / "home")
        connection = sqlite3.connect(home.database)
        for statement in statements:
            connection.execute(*((statement,) if isinstance(statement, str) else statement))
        if hashed:
            hash_again(connection, hashed)
        connection.commit()
        connection.close()
        return home

    return change


def places(report: Report) -> list[tuple[str, str, str, int]]:
    """Return the findings, sorted."""
    return sorted((each.table, each.column, each.kind, each.count) for each in report.findings)


def audit_of(report: Report) -> dict[str, object]:
    """Return the results for audit events."""
    table: TableReport = next(each for each in report.tables if each.name == "audit_event")
    assert table.compared is not None
    assert table.compared.audit is not None
    return table.compared.audit


def test_a_move_that_ends_at_a_value_names_all_that_a_plan_names(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """The first is met here, others would be met by the server: all of them are reported."""
    home = changed(
        "UPDATE workflow_runs SET steps_completed = 5000000000 WHERE rowid = 1",
        "UPDATE agent_runs SET output_text = 'a' || char(0) WHERE rowid = 1",
        "UPDATE workflow_runs SET data = '[1' WHERE rowid = 2",
    )
    database = at_head(postgres)

    planned = exported(home, postgres, database, purpose="plan")
    moved = exported(home, postgres, database)

    assert places(moved) == places(planned) == [
        ("agent_runs", "output_text", "nul", 1),
        ("workflow_runs", "data", "not-json", 1),
        ("workflow_runs", "steps_completed", "out-of-range", 1),
    ]  # fmt: skip
    assert moved.exit_code == 4
    assert counts_of(postgres, database) == {}


def test_a_long_text_in_an_index_is_checked_with_the_defaults_of_other_columns(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """255 characters of four bytes fit; the server is asked, with its defaults in place."""
    home = changed(("UPDATE eval_datasets SET name = ? WHERE rowid = 1", ("😀" * 255,)))
    database = at_head(postgres)

    planned = exported(home, postgres, database, purpose="plan")
    repaired = exported(home, postgres, database, policy="repair")

    assert (planned.exit_code, repaired.exit_code) == (0, 0)
    assert repaired.committed


def test_texts_that_only_together_are_too_large_for_an_index_are_found(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """Four columns share one; none of them alone is suspiciously long."""
    noise = "".join(hashlib.sha256(b"%d" % number).hexdigest() for number in range(12))[:740]
    columns = "org_id = :n, team_id = :n, project_id = :n, user_id = :n"
    home = changed((f"UPDATE harness_policies SET {columns} WHERE rowid = 1", {"n": noise}))

    planned = exported(home, postgres, at_head(postgres), purpose="plan")

    assert places(planned) == [("harness_policies", "", "index-row", 1)]


def test_no_index_has_more_columns_of_text_than_the_suspicion_allows_for(postgres: Server) -> None:
    """What is less than suspicious in each of them fits together."""
    ((most,),) = postgres.rows(
        at_head(postgres),
        "SELECT max((SELECT count(*) FROM unnest(i.indkey::int2[]) AS u(number)"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number"
        " WHERE a.attlen = -1)) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
        " WHERE c.relnamespace = 'public'::regnamespace",
    )

    assert int(str(most)) * (server_probes.SUSPICIOUS_BYTES + 4) < 2704 - 64


def test_a_check_that_many_values_break_names_all_rows(tmp_path: Path, postgres: Server) -> None:
    """Each of them another value."""
    home = home_with(
        tmp_path / "home",
        lambda c: c.execute("UPDATE workflow_runs SET execution_mode = 'mode ' || rowid"),
        rows_in={"workflow_runs": MANY},
    )
    database = at_head(postgres)

    planned = exported(home, postgres, database, purpose="plan")
    apart = exported(home, postgres, database, policy="quarantine")

    assert places(planned) == [("workflow_runs", "execution_mode", "check", MANY)]
    assert (apart.committed, apart.refused) == (True, MANY)


def test_a_refusal_that_only_the_server_finds_is_a_finding(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """An index of the user's own: refused with the key, and nothing made up about other tables."""
    home = changed(
        "UPDATE org SET slug = 'Same' WHERE rowid = 1",
        "UPDATE org SET slug = 'same' WHERE rowid = 2",
        "UPDATE sessions SET summary = 'a' || char(0) WHERE rowid = 1",
    )
    database = at_head(postgres)
    postgres.run(database, "CREATE UNIQUE INDEX own ON org (lower(slug))")

    apart = exported(home, postgres, database, policy="quarantine")

    assert places(apart) == [("org", "own", "server", 1), ("sessions", "summary", "nul", 1)]
    (finding,) = apart.open_findings
    assert "(lower(slug))=(same)" in finding.detail
    assert apart.exit_code == 4
    assert counts_of(postgres, database) == {}


def test_a_trigger_that_refuses_a_row_is_a_finding(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """Of the table, in the trigger's own words; a plan cannot know."""
    database = at_head(postgres)
    postgres.run(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RAISE EXCEPTION ''not here''; END'",
        "CREATE TRIGGER own BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION refuse()",
    )

    report = exported(changed(), postgres, database)

    assert places(report) == [("sessions", "", "server", 1)]
    assert report.findings[0].detail == "not here"
    assert counts_of(postgres, database) == {}


def test_a_check_over_numbers_is_asked_about_numbers_alone(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """A value of another type is a finding of its own, and does not hide the others."""
    home = changed(
        "UPDATE cost_records SET tokens = 'much' WHERE rowid = 1",
        "UPDATE cost_records SET tokens = 2000000 WHERE rowid = 2",
    )
    database = at_head(postgres)
    postgres.run(database, "ALTER TABLE cost_records ADD CHECK (tokens < 1000000)")

    report = exported(home, postgres, database, purpose="plan")

    assert places(report) == [
        ("cost_records", "tokens", "check", 1),
        ("cost_records", "tokens", "storage-class", 1),
    ]


def test_a_verification_names_what_it_could_not_compare(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """A table of the user's own is in no target, whatever choice the move was made with."""
    home = changed("CREATE TABLE notes (note TEXT)", "INSERT INTO notes VALUES ('n')")
    database = at_head(postgres)
    exported(home, postgres, database, policy="quarantine")

    verified = exported(home, postgres, database, purpose="verify")

    assert places(verified) == [("notes", "", "unknown-table", 1)]
    assert verified.exit_code == 3


def test_a_second_person_who_may_only_read_can_verify(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """With a role that owns nothing, in a database that takes no writes."""
    home = changed()
    database = at_head(postgres)
    exported(home, postgres, database)
    postgres.run(
        "postgres",
        "DROP ROLE IF EXISTS auditor",
        "CREATE ROLE auditor LOGIN IN ROLE pg_read_all_data",
        f"ALTER DATABASE {database} SET default_transaction_read_only = on",
    )

    url = url_of(postgres, database, user="auditor")
    report = export(home, url, Options(purpose="verify"))

    assert report.exit_code == 0
    assert all(table.compared is not None and table.compared.same for table in report.tables)


def test_an_audit_event_that_a_repair_breaks_is_a_finding(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """It verified in the home, and it is the repair that it no longer does."""
    home = changed("UPDATE audit_event SET target_id = target_id || char(0) WHERE id = 2", hashed=2)
    database = at_head(postgres)

    report = exported(home, postgres, database, policy="repair")

    assert report.committed
    assert places(report) == [
        ("audit_event", "target_id", "audit-hash", 1),
        ("audit_event", "target_id", "nul", 1),
    ]
    assert audit_of(report) == {
        "verified": 19, "broken_before": 0, "broken": 1, "keys": ["2"]
    }  # fmt: skip
    again = exported(home, postgres, database, purpose="verify", policy="repair")
    assert audit_of(again) == audit_of(report)


def test_a_chain_that_lacks_an_event_is_noted(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """The events that follow it still verify, each by itself."""
    home = changed("UPDATE audit_event SET target_id = target_id || char(0) WHERE id = 2")

    report = exported(home, postgres, at_head(postgres), policy="quarantine")

    assert any("audit_event: 1 events are left out" in note for note in report.notes)
    assert audit_of(report)["verified"] == 19


def test_events_are_verified_in_any_order(changed: Callable[..., Home], postgres: Server) -> None:
    """A rewritten table is compared by its keys, and its chains are verified."""
    home = changed()
    database = at_head(postgres)
    before = audit_of(exported(home, postgres, database))
    postgres.run(database, "UPDATE audit_event SET action = action WHERE id < 4")

    report = exported(home, postgres, database, purpose="verify")

    assert audit_of(report) == before
    assert before["verified"] == 20


def test_an_event_whose_number_python_does_not_read_is_a_finding(
    changed: Callable[..., Home], postgres: Server
) -> None:
    """To Python 1e5000 is infinite, and jsonb writes it with 5,001 digits."""
    home = changed("UPDATE audit_event SET metadata = '{\"n\": 1e5000}' WHERE id = 1", hashed=1)

    report = exported(home, postgres, at_head(postgres), purpose="plan")

    assert places(report) == [("audit_event", "metadata", "audit-hash", 1)]
