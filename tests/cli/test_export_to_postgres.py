"""`export-to-postgres`, as people and scripts meet it."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dirty_homes import ROWS, Fault, faults, spoil
from json_schemas import problems
from postgres_server import GUARDED, Server
from program import COMMAND, Answer, call, run
from pseudo_terminal import watched
from sagewai_ops.home.paths import Home
from small_homes import recode
from targets import at_head, copy_of, counts_of, home_with, opened_elsewhere, state_of

PASSWORD = "s3cr3t @:/ Wort"
FAULTS = faults()
MENDABLE = [fault for fault in FAULTS.values() if fault.mendable]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a little in every table."""
    return home_with(tmp_path_factory.mktemp("original") / "home", vectors=28)


@pytest.fixture
def home(original: Home, tmp_path: Path) -> Home:
    """A copy of it for one test."""
    return copy_of(original, tmp_path / "home")


def spoiled(tmp_path: Path, chosen: list[Fault]) -> Home:
    """Make a home with faults."""
    return home_with(tmp_path / "spoiled", lambda c: spoil(c, chosen), rows=ROWS)


def export(home: Home, *words: object) -> Answer:
    """Run the command in this process."""
    return call("--home", home.root, "export-to-postgres", *words)


def valid(answer: Answer) -> dict[str, object]:
    """Return a JSON answer's result, after its schema was checked, and the report's."""
    assert problems("envelope", answer.document) == []
    assert problems("export-to-postgres", answer.result) == []
    files = answer.result["files"]
    if "report" in files:
        report = json.loads(Path(files["report"]).read_text())
        assert problems("export-to-postgres", report) == []
        assert report == answer.result
    return answer.result


def test_copy_is_kept_on_request(home: Home, postgres: Server, tmp_path: Path) -> None:
    """In the work directory, where a later run leaves it."""
    url = postgres.url(at_head(postgres))
    (tmp_path / "work").mkdir()

    refused = export(home, url, "--plan", "--keep-work-dir")
    kept = export(home, url, "--plan", "--keep-work-dir", "--work-dir", tmp_path / "work")
    export(home, url, "--plan", "--work-dir", tmp_path / "work")

    assert (refused.code, kept.code) == (2, 0)
    (path,) = (tmp_path / "work").iterdir()
    assert f"warning: work directory {path}: kept" in kept.err
    assert (path / "copy.db").stat().st_mode & 0o777 == 0o600
    assert not home.root.with_name("home.exports").exists()


def guarded(server: Server, role: str) -> tuple[str, str]:
    """Make a database that asks for a role's password, and return its name and URL without it."""
    template = at_head(server)
    database = server.create(template=template, name=GUARDED)
    server.run(
        "postgres",
        f"DROP ROLE IF EXISTS {role}",
        f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{PASSWORD}'",
    )
    return database, server.tcp_url(database, user=role)


def test_a_move_in_a_script_prints_its_report_and_the_next_steps(
    home: Home, postgres: Server
) -> None:
    """Nothing on stderr; the file next to the home is for a second person."""
    database = at_head(postgres)

    answer = run("--home", home.root, "export-to-postgres", postgres.url(database))

    assert (answer.code, answer.err) == (0, "")
    (path,) = home.root.with_name("home.exports").glob("move-*.json")
    assert f"report: {path}" in answer.out
    assert "export SAGEWAI_DATABASE_URL=" in answer.out
    report = json.loads(path.read_text())
    assert problems("export-to-postgres", report) == []
    assert report["committed"] is True
    counts = {table["name"]: table["rows"] for table in report["tables"]}
    assert counts_of(postgres, database) == counts
    assert all(table["compared"]["same"] for table in report["tables"])


def test_json_says_everything_that_the_report_says(home: Home, postgres: Server) -> None:
    """A move, the plan before it and the verification after it: one schema."""
    url = postgres.url(at_head(postgres))

    plan = valid(export(home, url, "--plan", "--json"))
    move = valid(export(home, url, "--json"))
    verified = valid(export(home, url, "--verify-only", "--json"))

    assert [each["purpose"] for each in (plan, move, verified)] == ["plan", "move", "verify"]
    assert [each["committed"] for each in (plan, move, verified)] == [False, True, False]
    assert plan["files"] == {}
    assert plan["rows"] == move["rows"] == verified["rows"]
    assert len(move["sequences"]) == 19  # type: ignore[arg-type]
    assert [table["rows"] for table in move["learnings"]["tables"]] == [28]  # type: ignore[index]


def test_a_plan_is_shown_and_changes_nothing(home: Home, postgres: Server) -> None:
    """Who asks gets an answer, in a pipe as well; no file is left."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    answer = export(home, postgres.url(database), "--plan")

    assert answer.code == 0
    assert "rows to copy, in about" in answer.out
    assert "nothing changed" in answer.out
    assert state_of(postgres, database) == before
    assert not home.root.with_name("home.exports").exists()


def test_what_a_killed_run_left_goes_with_its_directory(home: Home, postgres: Server) -> None:
    """A plan leaves nothing, also where it found the directory of reports."""
    left = home.root.with_name("home.exports") / ".sagewai-ops-export-0badcafe"
    left.parent.mkdir(0o700)
    left.mkdir(0o700)
    (left / "copy.db").write_bytes(b"half of a copy")

    answer = export(home, postgres.url(at_head(postgres)), "--plan")

    assert answer.code == 0
    assert not left.parent.exists()


def test_findings_are_named_and_nothing_is_sent(tmp_path: Path, postgres: Server) -> None:
    """Exit 4 with table, column, kind and key; the way out is named."""
    home = spoiled(tmp_path, [FAULTS["nul"]])
    database = at_head(postgres)
    url = postgres.url(database)

    plan = export(home, url, "--plan")
    move = export(home, url)
    result = valid(export(home, url, "--on-invalid", "fail", "--json"))

    assert (plan.code, move.code) == (4, 4)
    for shown in (plan.out, move.out):
        assert "agent_runs.output_text" in shown
        assert "nul" in shown
    assert "--on-invalid repair,quarantine" in move.out
    assert plan.out.splitlines()[1].split() == ["where", "kind", "rows", "keys", "what", "repair"]
    assert "replace by U+FFFD" in plan.out
    assert result["open_findings"] == 1
    assert counts_of(postgres, database) == {}


def test_repairs_are_made_and_listed(tmp_path: Path, postgres: Server) -> None:
    """Exit 0: every row is there; each change is in a file, old value and new."""
    home = spoiled(tmp_path, [FAULTS["nul"]])
    url = postgres.url(at_head(postgres))

    answer = export(home, url, "--on-invalid", "repair", "--json")
    result = valid(answer)

    assert (answer.code, result["committed"]) == (0, True)
    assert (result["mended"], result["refused"]) == (1, 0)
    (line,) = Path(answer.result["files"]["changes"]).read_text().splitlines()
    assert json.loads(line)["table"] == "agent_runs"
    verified = export(home, url, "--verify-only", "--on-invalid", "repair", "--json")
    assert verified.code == 0


def test_repair_names_the_findings_without_a_repair(tmp_path: Path, postgres: Server) -> None:
    """Nothing is sent; with quarantine, these rows are omitted and the others repaired."""
    home = spoiled(tmp_path, [FAULTS["nul"], FAULTS["moment"]])
    database = at_head(postgres)
    url = postgres.url(database)

    refused = export(home, url, "--on-invalid", "repair")
    nothing_sent = counts_of(postgres, database) == {}
    answer = export(home, url, "--on-invalid", "repair,quarantine", "--json")
    result = valid(answer)

    assert (refused.code, nothing_sent) == (4, True)
    assert "  no repair: workflow_runs.created_at, not-a-timestamp, 1 rows\n" in refused.out
    assert "no repair: agent_runs.output_text" not in refused.out
    assert "--on-invalid repair,quarantine" in refused.out
    assert (answer.code, result["committed"]) == (3, True)
    assert (result["mended"], result["refused"]) == (1, 1)
    repairs = {found["kind"]: found["repair"] for found in answer.result["findings"]}
    assert repairs == {"nul": "replace by U+FFFD", "not-a-timestamp": "none"}


def test_refused_rows_make_the_move_incomplete(tmp_path: Path, postgres: Server) -> None:
    """Exit 3, a warning also under cron, and the rows whole in a file."""
    home = spoiled(tmp_path, MENDABLE)
    url = postgres.url(at_head(postgres))

    answer = export(home, url, "--on-invalid", "quarantine")

    (report,) = home.root.with_name("spoiled.exports").glob("move-*[0-9a-f].json")
    result = json.loads(report.read_text())
    refused = Path(result["files"]["refused"])
    assert answer.code == 3
    assert f"{result['refused']} rows" in answer.err
    assert str(refused) in answer.err
    assert result["refused"] == len(refused.read_text().splitlines()) > 0
    assert problems("export-to-postgres", result) == []
    again = export(home, url, "--verify-only", "--on-invalid", "quarantine", "--json")
    assert again.code == 3


def test_verification_of_a_changed_target_is_a_difference(home: Home, postgres: Server) -> None:
    """Exit 20, two lines, and the report has the place."""
    database = at_head(postgres)
    url = postgres.url(database)
    export(home, url)
    postgres.run(database, "UPDATE budget_spend SET cost_usd = 77 WHERE id = 2")

    answer = export(home, url, "--verify-only")

    error, hint = answer.err.splitlines()
    assert answer.code == 20
    assert "table budget_spend: 1 differences" in error
    assert "cost_usd differs" in error
    assert "hint: " in hint
    (path,) = home.root.with_name("home.exports").glob("verify-*.json")
    report = json.loads(path.read_text())
    assert problems("export-to-postgres", report) == []
    (table,) = [each for each in report["tables"] if not each["compared"]["same"]]
    assert table["compared"]["first"] == [{"key": "2", "column": "cost_usd", "what": "differs"}]


def test_second_move_is_refused_in_two_lines(home: Home, postgres: Server) -> None:
    """Exit 15; in JSON the same words; nothing changes."""
    database = at_head(postgres)
    export(home, postgres.url(database))
    before = state_of(postgres, database)

    answer = export(home, postgres.url(database))
    document = export(home, postgres.url(database), "--json").document

    error, hint = answer.err.splitlines()
    assert (answer.code, document["exit_code"]) == (15, 15)
    assert "rows in 55 tables" in error
    assert "createdb" in hint
    assert problems("envelope", document) == []
    assert document["error"]["message"] in error
    assert state_of(postgres, database) == before


def test_a_home_in_use_needs_allow_live(home: Home, postgres: Server) -> None:
    """Exit 15 names the process; the rehearsal warns."""
    with opened_elsewhere(home) as process:
        refused = export(home, postgres.url(at_head(postgres)))
        rehearsed = export(home, postgres.url(at_head(postgres)), "--allow-live", "--json")

    assert refused.code == 15
    assert f"pid {process.pid}" in refused.err
    assert rehearsed.code == 0
    assert "not moved" in rehearsed.document["warnings"][0]


def test_learnings_become_facts_when_asked(home: Home, postgres: Server) -> None:
    """And stay in the home as well."""
    database = at_head(postgres)

    result = valid(export(home, postgres.url(database), "--learnings", "facts", "--json"))

    learnings = result["learnings"]
    assert isinstance(learnings, dict)
    assert learnings["choice"] == "facts"
    assert [(each["to"], each["sent"]) for each in learnings["tables"]] == [
        ("global_memory_facts", 28)
    ]
    assert postgres.rows(database, "SELECT count(*) FROM global_memory_facts") == [(28,)]


def test_learnings_become_vectors_when_asked(home: Home, postgres: Server) -> None:
    """In a table of the same name."""
    database = at_head(postgres)

    result = valid(export(home, postgres.url(database), "--learnings", "pgvector", "--json"))

    learnings = result["learnings"]
    assert isinstance(learnings, dict)
    (table,) = learnings["tables"]
    assert (table["to"], table["sent"]) == (table["table"], 28)
    assert table["neighbours"] == 0
    assert postgres.rows(database, f"SELECT count(*) FROM {table['to']}") == [(28,)]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--plan", "--verify-only"], 2, "one of the two"),
        (["--on-invalid", "ignore"], 2, "on-invalid"),
        (["--learnings", "all"], 2, "learnings"),
        ([], 2, "no URL of a PostgreSQL database"),
        (
            ["mysql://user:PASSWORD@host/x"],
            2,
            "not supported, only postgresql:// and sqlite:///",
        ),
        (["sqlite:///x.db"], 2, "the URL is not that of a PostgreSQL database"),
        (["postgresql://u:PASSWORD@127.0.0.1:1/x"], 19, "127.0.0.1:1/x"),
        (["postgresql:///x", "--url-file", "f"], 2, "the URL is given as well"),
        (["--url-file", "/no/such/file"], 10, "/no/such/file"),
    ],
)
def test_what_cannot_be_is_refused_in_two_lines(
    home: Home, words: list[str], code: int, message: str
) -> None:
    """With the code of its kind; a password on the command line is not repeated."""
    answer = export(home, *[word.replace("PASSWORD", "s3cr3t") for word in words])

    lines = answer.err.splitlines()
    assert answer.code == code
    assert answer.out == ""
    assert message in lines[0]
    assert all(line.startswith("sagewai-ops: ") for line in lines)
    assert "s3cr3t" not in answer.err


def test_without_a_home_nothing_is_asked_of_the_server(tmp_path: Path) -> None:
    """Exit 10, although no server answers there."""
    answer = call("--home", tmp_path / "no", "export-to-postgres", "postgresql://127.0.0.1:1/x")

    assert answer.code == 10
    assert "not found" in answer.err


@pytest.mark.parametrize("method", ["url", "variable", "pgpass", "url-file", "own-variable"])
def test_password_comes_from_every_usual_place_and_is_never_shown(
    home: Home, postgres: Server, tmp_path: Path, method: str
) -> None:
    """In the URL, in PGPASSWORD, in the password file, in a file with the URL."""
    role = f"mover_{method.replace('-', '_')}"
    database, url = guarded(postgres, role)
    whole = postgres.tcp_url(database, user=role, password=PASSWORD)
    words: list[object] = []
    environment = {"PGPASSWORD": "", "PGPASSFILE": os.fspath(tmp_path / "none")}
    if method == "url":
        words = [whole]
    elif method == "variable":
        words, environment["PGPASSWORD"] = [url], PASSWORD
    elif method == "pgpass":
        escaped = PASSWORD.replace(":", "\\:")
        passwords = tmp_path / "pgpass"
        passwords.write_text(f"127.0.0.1:*:*:{role}:{escaped}\n")
        passwords.chmod(0o600)
        words, environment = [url], {"PGPASSFILE": os.fspath(passwords)}
    elif method == "url-file":
        (tmp_path / "url").write_text(f"{whole}\nsecond line\n")
        words = ["--url-file", tmp_path / "url"]
    else:
        environment["SAGEWAI_DATABASE_URL"] = whole
    environment = {
        name: value for name, value in environment.items() if value or name != "PGPASSWORD"
    }

    answer = run(
        "--home", home.root, "export-to-postgres", *words, "--json", environment=environment
    )

    result = valid(answer)
    files = "".join(path.read_text() for path in home.root.with_name("home.exports").iterdir())
    assert answer.code == 0, answer.err
    assert result["committed"] is True
    for shown in (answer.out, answer.err, files):
        assert "s3cr3t" not in shown
    postgres.drop(database)


def test_wrong_password_is_refused_without_being_shown(home: Home, postgres: Server) -> None:
    """Exit 14 names role and database."""
    database, _ = guarded(postgres, "mover_wrong")
    url = postgres.tcp_url(database, user="mover_wrong", password="wr0ng")

    answer = export(home, url)

    assert answer.code == 14
    assert "mover_wrong" in answer.err
    assert "wr0ng" not in answer.err
    postgres.drop(database)


def test_report_goes_where_it_is_asked_to(home: Home, postgres: Server, tmp_path: Path) -> None:
    """Readable by its owner alone; the name is in the result."""
    path = tmp_path / "there" / "report.json"
    path.parent.mkdir()

    result = valid(export(home, postgres.url(at_head(postgres)), "--report", path, "--json"))

    assert result["files"] == {"report": str(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    assert not home.root.with_name("home.exports").exists()


def test_a_failed_move_leaves_a_report_with_its_error(home: Home, postgres: Server) -> None:
    """For the operator in the morning."""
    database = at_head(postgres)
    postgres.run(database, "INSERT INTO projects (slug, name) VALUES ('s', 'n')")

    answer = export(home, postgres.url(database))

    (path,) = home.root.with_name("home.exports").glob("move-*.json")
    report = json.loads(path.read_text())
    assert answer.code == 15
    assert problems("export-to-postgres", report) == []
    assert report["committed"] is False
    assert "not empty, rows in" in report["error"]


def test_what_comes_next_is_shown_on_a_terminal(tmp_path: Path, postgres: Server) -> None:
    """Progress while it runs; then lines that a shell takes, with the home and without a secret."""
    home = home_with(tmp_path / "a home", vectors=3)
    database, _ = guarded(postgres, "mover_terminal")
    url = postgres.tcp_url(database, user="mover_terminal", password=PASSWORD)
    command = [*COMMAND, "--home", str(home.root), "export-to-postgres", url]

    code, shown = watched(command, {**os.environ, "TERM": "xterm", "COLUMNS": "200"})

    text = shown.replace("\r", "")
    assert code == 0, text
    assert "every one compared: committed" in text
    assert "s3cr3t" not in text
    lines = [line.strip() for line in text.partition("next:\n")[2].splitlines()]
    exports = [line for line in lines if line.startswith("export ")]
    (verify,) = [line for line in lines if "--verify-only" in line]
    assert "SAGEWAI_DATABASE_URL" in exports[0]
    script = "\n".join([*exports, verify])
    done = subprocess.run(
        ["sh", "-ec", script],
        env={
            **os.environ,
            "PATH": f"{Path(COMMAND[0]).parent}{os.pathsep}{os.environ['PATH']}",
            "PGPASSWORD": PASSWORD,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no difference" in done.stdout
    assert shlex.split(verify, comments=True)[:3] == ["sagewai-ops", "--home", str(home.root)]
    for kept in ("config/", "secrets/", "3 learnings", "admin-state.json"):
        assert kept in text
    postgres.drop(database)


def test_a_table_of_the_users_own_makes_the_move_incomplete(home: Home, postgres: Server) -> None:
    """It is named in the findings, and exit 3 means that something was not copied."""
    with sqlite3.connect(home.database) as connection:
        connection.execute("CREATE TABLE my_notes (id INTEGER PRIMARY KEY, note TEXT)")
        connection.execute("INSERT INTO my_notes (note) VALUES ('mine')")
    connection.close()

    answer = export(home, postgres.url(at_head(postgres)), "--on-invalid", "quarantine", "--json")

    result = valid(answer)
    assert answer.code == 3
    assert "my_notes" in [each["table"] for each in answer.result["findings"]]
    assert result["committed"] is True


def test_a_home_in_utf_16_is_moved(postgres: Server, tmp_path: Path) -> None:
    """Texts and names are the same, whatever encoding the database began with."""
    home = home_with(tmp_path / "home")
    name = postgres.create()
    url = postgres.url(name)
    recode(home.database, "UTF-16be")

    moved = export(home, url, "--json")

    assert moved.code == 0, moved
    assert export(home, "--verify-only", url).code == 0
    assert moved.result["rows"] > 55


def test_a_resumable_move_continues_is_shown_and_is_abandoned(home: Home, postgres: Server) -> None:
    """The server stops the first run as its tables move; each step is reported, in JSON too."""
    database = postgres.create()
    url = postgres.url(database)
    postgres.run(
        database,
        "CREATE FUNCTION stop() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind = 'r') THEN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'full';"
        " END IF; END $$",
        "CREATE EVENT TRIGGER stop ON ddl_command_end EXECUTE FUNCTION stop()",
    )
    assert "no unfinished export" in export(home, url, "--abandon").out

    failed = export(home, url, "--resumable")
    postgres.run(database, "DROP EVENT TRIGGER stop")
    status = call("--home", home.root, "status")
    plan = export(home, url, "--plan")
    shown = export(home, url, "--abandon", "--dry-run")
    unasked = export(home, url, "--abandon")
    removed = valid(export(home, url, "--abandon", "--yes", "--json"))

    assert failed.code == 13, failed.err
    assert "--resumable  # continues" in failed.err
    assert "unfinished since" in status.err
    assert "a resumable export is unfinished" in plan.err
    assert "to remove: " in shown.out
    assert unasked.code == 2
    assert removed["purpose"] == "abandon"
    assert removed["resumable"]["rows_before"] > 0  # type: ignore[index]
    moved = valid(export(home, url, "--resumable", "--json"))
    assert moved["committed"] is True
    assert moved["resumable"]["resumed"] is False  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (("--resumable", "--abandon"), "--resumable", "--abandon"),
        (("--resumable", "--plan"), "--resumable", "--plan"),
        (("--resumable", "--verify-only"), "--resumable", "--verify-only"),
        (("--resumable", "--allow-live"), "--resumable", "--allow-live"),
        (("--resumable", "--live-first"), "--resumable", "--live-first"),
        (("--abandon", "--verify-only"), "--abandon", "--verify-only"),
    ],
)
def test_options_that_contradict_a_resumable_move_are_refused(
    home: Home, words: tuple[str, ...], first: str, second: str
) -> None:
    """Before anything is read."""
    answer = export(home, "postgresql://user@127.0.0.1:1/none", *words)

    assert answer.code == 2
    assert f"{first} and {second}: one of the two" in answer.err


def _changer(tmp_path: Path, home: Home) -> str:
    """Return a command that writes to the home, as a Sagewai that stops does."""
    program = tmp_path / "stop sagewai.py"
    program.write_text(
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute(\"UPDATE agent_runs SET output_text = 'later'\")\n"
        "connection.execute('DELETE FROM rate_limits')\n"
        "connection.commit()\n"
        "print('a secret of the service')\n"
    )
    return shlex.join([sys.executable, str(program), str(home.database)])


def test_live_first_copies_what_is_written_until_sagewai_has_stopped(
    home: Home, postgres: Server, tmp_path: Path
) -> None:
    """The stop command writes; its output is not shown, and the report counts the changes."""
    database = at_head(postgres)
    words = ("--live-first", "--stop-command", _changer(tmp_path, home), "--compare", "full")

    answer = export(home, postgres.url(database), *words, "--json")

    result = valid(answer)
    caught_up = result["caught_up"]
    assert isinstance(caught_up, dict)
    assert (answer.code, answer.err) == (0, "")
    assert "a secret" not in answer.out
    assert caught_up["sent"] > 0
    assert caught_up["deleted"] > caught_up["sent"]
    assert caught_up["stopped_seconds"] > 0
    assert "rate_limits" not in counts_of(postgres, database)
    assert export(home, "--verify-only", postgres.url(database)).code == 0


def test_live_first_asks_people_to_stop_sagewai(home: Home, postgres: Server) -> None:
    """On stderr, whether quiet or not; the summary has the seconds."""
    answer = export(home, postgres.url(at_head(postgres)), "--live-first", "--quiet")

    assert answer.code == 0
    assert answer.err == (
        "stop Sagewai now: server, workers, harness; the export goes on when they have stopped,"
        " and waits 300 s\n"
    )
    assert "Sagewai stopped for " in answer.out


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("/no/such/stop", 10, "stop command /no/such/stop: no such file or directory"),
        ("sh -c 'echo secret; exit 3'", 15, "stop command sh: exit code 3"),
        ("sh -c 'kill -9 $$'", 15, "stop command sh: ended by signal 9"),
        ("sleep 60", 15, "stop command sleep: not ended within 1 s"),
    ],
)
def test_a_stop_command_that_fails_ends_the_export(
    home: Home, postgres: Server, command: str, code: int, message: str
) -> None:
    """Nothing was changed; its arguments and its output are not shown."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    words = ("--live-first", "--stop-command", command, "--wait", "1")

    answer = export(home, postgres.url(database), *words)

    assert answer.code == code
    assert f"error: {message}\n" in answer.err
    assert "warning: nothing was changed: Sagewai can be started again\n" in answer.err
    assert "secret" not in answer.err + answer.out
    assert state_of(postgres, database) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stop-command", "true"), "--stop-command: needs --live-first"),
        (("--wait", "3"), "--wait: needs --live-first"),
        (("--compare", "full"), "--compare: needs --live-first"),
        (("--live-first", "--verify-only"), "--live-first and --verify-only: one of the two"),
        (("--live-first", "--allow-live"), "--live-first and --allow-live: one of the two"),
        (("--live-first", "--stop-command", "'"), "no closing quotation"),
    ],
)
def test_options_that_contradict_live_first_are_refused(
    home: Home, words: tuple[str, ...], message: str
) -> None:
    """Exit 2, before the server is asked."""
    answer = export(home, "postgresql://127.0.0.1:1/x", *words)

    assert answer.code == 2
    assert message in answer.err


def test_a_plan_of_live_first_changes_nothing(home: Home, postgres: Server) -> None:
    """Nothing has to stop for it. It finds a time limit that would end the session."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    planned = export(home, postgres.url(database), "--live-first", "--plan")
    limited = export(
        home, f"{postgres.url(database)}&statement_timeout=9000", "--live-first", "--plan"
    )

    assert (planned.code, planned.err) == (0, "")
    assert limited.code == 14
    assert "statement_timeout = 9000ms" in limited.err
    assert state_of(postgres, database) == before
