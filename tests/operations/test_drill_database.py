"""Drills of a server's database: on a private server, or on one that is named."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from other_process import running
from postgres_server import Server
from program import PATIENCE_SECONDS, Answer, call
from sagewai_ops.archive import open as archive_open
from sagewai_ops.backup.report import BackupReport
from sagewai_ops.database.postgres import private_server
from sagewai_ops.database.postgres.private_server import (
    Installation,
    choose_installation,
    start_private_server,
)
from sagewai_ops.database.postgres.sessions import read_sessions
from sagewai_ops.errors import DifferenceError, RemoteError
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.operations import drill_database
from sagewai_ops.restore.server import ServerRestore
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.snapshots.cards import read_card
from server_homes import ServerHome, facts_of, home_and_snapshot, make_server_home
from small_homes import everything_of
from step_counter import killed
from targets import url_of
from unprivileged import reachable_directory

OLD = "019_fleet_tasks"
PRIVATE = """
from pathlib import Path
from sagewai_ops.database.postgres.private_server import find_installations, start_private_server
directory = Path(sys.argv[1])
with start_private_server(find_installations()[-1], directory):
    pause()
"""


@pytest.fixture(scope="module")
def original(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerHome, BackupReport]]:
    """A home on a server at an older revision, and its snapshot."""
    yield from home_and_snapshot(tmp_path_factory, revision=OLD)


@pytest.fixture
def home(original: tuple[ServerHome, BackupReport]) -> ServerHome:
    """That home."""
    return original[0]


@pytest.fixture
def archive(original: tuple[ServerHome, BackupReport]) -> Path:
    """Its snapshot."""
    assert original[1].path
    return original[1].path


@pytest.fixture
def role(postgres: Server) -> Iterator[str]:
    """The name of a role that may create databases."""
    name = f"scratch_{os.getpid()}"
    postgres.run("postgres", f"CREATE ROLE {name} LOGIN CREATEDB")
    yield name
    postgres.run("postgres", f"DROP ROLE {name}")


@pytest.fixture
def scratch(postgres: Server, role: str, tmp_path: Path) -> Path:
    """A file with the URL of the server for that role."""
    return _file(tmp_path, postgres.url("postgres", user=role))


def _file(directory: Path, url: str) -> Path:
    file = directory / "scratch-url"
    file.write_text(url)
    file.chmod(0o600)
    return file


def drill(home: ServerHome, *words: object) -> Answer:
    """Drill the latest snapshot; the variable of the home's server is not set."""
    return call("--home", home.root, "drill", "--json", *words)


def left(server: Server) -> list[str]:
    """Return the databases that drills left."""
    query = "SELECT datname::text FROM pg_database WHERE datname LIKE 'sagewai_drill%' ORDER BY 1"
    return [str(name) for (name,) in server.rows("postgres", query)]


def servers(parent: int) -> set[str]:
    """Return the private servers that a process started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = f"PPid:\t{parent}\n" in (path / "status").read_text()
            if is_child and b"unix_socket_directories=." in (path / "cmdline").read_bytes():
                found.add(path.name)
    return found


def test_database_is_proved_on_a_private_server(home: ServerHome, archive: Path) -> None:
    """Restored, compared and upgraded; the card names the version, and nothing is left."""
    before = everything_of(home.root)

    answer = drill(home)

    assert answer.code == 0, answer.err
    result = answer.result
    assert (result["outcome"], result["recorded"], result["findings"]) == ("proved", True, [])
    assert result["checked"] == ["restore", "database", "keys", "permissions", "upgrade"]
    server = result["server"]
    assert (server["private"], server["before"], server["after"]) == (True, [OLD], [HEAD])
    assert server["rows"] == facts_of_archive(home).rows
    card = read_card(archive)
    assert card["drill"]["database"] == f"PostgreSQL {server['version']}"
    assert card["proved_restorable_at"] == result["at"]
    assert (servers(os.getpid()), everything_of(home.root)) == (set(), before)
    assert [name for name in os.listdir(archive.parent) if name.startswith(".sagewai-2")] == []


@pytest.mark.parametrize(
    "installation", private_server.find_installations(), ids=lambda found: found.version
)
def test_every_installed_server_starts(installation: Installation, tmp_path: Path) -> None:
    """Also for root, whose directories are closed to the user of the server."""
    tmp_path.chmod(0o700)
    with start_private_server(installation, tmp_path) as url:
        assert read_sessions(url) == ()


def test_user_without_a_name_has_a_private_server() -> None:
    """As in many containers: initdb refuses such a user, who has a name in a user namespace."""
    if os.getuid():
        pytest.skip("only root takes another uid")

    def start(place: Path) -> None:
        place.mkdir(0o700)
        with start_private_server(private_server.find_installations()[0], place) as url:
            assert read_sessions(url) == ()

    def start_without_a_name() -> None:
        os.setgroups([])
        os.setgid(40001)
        os.setuid(40001)
        start(directory / "other")

    with reachable_directory() as directory:
        start(directory / "own")  # and import what may be out of the other user's reach
        assert not killed(start_without_a_name)


def test_archive_is_opened_once(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a passphrase that takes a second and 256 MiB each time."""
    opened = []

    def count(stream: object, name: str, decryption: object) -> object:
        opened.append(name)
        return original_input(stream, name, decryption)

    original_input: Any = archive_open._open_input
    monkeypatch.setattr(archive_open, "_open_input", count)

    assert drill(home).code == 0
    assert len(opened) == 1


def facts_of_archive(home: ServerHome) -> Any:
    """Return the record of the server in the latest snapshot."""
    from sagewai_ops.archive.open import open_archive
    from sagewai_ops.snapshots.server_database import read_server

    (path,) = home.snapshots.glob("*.tar.zst")
    with open_archive(path) as reader:
        found = read_server(reader.manifest)
    assert found
    return found


def test_database_is_proved_on_a_server_that_is_named(
    home: ServerHome, archive: Path, scratch: Path
) -> None:
    """In a database of its own, which is dropped; people see the rows and the version."""
    answer = call("--home", home.root, "-v", "drill", "--scratch-url-file", scratch)

    assert answer.code == 0, answer.err
    version = home.server.rows("postgres", "SHOW server_version")[0][0]
    assert re.search(
        rf"server +\d+ rows in \d+ tables, the same on a PostgreSQL {version}", answer.out
    )
    assert f"upgrade   {OLD} to {HEAD}, 1 revisions" in answer.out
    assert read_card(archive)["drill"]["database"] == f"PostgreSQL {version}"
    assert left(home.server) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_scratch_database_is_dropped_after_a_failure_too(
    home: ServerHome,
    archive: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int | None,
) -> None:
    """A signal changes nothing; a table that differs is a failed drill."""
    card = read_card(archive)
    seen = []

    def stop(*_arguments: object) -> None:
        seen.extend(left(home.server))
        if number:
            os.kill(os.getpid(), number)
        raise DifferenceError("table sessions differs")

    monkeypatch.setattr(ServerRestore, "compare", stop)

    answer = drill(home, "--scratch-url-file", scratch)

    assert len(seen) == 1
    assert left(home.server) == []
    if number:
        assert (answer.code, read_card(archive)) == (143, card)
    else:
        assert answer.code == 20
        assert read_card(archive)["drill"]["outcome"] == "failed"


def test_leftover_of_a_killed_run_is_dropped_by_a_later_one(
    home: ServerHome, scratch: Path, role: str
) -> None:
    """An hour later: until then it may be of a live one. Databases of other names stay."""
    server = home.server
    now = time.strftime("%Y%m%dt%H%M%Sz", time.gmtime())
    names = [
        "sagewai_drill_20200101t000000z_0123ab",
        f"sagewai_drill_{now}_0123ab",
        "sagewai_drill_mine",
    ]
    for name in names:
        server.run("postgres", f"CREATE DATABASE {name} OWNER {role} TEMPLATE template0")

    assert drill(home, "--scratch-url-file", scratch).code == 0

    kept = left(server)
    for name in kept:
        server.drop(name)
    assert kept == names[1:]


def test_server_that_cannot_be_used_is_no_fault_of_the_snapshot(
    home: ServerHome, archive: Path, postgres: Server, tmp_path: Path
) -> None:
    """Without the privilege, unreachable, or no PostgreSQL: the card stays as it was."""
    card = read_card(archive)
    role = f"plain_{os.getpid()}"
    postgres.run("postgres", f"CREATE ROLE {role} LOGIN")
    plain = _file(tmp_path, postgres.url("postgres", user=role))

    refused = drill(home, "--scratch-url-file", plain)
    gone = drill(home, "--scratch-url", "postgresql://u@127.0.0.1:1/d")
    other = drill(home, "--scratch-url", "sqlite:////tmp/x")
    both = drill(home, "--scratch-url", "postgresql://u@h/d", "--scratch-url-file", plain)

    postgres.run("postgres", f"DROP ROLE {role}")
    assert (refused.code, gone.code, other.code, both.code) == (14, 19, 2, 2)
    assert "ALTER ROLE" in refused.document["error"]["hint"][0]
    assert read_card(archive) == card


def test_private_server_that_does_not_start_is_no_fault_of_the_snapshot(
    home: ServerHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are drilled, the reason is a finding, and the card stays as it was."""
    card = read_card(archive)
    monkeypatch.setitem(private_server._SETTINGS, "shared_buffers", "none")

    answer = drill(home)

    assert (answer.code, answer.result["outcome"]) == (4, "unproved")
    assert not answer.result["recorded"]
    (finding,) = answer.result["findings"]
    assert "private server, PostgreSQL" in finding["text"]
    assert "not started" in finding["text"]
    assert read_card(archive) == card


def test_extension_that_the_server_lacks_is_no_fault_of_the_snapshot(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it the drill is proved, without it the reason is named and the card not changed."""
    if not postgres.rows("postgres", "SELECT 1 FROM pg_available_extensions WHERE name='vector'"):
        pytest.skip("no pgvector here")
    made = make_server_home(tmp_path / "home", postgres)
    made.run("CREATE EXTENSION vector", "CREATE TABLE own (v vector(3))",
             "INSERT INTO own VALUES ('[1,2,3]')")  # fmt: skip
    report = made.back_up()
    assert report.path
    assert "vector" in facts_of(report).extensions

    proved = drill(made)
    card = read_card(report.path)
    monkeypatch.setattr(private_server, "_EXTENSIONS", frozenset())
    lacking = drill(made)

    postgres.drop(made.database)
    assert (proved.code, proved.result["outcome"]) == (0, "proved"), proved.err
    assert (lacking.code, lacking.result["outcome"]) == (4, "unproved")
    assert (
        "private server: extension vector: not installed" in lacking.result["findings"][0]["text"]
    )
    assert read_card(report.path) == card


def test_sequences_are_those_of_the_snapshot(home: ServerHome) -> None:
    """In value, and in whether the value was used."""
    facts = facts_of_archive(home)
    url = url_of(home.server, home.database)

    assert drill_database.check_sequences(url, facts)
    first, *others = facts.sequences
    for changed in (
        replace(first, last_value=first.last_value + 1),
        replace(first, is_called=not first.is_called),
    ):
        with pytest.raises(DifferenceError, match="sequence"):
            drill_database.check_sequences(url, replace(facts, sequences=(changed, *others)))


def test_killed_run_leaves_no_server_and_what_the_next_one_sweeps(tmp_path: Path) -> None:
    """The server ends with its process; its directory is recognised."""
    if not private_server.find_installations():
        pytest.skip("no PostgreSQL here")
    directory = tmp_path / ".sagewai-20261129T000000Z-0123ab.drill"
    directory.mkdir(mode=0o700)
    with running(PRIVATE, str(directory)) as process:
        started = servers(process.pid)
        process.kill()

    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(Path("/proc", pid).exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started
    assert not any(Path("/proc", pid).exists() for pid in started)
    names = re.compile(re.escape(directory.name))
    assert sweep_leftovers(tmp_path, names) == [directory.name]


def test_installation_is_not_older_than_the_server_if_possible() -> None:
    """Else the newest one."""
    installed = [Installation(Path(f"/{major}"), f"{major}.1", major) for major in (14, 16, 18)]

    def chosen(major: int) -> int:
        found = choose_installation(installed, major)
        assert found
        return found.major

    assert [chosen(major) for major in (0, 14, 15, 18, 19)] == [14, 14, 16, 18, 18]
    assert choose_installation([], 16) is None


def test_refusal_of_an_older_server_is_not_one_of_the_snapshot() -> None:
    """A statement that only the newer one knows; rows that differ are of the snapshot."""
    refusal = DifferenceError("syntax")
    refusal.__cause__ = ValueError()

    def causes(*, is_private: bool = False, is_older: bool = False) -> list[bool]:
        found = drill_database.DrillServer(is_private=is_private, is_older=is_older)
        errors = (refusal, DifferenceError("rows"), RemoteError("lost"))
        return [found.is_cause(error) for error in errors]

    assert causes(is_private=True, is_older=True) == [True, False, True]
    assert causes(is_private=True) == [False, False, True]
    assert causes() == [False, False, False]
