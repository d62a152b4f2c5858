"""`drill --from litestream`: a replica is restored, and passes the checks of a snapshot."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import litestream
from json_schemas import problems
from litestream import needs_litestream
from program import Answer, call
from sagewai_ops.database.sqlite.litestream import Replica, _Session, find_program, restore_replica
from sagewai_ops.errors import DamagedError, NoSpaceError, OpsError, RemoteError
from sagewai_ops.home.paths import DATABASE, MASTER_KEY
from small_homes import everything_of, small

pytestmark = needs_litestream
OTHER_KEY = "dGhlIGtleSBvZiBub2JvZHksIDMyIGJ5dGVzIGxvbmc="


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a replica."""
    root = small(tmp_path / "home").root
    litestream.replicate(litestream.configure(tmp_path, root / DATABASE))
    litestream.on_path(monkeypatch)
    return root


def _drill(home: Path, *words: object, source: str = "litestream") -> Answer:
    configuration = ("--litestream-config", home.parent / "litestream.yml")
    return call("--json", "--home", home, "drill", "--from", source, *configuration, *words)


def test_a_replica_is_proved(home: Path, tmp_path: Path) -> None:
    """Its rows, its encrypted values and its upgrade; the home is only read."""
    before = everything_of(home)

    answer = _drill(home, "--work-dir", tmp_path)

    assert (answer.code, answer.document["warnings"]) == (0, [])
    result = answer.result
    assert problems("drill", result) == []
    assert (result["outcome"], result["replica"]) == ("proved", str(home / DATABASE))
    assert result["checked"] == ["restore", "database", "keys", "upgrade"]
    assert result["keys"]["total"] == result["keys"]["opened"] > 0
    assert sum(result["database"]["tables"].values()) > 40
    assert everything_of(home) == before
    assert {path.name for path in tmp_path.iterdir()} == {"home", "litestream.yml", "replica"}


def test_a_dry_run_restores_nothing(home: Path) -> None:
    """It reads the replica's list, and names the last change."""
    answer = call(
        *("--home", home, "drill", "--from", "litestream", "--dry-run"),
        *("--litestream-config", home.parent / "litestream.yml"),
    )

    assert answer.code == 0
    assert (
        f"would restore litestream's replica of {home / DATABASE}, last change at 2" in answer.out
    )


def test_another_key_is_an_error_and_without_one_nothing_is_proved(home: Path) -> None:
    """As for a snapshot."""
    (home / MASTER_KEY).write_text(OTHER_KEY)

    refused = _drill(home)
    continued = _drill(home, "--without-key")

    assert refused.code == 12
    assert "no available key opens" in refused.document["error"]["message"]
    assert (continued.code, continued.result["outcome"]) == (4, "unproved")


def test_a_damaged_replica_is_an_error(home: Path, tmp_path: Path) -> None:
    """Litestream compares the checksums of its files."""
    (file,) = (tmp_path / "replica").rglob("*.ltx")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)

    answer = _drill(home)

    assert answer.code == 16
    assert "litestream's replica of" in answer.document["error"]["message"]


def test_a_moment_that_the_replica_may_not_reach_is_a_finding(home: Path) -> None:
    """The newest state is not proof of a later one."""
    answer = _drill(home, source="litestream:2199-01-01T00:00:00Z")

    assert answer.code == 4
    assert "it may not reach to that moment" in answer.result["findings"][0]["text"]


def test_no_error_shows_a_secret_of_the_configuration(home: Path, tmp_path: Path) -> None:
    """Litestream's own message has the whole URL."""
    file = tmp_path / "litestream.yml"
    file.write_text(
        f"dbs:\n  - path: {home / DATABASE}\n"
        "    replica:\n      url: sftp://backup:S3cr%etPassw0rd@host/path\n"
    )

    answer = _drill(home)

    assert answer.code in (2, 19)
    assert "***" in answer.document["error"]["message"]
    assert "Passw0rd" not in answer.out + answer.err


def test_litestream_ends_with_this_program(tmp_path: Path) -> None:
    """A kill leaves no restore that continues."""
    program, started = litestream.stub(tmp_path), tmp_path / "started"
    program.write_text(
        f"#!/bin/sh\necho $$ > {started}.new && mv {started}.new {started}\nexec sleep 60\n"
    )
    source = (
        "import sys, pathlib; from sagewai_ops.database.sqlite.litestream import find_program;"
        "find_program({'PATH': '/usr/bin:/bin'}, pathlib.Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", source, program]) as parent:
        _await(started.exists)
        parent.kill()
    number = started.read_text().strip()

    _await(lambda: not _runs(number))


def _runs(number: str) -> bool:
    """Return whether a process runs: a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _await(is_met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_may_be_a_secret_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the configuration writes it."""
    litestream.on_path(monkeypatch)
    file = tmp_path / "litestream.yml"
    file.write_text(
        "a:\n  secret-access-key: plain,with#signs  # comment\n  password: 'of two words'\n"
        'b: {"url": "sftp://user:within-url@host/p", key: in-flow, x: 1}\nc: ${NAMED}\n'
    )
    environment = {"PATH": os.environ["PATH"], "NAMED": "of-variable"}
    session = _Session.open(Replica(file, tmp_path / "x.db", environment=environment))
    secrets = ("plain,with#signs", "of two words", "within-url", "in-flow", "of-variable")

    message = session.masked(" and ".join(f"<{text}>" for text in secrets))

    assert message == " and ".join(["<***>"] * len(secrets))
    assert session.masked("dial sftp://x:y@host: refused") == "dial sftp://***@host: refused"


def test_a_restore_ends_at_its_limit(home: Path, tmp_path: Path) -> None:
    """A replica is compressed: a small one may fill a disk, or the memory."""
    replica = Replica(tmp_path / "litestream.yml", home / DATABASE, environment=dict(os.environ))
    target = tmp_path / "restored.db"

    with pytest.raises(NoSpaceError, match="file too large"):
        restore_replica(replica, target, most_bytes=65536)

    assert not target.exists()


def test_a_program_that_closes_its_output_and_stays_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of time is for the process, not for its output."""
    program = litestream.stub(tmp_path)
    program.write_text("#!/bin/sh\nexec >&- 2>&-\nexec sleep 60\n")
    monkeypatch.setattr("sagewai_ops.database.sqlite.litestream._VERSION_SECONDS", 0.5)
    started = time.monotonic()

    with pytest.raises(RemoteError, match="not ended within"):
        find_program({}, program)

    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("message", "kind"),
    [  # of 0.5.17, each from a run of it
        ("decode page 252: read page header 0: unexpected EOF", DamagedError),
        (
            "s3: list generations: operation error S3: ListObjectsV2, https response error, EOF",
            RemoteError,
        ),
        (
            "decode page 76: max retries exceeded reading ltx file: unexpected EOF",
            RemoteError,
        ),
    ],
)
def test_a_connection_that_ends_is_no_damage(
    home: Path, message: str, kind: type[OpsError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 19: another run can succeed."""
    (tmp_path / "bin").mkdir()
    program = litestream.stub(tmp_path / "bin")
    fail = f"echo 'Error: {message}' >&2; exit 1"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *" -o "*) {fail};; esac\nexec {litestream.PROGRAM} "$@"\n'
    )
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    replica = Replica(tmp_path / "litestream.yml", home / DATABASE, environment=dict(os.environ))

    with pytest.raises(OpsError) as raised:
        restore_replica(replica, tmp_path / "restored")

    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("litestream:2020-01-01T00:00:00Z", 10),
        ("litestream:2020-01-01T00:00:00", 2),
        ("litestream:yesterday", 2),
        ("litestream:", 2),
        ("restic", 2),
    ],
)
def test_a_moment_without_a_state_or_a_zone_is_refused(home: Path, source: str, code: int) -> None:
    """An hour that is taken for another one would be worse."""
    assert _drill(home, source=source).code == code


def test_what_contradicts_it_is_refused(home: Path) -> None:
    """A replica has no archive."""
    assert _drill(home, "latest").code == 2
    assert _drill(home, "--require-authentic").code == 2
    assert _drill(home, "--litestream-config", home.parent / "none").code == 10
    directory = _drill(home, "--litestream-config", home)
    assert (directory.code, directory.document["error"]["hint"]) == (
        2,
        ["name a file: --litestream-config FILE"],
    )
    assert call("--home", home, "drill", "--litestream-config", home / "none").code == 2


def test_a_database_that_is_not_in_the_configuration_is_named(home: Path, tmp_path: Path) -> None:
    """Another home's replica is not this one's."""
    litestream.configure(tmp_path, tmp_path / "other.db")

    answer = _drill(home)

    assert answer.code == 10
    assert f"database {home / DATABASE} not found in it" in answer.document["error"]["message"]


def test_secrets_reach_litestream_by_its_environment_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of that only what it or its configuration reads; the configuration is no argument."""
    log = tmp_path / "log"
    wrapper = tmp_path / "bin" / "litestream"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\n{{ echo "$@"; env; }} >> {log}\nexec {litestream.PROGRAM} "$@"\n'
    )
    wrapper.chmod(0o700)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    file = tmp_path / "litestream.yml"
    file.write_text(f"# planted-in-file\n# ${{NAMED}}\n{file.read_text()}")
    for name in ("SAGEWAI_OPS_X", "SAGEWAI_MASTER_KEY_OLD", "PGPASSWORD", "RESTIC_PASSWORD"):
        monkeypatch.setenv(name, "planted-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-store")
    monkeypatch.setenv("NAMED", "named-in-it")

    answer = _drill(home)

    assert answer.code == 0, answer.out
    seen = log.read_text()
    assert "AWS_SECRET_ACCESS_KEY=of-the-store" in seen
    assert "NAMED=named-in-it" in seen
    assert "planted" not in seen
    assert "restore -config /dev/stdin -o " in seen
    assert f" -txid {answer.result['transaction']} " in seen  # exactly the state that is reported


def test_a_database_with_broken_references_is_a_finding(home: Path, tmp_path: Path) -> None:
    """As in the drill of a snapshot."""
    with closing(sqlite3.connect(home / DATABASE)) as connection, connection:
        connection.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE child (id REFERENCES parent (id))")
        connection.execute("INSERT INTO child VALUES (7)")
    litestream.replicate(tmp_path / "litestream.yml")

    answer = _drill(home)

    assert answer.code == 4
    assert "1 rows of child have broken references" in answer.out
