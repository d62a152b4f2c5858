"""Everything that PostgreSQL would refuse: found with its place, repaired, or set apart."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dirty_homes import ROWS, Fault, break_audit_hash, faults, spoil
from postgres_server import Server, installations, running
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.report import Report
from sagewai_ops.export.validate.validator import POLICIES
from sagewai_ops.home.paths import Home
from targets import at_head, copy_of, counts_of, exported, home_with, state_of

FAULTS = faults()
MENDABLE = [fault for fault in FAULTS.values() if fault.mendable]
Place = tuple[str, str, str]


def expected(chosen: list[Fault]) -> Counter[Place]:
    """Count what must be found, by table, column and kind."""
    places: Counter[Place] = Counter()
    for fault in chosen:
        places[fault.table, fault.column, fault.kind] += fault.count
    return places


def found(findings: tuple[Finding, ...]) -> Counter[Place]:
    """Count what was found; no place comes twice."""
    places = [(each.table, each.column, each.kind) for each in findings]
    assert len(set(places)) == len(places)
    assert all(len(each.keys) == each.count for each in findings)
    return Counter({place: each.count for place, each in zip(places, findings, strict=True)})


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with every fault."""
    directory = tmp_path_factory.mktemp("spoiled")
    return home_with(directory / "home", lambda c: spoil(c, list(FAULTS.values())), rows=ROWS)


@pytest.fixture(scope="module")
def mendable(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with every fault that has a repair."""
    directory = tmp_path_factory.mktemp("mendable")
    return home_with(directory / "home", lambda c: spoil(c, MENDABLE), rows=ROWS)


def only_finding(report: Report) -> Finding:
    """Return the one finding."""
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


def lines_of(path: str) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("purpose", ["plan", "move"])
def test_every_fault_is_found_with_its_place_and_nothing_is_sent(
    spoiled: Home, postgres: Server, purpose: str
) -> None:
    """By a plan and by a move alike: table, column, kind, count and keys."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    report = exported(spoiled, postgres, database, purpose=purpose)

    assert found(report.findings) == expected(list(FAULTS.values()))
    assert report.open_findings == report.findings
    assert report.exit_code == 4
    assert not report.committed
    assert state_of(postgres, database) == before


VALUES = [name for name in FAULTS if FAULTS[name].kind not in ("check", "duplicate", "orphan")]


@pytest.mark.parametrize("name", VALUES)
def test_a_single_value_stops_a_move_in_progress(
    tmp_path: Path, clean: Home, postgres: Server, refusing: str, name: str
) -> None:
    """Values are looked at while they are sent: the target is empty again afterwards."""
    home = copy_of(clean, tmp_path / "home")
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        spoil(connection, [FAULTS[name]])
        connection.commit()

    report = exported(home, postgres, refusing)

    assert found(report.findings) == expected([FAULTS[name]])
    assert report.exit_code == 4
    assert counts_of(postgres, refusing) == {}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home without faults."""
    return home_with(tmp_path_factory.mktemp("clean") / "home", rows=2)


@pytest.fixture(scope="module")
def refusing(_postgres_session: None) -> str:
    """One database for many exports that are refused."""
    server = running(installations()[0])
    return at_head(server)


def test_faults_with_a_repair_are_repaired_and_logged(mendable: Home, postgres: Server) -> None:
    """Every row arrives, the log has every value before and after, and a verification agrees."""
    database = at_head(postgres)

    report = exported(mendable, postgres, database, policy="repair")

    assert report.committed
    assert report.exit_code == 0
    assert found(report.findings) == expected(MENDABLE)
    changes = lines_of(report.files["changes"])
    assert len(changes) == report.repaired == sum(fault.count for fault in MENDABLE)
    logged = Counter((change["table"], change["kind"]) for change in changes)
    assert logged == Counter({(f.table, f.kind): 0 for f in MENDABLE}) + Counter(
        (f.table, f.kind) for f in MENDABLE for _ in range(f.count)
    )
    # The id of a run in two projects stays what it is in the home.
    assert all(c["before"] != c["after"] for c in changes if c["column"] != "id")
    assert {name: rows_in(mendable.database, name) for name in counts_of(postgres, database)} == (
        counts_of(postgres, database)
    )
    again = exported(mendable, postgres, database, purpose="verify", policy="repair")
    assert again.exit_code == 0


def test_nothing_is_sent_if_a_fault_has_no_repair(spoiled: Home, postgres: Server) -> None:
    """Those that stay open are the reason."""
    database = at_head(postgres)

    report = exported(spoiled, postgres, database, policy="repair")

    assert not report.committed
    assert report.exit_code == 4
    hopeless = [fault for fault in FAULTS.values() if not fault.mendable]
    assert found(report.open_findings) == expected(hopeless)
    assert counts_of(postgres, database) == {}
    assert report.files.keys() == {"report"}


def test_faults_are_set_apart_whole(spoiled: Home, postgres: Server) -> None:
    """The other rows arrive, the refused ones are in a file with all their columns."""
    database = at_head(postgres)

    report = exported(spoiled, postgres, database, policy="quarantine")

    assert report.committed
    assert report.exit_code == 3
    refused = lines_of(report.files["refused"])
    assert len(refused) == report.refused
    assert {line["kind"] for line in refused} == {fault.kind for fault in FAULTS.values()}
    assert all(line["row"] for line in refused)
    arrived = Counter(counts_of(postgres, database))
    apart = Counter(line["table"] for line in refused)
    everything = {name: rows_in(spoiled.database, name) for name in arrived | apart}
    assert arrived + apart == Counter(everything)
    again = exported(spoiled, postgres, database, purpose="verify", policy="quarantine")
    assert again.exit_code == 3


CLEAN, REPAIRABLE, HOPELESS, MIXED = "clean", "repairable", "hopeless", "mixed"
EXIT_CODES = {
    CLEAN: {"fail": 0, "repair": 0, "quarantine": 0, "repair,quarantine": 0},
    REPAIRABLE: {"fail": 4, "repair": 0, "quarantine": 3, "repair,quarantine": 0},
    HOPELESS: {"fail": 4, "repair": 4, "quarantine": 3, "repair,quarantine": 3},
    MIXED: {"fail": 4, "repair": 4, "quarantine": 3, "repair,quarantine": 3},
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("state", EXIT_CODES)
def test_every_policy_on_every_state_of_a_home(
    tmp_path: Path, clean: Home, postgres: Server, state: str, policy: str
) -> None:
    """What is sent, repaired and quarantined; a verification with the same policy agrees."""
    home = copy_of(clean, tmp_path / "home")
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        if state in (REPAIRABLE, MIXED):
            spoil(connection, [FAULTS["surrogate"]])
        if state in (HOPELESS, MIXED):
            spoil(connection, [FAULTS["moment"]])
        connection.commit()
    database = at_head(postgres)

    report = exported(home, postgres, database, policy=policy)

    expected_code = EXIT_CODES[state][policy]
    assert report.exit_code == expected_code
    assert report.committed is (expected_code != 4)
    if not report.committed:
        assert counts_of(postgres, database) == {}
        return
    faults = 2 if state == MIXED else int(state != CLEAN)
    repaired = int(state in (REPAIRABLE, MIXED) and "repair" in policy)
    assert (report.repaired, report.refused) == (repaired, faults - repaired)
    everything = sum(rows_in(home.database, table.name) for table in report.tables)
    assert sum(counts_of(postgres, database).values()) == everything - report.refused
    again = exported(home, postgres, database, purpose="verify", policy=policy)
    assert again.exit_code == expected_code


def test_both_policies_repair_what_they_can_and_quarantine_the_rest(
    spoiled: Home, postgres: Server
) -> None:
    """Of a home with every fault: a row without a repair is quarantined, every other arrives."""
    database = at_head(postgres)

    report = exported(spoiled, postgres, database, policy="repair,quarantine")

    assert (report.committed, report.exit_code, report.open_findings) == (True, 3, ())
    refused = lines_of(report.files["refused"])
    hopeless = {fault.kind for fault in FAULTS.values() if not fault.mendable}
    assert {line["kind"] for line in refused} == hopeless
    repaired = {change["kind"] for change in lines_of(report.files["changes"])}
    assert repaired == {fault.kind for fault in MENDABLE}
    arrived = Counter(counts_of(postgres, database))
    apart = Counter(line["table"] for line in refused)
    assert arrived + apart == Counter(
        {name: rows_in(spoiled.database, name) for name in arrived | apart}
    )
    again = exported(spoiled, postgres, database, purpose="verify", policy="repair,quarantine")
    assert again.exit_code == 3


def test_children_of_a_quarantined_parent_refer_to_nothing_or_are_quarantined(
    tmp_path: Path, postgres: Server
) -> None:
    """Where the column may be NULL, the reference is removed and logged."""
    home = home_with(
        tmp_path / "home",
        lambda c: c.execute("UPDATE agent_runs SET started_at = 'some day' WHERE rowid = 1"),
        rows=5,
    )
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        (run,) = connection.execute("SELECT run_id FROM agent_runs WHERE rowid = 1").fetchone()
        connection.execute("UPDATE prompt_logs SET run_id = ? WHERE rowid <= 2", (run,))
        connection.commit()
    database = at_head(postgres)

    report = exported(home, postgres, database, policy="repair,quarantine")

    assert (report.exit_code, report.refused) == (3, 1)
    changes = lines_of(report.files["changes"])
    assert [(change["table"], change["kind"], change["after"]) for change in changes] == [
        ("prompt_logs", "orphan", None)
    ] * len(changes)
    assert len(changes) >= 2
    assert counts_of(postgres, database)["prompt_logs"] == 5


def test_findings_have_the_effect_of_a_repair(spoiled: Home, postgres: Server) -> None:
    """The plan reports for each finding how many rows `repair` repairs, and how."""
    report = exported(spoiled, postgres, at_head(postgres), purpose="plan")

    repairs = {(each.table, each.column, each.kind): each for each in report.findings}
    for fault in FAULTS.values():
        finding = repairs[fault.table, fault.column, fault.kind]
        assert finding.repairable == (fault.count if fault.mendable else 0)
        assert (finding.repair == "none") is not fault.mendable


def test_a_refused_parent_takes_its_children_along(tmp_path: Path, postgres: Server) -> None:
    """Rows that would be left alone are refused as well, and named as orphans."""
    home = home_with(
        tmp_path / "home",
        lambda connection: connection.execute(
            "UPDATE org SET name = name || char(0) WHERE id = (SELECT min(org_id) FROM project)"
        ),
    )
    database = at_head(postgres)

    report = exported(home, postgres, database, policy="quarantine")

    assert report.committed
    refused = lines_of(report.files["refused"])
    tables = {line["table"] for line in refused if line["kind"] == "orphan"}
    assert {"project", "user_account", "membership"} <= tables
    assert len(refused) + sum(counts_of(postgres, database).values()) == sum(
        rows_in(home.database, table.name) for table in report.tables
    ) + sum(
        rows_in(home.database, name)
        for name in {line["table"] for line in refused} - {table.name for table in report.tables}
    )


def test_an_orphan_whose_repair_breaks_a_check_stays_a_finding(
    tmp_path: Path, postgres: Server
) -> None:
    """A project's member without a project has no role: a finding, and nothing is sent."""
    home = home_with(
        tmp_path / "home",
        lambda connection: connection.execute(
            "UPDATE membership SET project_id = 'gone', role = 'project:viewer' WHERE rowid = 1"
        ),
    )
    database = at_head(postgres)

    report = exported(home, postgres, database, policy="repair")

    assert not report.committed
    assert "check" in {finding.kind for finding in report.open_findings}
    assert counts_of(postgres, database) == {}


def test_the_row_in_use_keeps_its_name(tmp_path: Path, postgres: Server) -> None:
    """Of two saved workflows with one name, the deleted one gets its id behind it."""
    home = home_with(tmp_path / "home", lambda c: spoil(c, [FAULTS["saved-again"]]), rows=2)
    database = at_head(postgres)

    exported(home, postgres, database, policy="repair")

    ((name,),) = postgres.rows(database, "SELECT name FROM saved_workflows WHERE id = 'again'")
    assert str(name).endswith(" (again)")


def test_a_table_of_the_users_own_is_never_dropped_in_silence(
    tmp_path: Path, postgres: Server
) -> None:
    """Refused, or written whole into the file of refused rows; a column just so."""
    home = home_with(tmp_path / "home", own_table=True, own_column=True)
    database = at_head(postgres)

    refused = exported(home, postgres, database)
    repaired = exported(home, postgres, database, policy="repair")
    apart = exported(home, postgres, database, policy="quarantine")

    kinds = {(each.table, each.column): each.kind for each in refused.findings}
    assert kinds == {
        ("my notes", ""): "unknown-table",
        ("agent_runs", "my_label"): "unknown-column",
    }
    assert (refused.exit_code, repaired.exit_code, apart.exit_code) == (4, 4, 3)
    lines = lines_of(apart.files["refused"])
    notes = [line["row"] for line in lines if line["table"] == "my notes"]
    assert notes[0] == {"id": 1, "note": "Notiz 1", "raw": {"blob_base64": "AA=="}}
    labels = [line for line in lines if line["kind"] == "unknown-column"]
    assert len(labels) == rows_in(home.database, "agent_runs")
    assert counts_of(postgres, database)["agent_runs"] == len(labels)


@pytest.mark.parametrize("name", ["notes", "vec0_notes"])
def test_a_virtual_table_of_another_module_is_named(
    tmp_path: Path, postgres: Server, name: str
) -> None:
    """Its rows can be read by its own module alone, whatever it is called."""
    home = home_with(
        tmp_path / "home",
        lambda connection: connection.execute(f"CREATE VIRTUAL TABLE {name} USING fts5(body)"),
    )

    report = exported(home, postgres, at_head(postgres))

    assert only_finding(report).table == name


def test_an_audit_event_that_cannot_verify_is_a_finding_before_and_counted_after(
    tmp_path: Path, postgres: Server
) -> None:
    """Jsonb writes 1e22 in another way, and the event's hash covers its text."""
    home = home_with(tmp_path / "home", break_audit_hash)
    database = at_head(postgres)

    refused = exported(home, postgres, database)
    accepted = exported(home, postgres, database, policy="repair")

    assert only_finding(refused).kind == "audit-hash"
    assert refused.exit_code == 4
    assert accepted.committed
    events = next(table for table in accepted.tables if table.name == "audit_event")
    assert events.compared is not None
    assert events.compared.audit is not None
    assert events.compared.audit["broken"] == 1


def test_an_audit_event_that_was_broken_before_is_no_finding(
    tmp_path: Path, postgres: Server
) -> None:
    """It is counted apart: the move is not to blame."""
    home = home_with(
        tmp_path / "home",
        lambda connection: connection.execute("UPDATE audit_event SET action = 'x' WHERE id = 1"),
    )

    report = exported(home, postgres, at_head(postgres))

    assert report.committed
    events = next(table for table in report.tables if table.name == "audit_event")
    assert events.compared is not None
    assert events.compared.audit is not None
    assert events.compared.audit["broken_before"] == 1


def rows_in(database: Path, table: str) -> int:
    """Count the rows of a table of the home."""
    connection = sqlite3.connect(database)
    try:
        ((count,),) = connection.execute(f'SELECT count(*) FROM "{table}"').fetchall()
    finally:
        connection.close()
    return int(count)
