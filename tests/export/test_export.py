"""The whole move: what arrives, what is left as it was, what is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest

import old_homes
from catalog_shapes import PostgresCatalog
from home_builder import build_home
from postgres_server import Server
from real_homes import unpack
from sagewai_ops.errors import DifferenceError, NotFoundError, TargetBusyError
from sagewai_ops.export.export import Options, export
from sagewai_ops.export.results import describe_report
from sagewai_ops.export.workdir import export_directory
from sagewai_ops.home.paths import locate
from sagewai_ops.home.server_record import PLACE
from sagewai_ops.schema.create import create_database
from small_homes import everything_of
from targets import (
    at_head,
    catalog_of,
    counts_of,
    exported,
    home_with,
    opened_elsewhere,
    state_of,
    url_of,
)

EXTRA_ROW = (
    "INSERT INTO budget_spend (id, project_id, agent_name, cost_usd) VALUES (99, 'p', 'a', 1)"
)


@pytest.mark.parametrize("template", ["empty", "head"])
def test_a_home_of_the_real_sagewai_arrives_whole(
    tmp_path: Path, every_postgres: Server, template: str
) -> None:
    """All 55 tables with all their rows, into an empty database and into one at head."""
    home = locate(unpack("real-small", tmp_path), {})
    database = every_postgres.create() if template == "empty" else at_head(every_postgres)

    report = exported(home, every_postgres, database)

    assert report.committed
    assert report.exit_code == 0
    assert report.migrated == (template == "empty")
    assert len(report.tables) == 55
    assert counts_of(every_postgres, database) == {each.name: each.rows for each in report.tables}
    assert all(each.compared is not None and each.compared.same for each in report.tables)
    audit = next(each for each in report.tables if each.name == "audit_event").compared
    assert audit is not None
    assert audit.audit == {"verified": 10, "broken_before": 0, "broken": 0, "keys": []}


def test_the_catalog_afterwards_is_that_of_a_migrated_database(
    tmp_path: Path, postgres: Server
) -> None:
    """Indexes, constraints, defaults: nothing was left off, with tables large and small."""
    home = home_with(tmp_path / "home", rows_in={"agent_runs": 700, "audit_event": 600})
    fresh, full = at_head(postgres), at_head(postgres)

    exported(home, postgres, full)

    assert _without_positions(catalog_of(postgres, full)) == _without_positions(
        catalog_of(postgres, fresh)
    )
    assert postgres.rows(
        full, "SELECT count(*) FROM pg_index WHERE NOT indisvalid OR NOT indisready"
    ) == [(0,)]
    assert postgres.rows(full, "SELECT count(*) FROM pg_constraint WHERE NOT convalidated") == [
        (0,)
    ]


def test_the_home_is_only_read(tmp_path: Path, postgres: Server) -> None:
    """Its record of the server is added; next to it only the report is left."""
    home = home_with(tmp_path / "home", journal="tail")
    before = everything_of(home.root)

    exported(home, postgres, at_head(postgres))

    after = everything_of(home.root)
    record = after.pop(PLACE)
    assert record[0] & 0o777 == 0o600
    del after["db"], before["db"]  # its time
    assert after == before
    (report,) = export_directory(home).iterdir()
    assert json.loads(report.read_text())["committed"] is True
    assert report.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_a_commit_is_reported_although_its_copy_cannot_be_removed(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Neither the report nor the removal of the copy turns a committed export into a failure."""
    home = home_with(tmp_path / "home")
    database = at_head(postgres)

    original = os.fchmod

    def refuse(path: object) -> None:
        raise OSError(code, os.strerror(code), path)

    def refuse_report(descriptor: int, mode: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith(".partial") and "sagewai-ops-export" not in name:  # but the journal
            refuse(descriptor)
        original(descriptor, mode)

    monkeypatch.setattr("sagewai_ops.fs.tempdirs.remove_tree", refuse)
    monkeypatch.setattr(os, "fchmod", refuse_report)
    report = exported(home, postgres, database)

    assert report.committed
    assert report.error == ""
    subjects = [text.partition(":")[0].split()[0] for text in report.warnings]
    assert subjects == [str(home.root / PLACE), "report", "frozen"]
    assert counts_of(postgres, database)


def test_a_second_export_is_refused_and_changes_nothing(tmp_path: Path, postgres: Server) -> None:
    """The target has rows by then."""
    home = home_with(tmp_path / "home")
    database = at_head(postgres)
    exported(home, postgres, database)
    before = state_of(postgres, database)

    with pytest.raises(TargetBusyError, match="not empty, rows in"):
        exported(home, postgres, database)

    assert state_of(postgres, database) == before


def test_an_empty_home_exports(tmp_path: Path, postgres: Server) -> None:
    """No rows are rows as well: the target is at head afterwards."""
    (tmp_path / "home" / "db").mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)  # whatever the umask
    create_database(tmp_path / "home" / "db" / "sagewai.db")
    home = locate(tmp_path / "home", {})
    database = postgres.create()

    report = exported(home, postgres, database)

    assert report.committed
    assert report.rows == 0
    assert counts_of(postgres, database) == {}
    assert exported(home, postgres, database, purpose="verify").exit_code == 0


def test_an_old_home_exports_and_what_it_lacks_gets_its_default(
    tmp_path: Path, postgres: Server
) -> None:
    """Columns of later revisions are named, and NULLs where a value must be become the default."""
    path = tmp_path / "home" / "db" / "sagewai.db"
    path.parent.mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)  # whatever the umask
    old_homes.build(path, "005_execution_mode")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE workers RENAME TO strict")
        connection.execute("CREATE TABLE workers AS SELECT * FROM strict")
        connection.execute("DROP TABLE strict")
        connection.execute("INSERT INTO workers (worker_id, project_id) VALUES ('w1', 'p')")
        connection.commit()
    database = at_head(postgres)

    report = exported(locate(tmp_path / "home", {}), postgres, database)

    assert report.committed
    (workers,) = report.tables
    assert "secret_hash" in workers.left_to_default
    assert postgres.rows(
        database, "SELECT worker_id, metadata::text, models_supported, pool FROM workers"
    ) == [("w1", "{}", [], "default")]


def test_workflow_runs_get_the_ids_that_sagewai_looks_for(tmp_path: Path, postgres: Server) -> None:
    """On PostgreSQL it builds them without the project."""
    home = home_with(tmp_path / "home")
    database = at_head(postgres)

    exported(home, postgres, database)

    assert postgres.rows(
        database, "SELECT count(*) FROM workflow_runs WHERE id <> workflow_name || ':' || run_id"
    ) == [(0,)]


def test_short_ids_become_uuids_that_still_refer_to_one_another(
    tmp_path: Path, postgres: Server
) -> None:
    """harness_spend.key_id goes where harness_keys.id went."""

    def shorten(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("UPDATE harness_keys SET id = '0123456789ab' WHERE rowid = 1")
        connection.execute("UPDATE harness_spend SET key_id = '0123456789ab' WHERE rowid = 1")

    home = home_with(tmp_path / "home", shorten)
    database = at_head(postgres)

    exported(home, postgres, database)

    assert postgres.rows(
        database,
        "SELECT k.id::text FROM harness_keys k JOIN harness_spend s ON s.key_id = k.id"
        " WHERE k.id::text LIKE '%0123456789ab'",
    ) == [("00000000-0000-0000-0000-0123456789ab",)]


def test_inserts_go_on_behind_the_highest_number(tmp_path: Path, postgres: Server) -> None:
    """Every table with a sequence takes an insert that names no number."""
    home = home_with(tmp_path / "home")
    database = at_head(postgres)

    report = exported(home, postgres, database)

    assert len(report.sequences) == 19
    for each in report.sequences:
        ((highest,),) = postgres.rows(database, f'SELECT max("{each.column}") FROM {each.table}')
        ((following,),) = postgres.rows(
            database, f"SELECT nextval(pg_get_serial_sequence('{each.table}', '{each.column}'))"
        )
        assert following == each.next == int(str(highest)) + 1


def test_columns_that_always_number_themselves_take_the_rows(
    tmp_path: Path, postgres: Server
) -> None:
    """Identity instead of serial, and one more next to it, by the server's administrator."""
    home = home_with(tmp_path / "home")
    database = at_head(postgres)
    postgres.run(
        database,
        "ALTER TABLE cost_records ALTER id DROP DEFAULT",
        "DROP SEQUENCE cost_records_id_seq",
        "ALTER TABLE cost_records ALTER id ADD GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE cost_records ADD ticket integer GENERATED ALWAYS AS IDENTITY",
    )

    report = exported(home, postgres, database)

    ((highest,),) = postgres.rows(database, "SELECT max(id) FROM cost_records")
    ((following,),) = [(each.next,) for each in report.sequences if each.table == "cost_records"]
    assert following == int(str(highest)) + 1


def test_text_booleans_and_moments_mean_the_same(tmp_path: Path, postgres: Server) -> None:
    """The text false is false, and a moment without an offset is UTC, wherever the server is."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE workflow_runs SET input_encrypted = 'false', output_encrypted = 'true',"
            " created_at = '2026-03-01 08:30:00', updated_at = '2026-03-01T09:30:00.5+01:00'"
        )

    home = home_with(tmp_path / "home", change)
    database = at_head(postgres)

    exported(home, postgres, database)

    assert postgres.rows(
        database,
        "SELECT DISTINCT input_encrypted, output_encrypted,"
        " created_at = '2026-03-01 08:30:00+00', updated_at = '2026-03-01 08:30:00.5+00'"
        " FROM workflow_runs",
    ) == [(False, True, True, True)]


def test_what_sql_null_and_json_null_were_they_stay(tmp_path: Path, postgres: Server) -> None:
    """Sagewai reads both as nothing; PostgreSQL distinguishes them."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE workflow_runs SET output = NULL WHERE rowid = 1")
        connection.execute("UPDATE workflow_runs SET output = 'null' WHERE rowid = 2")

    home = home_with(tmp_path / "home", change)
    database = at_head(postgres)

    exported(home, postgres, database)

    assert postgres.rows(
        database, "SELECT output IS NULL, count(*) FROM workflow_runs"
        " WHERE output IS NULL OR output = 'null' GROUP BY 1 ORDER BY 1",
    )[0][0] is False  # fmt: skip


def test_a_verification_finds_one_changed_value(tmp_path: Path, postgres: Server) -> None:
    """In any order of the rows, with its table, its key and its column."""
    home = home_with(tmp_path / "home", rows_in={"agent_runs": 700})
    database = at_head(postgres)
    exported(home, postgres, database)
    exported(home, postgres, database, purpose="verify")
    # An update moves the row to the end of its table.
    postgres.run(database, "UPDATE agent_runs SET model = model WHERE duration_ms % 7 = 0")
    exported(home, postgres, database, purpose="verify")
    ((key,),) = postgres.rows(database, "SELECT min(run_id) FROM agent_runs")
    postgres.run(database, f"UPDATE agent_runs SET total_tokens = -1 WHERE run_id = '{key}'")

    with pytest.raises(DifferenceError) as refused:
        exported(home, postgres, database, purpose="verify")

    assert "agent_runs" in refused.value.message
    assert f"{key}: total_tokens differs" in refused.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM budget_spend WHERE id = 2", "2: missing"),
        (EXTRA_ROW, "99: extra"),
        ("INSERT INTO projects (slug, name) VALUES ('s', 'n')", "extra"),
        ("SELECT setval('budget_spend_id_seq', 1)", "sequence at 2, but 3 exists"),
        ("UPDATE notification_channels SET config = config || ' '", "config differs"),
        ("UPDATE sessions SET messages = '[]'", "messages differs"),
    ],
)  # fmt: skip
def test_a_verification_finds_rows_and_values_of_every_kind(
    tmp_path: Path, postgres: Server, change: str, words: str
) -> None:
    """A row less, a row more, a table more, a sequence behind, a blank more."""
    home = home_with(tmp_path / "home")
    database = at_head(postgres)
    exported(home, postgres, database)
    postgres.run(database, change)

    with pytest.raises(DifferenceError, match=words):
        exported(home, postgres, database, purpose="verify")


def test_a_plan_touches_nothing(tmp_path: Path, postgres: Server) -> None:
    """Neither an empty database nor the directory next to the home."""
    home = home_with(tmp_path / "home")
    empty, head = postgres.create(), at_head(postgres)
    before = state_of(postgres, empty), state_of(postgres, head)

    reports = [exported(home, postgres, name, purpose="plan") for name in (empty, head)]

    assert (state_of(postgres, empty), state_of(postgres, head)) == before
    assert not export_directory(home).exists()
    assert [report.exit_code for report in reports] == [0, 0]
    assert all(report.estimate_seconds > 0 for report in reports)


def test_a_home_that_is_used_is_refused_unless_it_is_a_rehearsal(
    tmp_path: Path, postgres: Server
) -> None:
    """What is written during the move would be lost."""
    home = home_with(tmp_path / "home")
    with opened_elsewhere(home) as process:
        with pytest.raises(TargetBusyError, match=f"in use by pid {process.pid}"):
            exported(home, postgres, at_head(postgres))
        report = exported(home, postgres, at_head(postgres), allow_live=True)

    assert report.committed
    assert "what it writes from here on is not moved" in report.warnings[0]


def test_without_a_home_or_its_database_there_is_nothing_to_move(
    tmp_path: Path, postgres: Server
) -> None:
    """Each has its own words."""
    with pytest.raises(NotFoundError, match="not found"):
        exported(locate(tmp_path / "no", {}), postgres, at_head(postgres))
    (tmp_path / "bare").mkdir()
    with pytest.raises(NotFoundError, match="has no database"):
        exported(locate(tmp_path / "bare", {}), postgres, at_head(postgres))


def test_what_a_killed_export_left_is_swept(tmp_path: Path, postgres: Server) -> None:
    """Its copy holds secrets."""
    home = home_with(tmp_path / "home")
    left = export_directory(home) / ".sagewai-ops-export-dead"
    left.parent.mkdir(0o700)
    left.mkdir(0o700)
    (left / "copy.db").write_bytes(b"secrets")
    partials = [left.with_name(f".{word}-1.json.0123abcd.partial") for word in ("move", "verify")]
    for partial in partials:
        partial.touch(0o600)

    exported(home, postgres, at_head(postgres), purpose="plan")

    assert not any(path.exists() for path in (left, *partials))


def test_rows_of_every_size_pass_through_bounded_batches(tmp_path: Path, postgres: Server) -> None:
    """From nothing to megabytes in one table."""

    def grow(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE agent_runs SET output_text = hex(zeroblob(rowid * rowid * 2))")

    home = home_with(tmp_path / "home", grow, rows_in={"agent_runs": 300})
    database = at_head(postgres)

    report = exported(home, postgres, database)

    assert report.committed


def test_learnings_stay_readable_where_they_are(tmp_path: Path, postgres: Server) -> None:
    """The report states how many, and that they stay."""
    home = home_with(tmp_path / "home", vectors=28)

    report = exported(home, postgres, at_head(postgres))

    assert [(each.rows, each.to) for each in report.learnings.tables] == [(28, "")]
    assert any("28 learnings" in line for line in report.cut_over)


def test_the_password_is_in_no_report(tmp_path: Path, postgres: Server) -> None:
    """The cut-over lines state where it belongs."""
    built = build_home(tmp_path / "home", artifacts=False, vectors=0)
    database = at_head(postgres)
    url = url_of(postgres, database)
    secret = "s3cr3t-Pässwort"
    from dataclasses import replace

    report = export(
        locate(built.root, {}), replace(url, password=secret), Options(report=tmp_path / "r.json")
    )

    assert report.committed
    assert secret not in (tmp_path / "r.json").read_text()
    assert "s3cr3t" not in json.dumps(asdict(describe_report(report)))


def _without_positions(catalog: PostgresCatalog) -> PostgresCatalog:
    """Leave out where sequences are; that is another test."""
    for sequence in catalog["sequences"].values():
        sequence.pop("last", None)  # type: ignore[typeddict-item]
    return catalog
