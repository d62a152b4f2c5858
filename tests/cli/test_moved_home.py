"""A home whose database was moved to a server, as people meet it without the variable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from other_process import running
from postgres_server import Server
from program import Answer, call
from sagewai_ops.backup.scanner import scan_home
from sagewai_ops.home.paths import locate
from sagewai_ops.home.server_record import PLACE, read_server_record
from sagewai_ops.schema.revision_graph import HEAD
from targets import at_head, copy_of, home_with

WITHOUT_URL = [
    ("db", "current"),
    ("db", "check"),
    ("db", "upgrade"),
    ("db", "downgrade", "base", "--yes"),
    ("keys", "check"),
    ("keys", "rotate", "--no-snapshot", "--yes"),
    ("keys", "rotate", "--no-snapshot", "--dry-run"),
    ("migrate-layout",),
    ("migrate-layout", "--dry-run"),
    ("preflight", "--no-snapshot"),
]

SESSION = """
import asyncio, asyncpg
async def main():
    connection = await asyncpg.connect(sys.argv[1])
    pause()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a little in every table."""
    return home_with(tmp_path_factory.mktemp("original") / "home").root


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return copy_of(locate(original, {}), tmp_path / "copy-of-original").root


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A home with the record of a server that does not exist, and a SQLite file."""
    home = tmp_path / "home"
    assert call("--home", home, "init").code == 0
    (home / PLACE).write_text(
        '{"version": 1, "host": "db.invalid", "port": "5432", "database": "sagewai",'
        ' "recorded_at": "2026-11-29T01:02:03Z"}'
    )
    (home / PLACE).chmod(0o600)
    return home


def of(home: Path, *words: object) -> Answer:
    """Run a command on a home."""
    return call("--home", home, *words)


@pytest.mark.parametrize("words", WITHOUT_URL, ids=" ".join)
def test_command_that_needs_the_database_stops(moved: Path, words: tuple[str, ...]) -> None:
    """Exit 2 names the database and the variable; nothing was done to the old file."""
    before = (moved / "db/sagewai.db").read_bytes()

    answer = of(moved, *words)

    assert answer.code == 2
    assert "postgresql://db.invalid:5432/sagewai since 2026-11-29" in answer.err
    assert "export SAGEWAI_DATABASE_URL=" in answer.err
    assert (moved / "db/sagewai.db").read_bytes() == before


@pytest.mark.parametrize("words", [("db", "current"), ("db", "check"), ("keys", "check")])
def test_home_that_moved_back(moved: Path, words: tuple[str, ...]) -> None:
    """--sqlite for one run, and without the record for every run."""
    assert of(moved, *words, "--sqlite").code == 0
    assert of(moved, *words).code == 2

    (moved / PLACE).unlink()

    assert of(moved, *words).code == 0


def test_sqlite_precedes_a_variable(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is stronger; both options are a contradiction."""
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", "postgresql://user@127.0.0.1:1/none")

    assert of(moved, "db", "current").code == 19
    assert of(moved, "db", "current", "--sqlite").code == 0
    assert of(moved, "db", "current", "--sqlite", "--url-file", moved / "x").code == 2


def test_export_records_the_server(
    copy: Path, postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the commit, neither for a plan nor for a rehearsal; a file with the URL satisfies."""
    database = at_head(postgres)
    url = postgres.url(database)
    file = tmp_path / "url"
    file.write_text(url + "\n")
    file.chmod(0o600)

    assert of(copy, "export-to-postgres", "--plan", "--url-file", file).code == 0
    assert read_server_record(copy) is None
    assert of(copy, "export-to-postgres", "--url-file", file).code == 0

    record = read_server_record(copy)
    assert record is not None
    assert (record.database, record.port) == (database, str(postgres.port))
    assert of(copy, "db", "current").code == 2
    answer = of(copy, "db", "current", "--url-file", file, "--json")
    assert (answer.code, answer.result["engine"]) == (0, "postgresql")
    monkeypatch.setenv("DATABASE_URL", url)
    assert of(copy, "db", "current", "--json").result["engine"] == "postgresql"


def test_rehearsal_with_a_live_home_records_nothing(
    copy: Path, postgres: Server, tmp_path: Path
) -> None:
    """The home still uses its SQLite file."""
    answer = of(copy, "export-to-postgres", postgres.url(at_head(postgres)), "--allow-live")

    assert answer.code == 0
    assert read_server_record(copy) is None


def test_upgrade_of_a_server_records_it(
    copy: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --home; without it the home of the shell may be another one."""
    database = at_head(postgres)
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", postgres.url(database))
    monkeypatch.setenv("SAGEWAI_HOME", str(copy))

    assert call("db", "upgrade").code == 0
    assert read_server_record(copy) is None
    assert of(copy, "db", "upgrade", "--dry-run").code == 0
    assert read_server_record(copy) is None
    assert of(copy, "db", "upgrade").code == 0

    record = read_server_record(copy)
    assert record is not None
    assert record.database == database


def test_snapshot_includes_the_record(moved: Path) -> None:
    """A restored home knows where its database is."""
    items = {item.path: item.type for item in scan_home(locate(moved, {})).items}

    assert items[PLACE] == "file"


@pytest.fixture
def connected(copy: Path, tmp_path: Path, postgres: Server) -> Iterator[tuple[Path, Path]]:
    """A copy of a home and the file with its server's URL, to which a Sagewai is connected."""
    database = at_head(postgres)
    file = tmp_path / "url"
    file.write_text(postgres.url(database))
    file.chmod(0o600)
    with running(SESSION, file.read_text()):
        yield copy, file


@pytest.mark.parametrize(
    "words",
    [
        ("restore", "latest", "--replace"),
        ("restore", "latest", "--replace", "--dry-run"),
        ("keys", "rotate", "--no-snapshot", "--yes"),
        ("migrate-layout",),
    ],
    ids=" ".join,
)
def test_sagewai_on_the_server_is_use(connected: tuple[Path, Path], words: tuple[str, ...]) -> None:
    """It has no file of the home open; exit 15 names its session, and nothing is changed."""
    home, file = connected
    assert of(home, "backup").code == 0
    if words[0] == "migrate-layout":
        (home / "config/admin-state.json").rename(home / "admin-state.json")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    answer = of(home, *words, "--url-file", file)

    assert answer.code == 15, answer.err
    assert "in use by session of postgres (server process " in answer.err
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before


def test_restore_elsewhere_asks_no_server(connected: tuple[Path, Path], tmp_path: Path) -> None:
    """The variable names the database of the home, not of a copy."""
    home, file = connected
    assert of(home, "backup").code == 0

    answer = of(home, "restore", "latest", "--to", tmp_path / "copy", "--url-file", file)

    assert answer.code == 0, answer.err


def test_process_with_a_file_of_the_home_is_use(copy: Path) -> None:
    """A worker that writes below data/, although it has no lock of SQLite."""
    assert of(copy, "backup").code == 0
    file = copy / "data/worker.log"

    with running("file = open(sys.argv[1], 'w')\npause()", str(file)) as other:
        answer = of(copy, "restore", "latest", "--replace")

    assert answer.code == 15
    assert f"pid {other.pid}" in answer.err


def test_status_without_the_url_is_not_green(moved: Path) -> None:
    """Exit 0, because it only shows; but that the database was not checked is a warning."""
    answer = of(moved, "status")
    result = of(moved, "status", "--json").result

    assert answer.code == 0
    assert "server     postgresql://db.invalid:5432/sagewai: not checked" in answer.out
    assert "database not checked: home" in answer.err
    assert "is set" in result["server"]["problem"]


def test_status_of_a_server(connected: tuple[Path, Path]) -> None:
    """Revision, rows, size and sessions; the rows of before the move are named as unused."""
    home, file = connected

    answer = of(home, "status", "--url-file", file)
    result = of(home, "status", "--url-file", file, "--json").result

    assert "connected  session of postgres (server process " in answer.out
    assert "rows in " in answer.out
    assert "of db/sagewai.db, from before the move" in answer.out
    server = result["server"]
    assert (server["problem"], server["state"], server["revisions"]) == ("", "current", [HEAD])
    assert server["size_bytes"] > 1_000_000
    assert [session["role"] for session in server["sessions"]] == ["postgres"]
    assert result["unused_tables"]["workflow_runs"] > 0


def test_check_of_a_server_lists_size_and_sessions(connected: tuple[Path, Path]) -> None:
    """What `pg_stat_activity` shows to the role."""
    home, file = connected

    answer = of(home, "db", "check", "--url-file", file)
    result = of(home, "db", "check", "--url-file", file, "--json").result

    assert "connected    session of postgres (server process " in answer.out
    assert result["size_bytes"] > 1_000_000
    assert len(result["sessions"]) == 1


def test_preflight_warns_of_sessions(connected: tuple[Path, Path]) -> None:
    """Without the URL it stops; with it the sessions are those to stop before an upgrade."""
    home, file = connected

    answer = of(home, "preflight", "--no-snapshot", "--url-file", file, "--json")

    checks = {check["check"]: check for check in answer.result["checks"]}
    assert checks["use"]["verdict"] == "warning"
    assert checks["use"]["details"][0].startswith("session of postgres")
    assert " on a server" not in checks["use"]["summary"]


def test_permissions_of_the_server_are_reported_as_unchecked(moved: Path) -> None:
    """The files are; the roles of the database are not."""
    answer = of(moved, "verify-perms", "--json")

    assert answer.result["unchecked"] == "postgresql://db.invalid:5432/sagewai"
