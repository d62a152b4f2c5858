"""`status` as people and scripts meet it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from archives import flip
from json_schemas import problems
from program import COMMAND, call, run, taken
from pseudo_terminal import watched
from small_homes import everything_of, small
from unprivileged import reachable_directory, unprivileged


def test_it_is_shown_without_a_terminal_too(tmp_path: Path) -> None:
    """Who asks gets an answer, in a pipe as well."""
    built = small(tmp_path / "home")
    before = everything_of(built.root)

    answer = run("--home", built.root, "status")

    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.startswith(f"home {built.root}\n")
    assert "none in" in answer.out
    assert everything_of(built.root) == before


def test_json_has_every_table_and_the_key_without_its_value(tmp_path: Path) -> None:
    """One object; the fingerprint names the key."""
    built = small(tmp_path / "home")
    backup = call("--home", built.root, "backup", "--json")

    answer = call("--home", built.root, "status", "--json")

    result = answer.result
    assert result["layout"] == "canonical"
    assert result["database"]["tables"]["sessions"] == 1
    assert result["key_fingerprint"] == backup.result["key_fingerprint"]
    assert result["snapshots"]["newest"]["id"] == backup.result["id"]
    assert built.master_keys[0].decode() not in answer.out


def test_a_snapshot_older_than_max_age_is_a_finding(tmp_path: Path) -> None:
    """For the health check of a container: none and an old one are 4, a new one is 0."""
    home = small(tmp_path / "home").root
    at_home = ("--home", home, "status", "--max-age", "26h", "--json")
    without = call(*at_home)
    archive = taken(call("--home", home, "backup", "--json"))
    recent = call(*at_home)
    old = archive.name.replace(archive.name[8:16], "20250101")
    for suffix in ("", ".json"):
        archive.with_name(archive.name + suffix).rename(archive.with_name(old + suffix))
    invalid = call("--home", home, "status", "--max-age", "soon")

    assert (without.code, recent.code) == (4, 0)
    assert without.document["status"] == "findings"
    assert any("no good one" in text for text in without.document["warnings"])
    assert call(*at_home).code == 4
    assert (invalid.code, "--max-age soon: not a span" in invalid.err) == (2, True)


def test_a_key_that_sagewai_would_replace_is_reported_first(tmp_path: Path) -> None:
    """A warning on stderr, before anything else can happen to it."""
    built = small(tmp_path / "home")
    built.master_key.chmod(0o640)

    answer = call("--home", built.root, "status")

    assert answer.code == 0
    assert answer.err.startswith("sagewai-ops: warning: ")
    assert "0640" in answer.err
    assert "new key" in answer.err


def test_documents_that_are_none_are_warned_of(tmp_path: Path) -> None:
    """What is wrong, and nothing of the content."""
    built = small(tmp_path / "home")
    built.connections.write_text('{"secret": "hunter2"')

    answer = call("--home", built.root, "status")

    assert "config/connections.json" in answer.err
    assert "hunter2" not in answer.out + answer.err


def test_a_damaged_schema_is_reported(tmp_path: Path) -> None:
    """It opens, and breaks at the first question; all else is still reported."""
    built = small(tmp_path / "home", journal="none")
    with built.database.open("r+b") as file:
        file.seek(100)  # behind the header: the root of the schema
        file.write(b"\xff" * 400)

    answer = call("--home", built.root, "status")
    as_json = call("--home", built.root, "status", "--json")

    assert (answer.code, as_json.code) == (0, 0)
    assert "malformed" in answer.err
    assert "cannot be read" in answer.out
    assert "malformed" in as_json.result["database"]["problem"]
    assert as_json.result["documents"]


def test_tables_on_a_server_are_reported_as_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted here is not what Sagewai works with; the URL is not shown."""
    built = small(tmp_path / "home")
    monkeypatch.setenv("DATABASE_URL", "postgresql://sagewai:hunter2@db.example.org/sagewai")

    answer = call("--home", built.root, "status")

    assert "DATABASE_URL: Sagewai's tables are on that server" in answer.out
    assert "hunter2" not in answer.out + answer.err


def test_what_may_not_be_read_is_not_passed_over() -> None:
    """Else another user reads that a home has no documents and no key."""
    with reachable_directory() as directory:
        built = small(directory / "home")
        built.root.chmod(0o755)
        for part in ("config", "db", "data"):
            (built.root / part).chmod(0o755)
        for path in (built.connections, built.root / "config/admin-state.json"):
            path.chmod(0o644)
        built.connections.chmod(0)
        (built.root / "secrets").chmod(0)
        with unprivileged():
            answer = call("--home", built.root, "status")
        (built.root / "secrets").chmod(0o700)

    assert answer.code == 0
    assert f"{built.root}/secrets: not readable" in answer.err
    assert f"{built.connections}: not readable" in answer.err
    assert "admin-state.json: may" not in answer.err


def test_a_database_that_is_held_is_reported_after_a_short_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is shown; who asks how things are does not wait as long as a backup does."""
    built = small(tmp_path / "home", journal="none")
    monkeypatch.setattr("sagewai_ops.operations.status._WAIT_SECONDS", 0.0)
    monkeypatch.setattr("sagewai_ops.operations.status.read_inventory", None)  # it would wait, too
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA locking_mode=EXCLUSIVE'); c.execute('BEGIN EXCLUSIVE');"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, built.database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        answer = call("--home", built.root, "status", "--json")
        check = call("--home", built.root, "db", "check", "--wait", "0")
        holder.kill()

    assert check.code == 11
    assert "hint: sagewai-ops status" in check.err
    assert answer.code == 0
    assert "locked by another process" in answer.document["warnings"][0]
    assert answer.result["used_by"][0]["pid"] == holder.pid


def test_no_home_exits_10_with_a_hint(tmp_path: Path) -> None:
    """How to name one, or to make one."""
    answer = run("--home", tmp_path / "none", "status")

    assert answer.code == 10
    assert answer.out == ""
    assert [line.split(": ")[1] for line in answer.err.splitlines()] == ["error", "hint"]


def test_a_terminal_sees_colour_and_a_dumb_one_does_not(tmp_path: Path) -> None:
    """The same words either way."""
    built = small(tmp_path / "home")
    command = [*COMMAND, "--home", str(built.root), "status"]
    plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}

    _code, coloured = watched(command, {**plain, "TERM": "xterm"})
    _code, unset = watched(command, {**plain, "TERM": "xterm", "NO_COLOR": ""})
    _code, dumb = watched(command, {**plain, "TERM": "dumb"})

    assert "\x1b[" in coloured
    assert unset == coloured
    assert "\x1b[" not in dumb
    assert f"home {built.root}" in dumb


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    """`status | head -0` ends without a word."""
    built = small(tmp_path / "home")
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [*COMMAND, "--home", built.root, "status"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (141, b"")


def test_the_proof_of_a_drill_is_shown_and_so_is_its_absence(tmp_path: Path) -> None:
    """First none, then the newest, then an older one and that the newest failed."""
    built = small(tmp_path / "home")
    first = call("--home", built.root, "backup", "--json").result["id"]
    assert "none restorable yet" in call("--home", built.root, "status").out

    moment = call("--home", built.root, "drill", "--json").result["proved_restorable_at"]
    shown = call("--home", built.root, "status").out
    assert f"the newest restorable {moment}" in shown

    newer = taken(call("--home", built.root, "backup", "--json"))
    flip(newer)
    assert call("--home", built.root, "drill", newer).code == 16

    shown = call("--home", built.root, "status").out
    snapshots = call("--home", built.root, "status", "--json").result["snapshots"]
    assert f"{first} restorable {moment}" in shown
    assert f"drill      of {snapshots['newest']['id']} failed" in shown
    assert snapshots["proved"]["proved_restorable_at"] == moment
    assert snapshots["newest"]["proved_restorable_at"] is None
    assert snapshots["newest"]["drill"]["outcome"] == "failed"


def test_json_has_the_documented_shape(tmp_path: Path) -> None:
    """With everything that can be there, and with next to nothing."""
    built = small(tmp_path / "home")
    bare = tmp_path / "bare"
    bare.mkdir()
    call("--home", built.root, "backup", "-q")
    call("--home", built.root, "drill", "-q")
    built.connections.write_text("{")

    answers = [call("--home", root, "status", "--json") for root in (built.root, bare)]

    assert [problems("status", answer.result) for answer in answers] == [[], []]
