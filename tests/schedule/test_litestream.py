"""The configuration and the unit of litestream: litestream itself accepts and uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import litestream
from json_schemas import problems
from litestream import PROGRAM, needs_litestream
from program import Answer, call
from remote_servers import S3Server
from sagewai_ops.home.paths import DATABASE
from small_homes import small

pytestmark = needs_litestream
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFs9iSwhJQyOgQf2xNExwUXUwYzSxUqYcbHLdKjQ0q1S"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home."""
    return small(tmp_path / "home").root


def _print(home: Path, place: object, *words: object) -> Answer:
    words = ("--program", PROGRAM, *words)
    return call("--json", "--home", home, "schedule", "litestream", place, *words)


def _configuration(home: Path, place: object, *words: object) -> Path:
    """Print the files and write the configuration."""
    answer = _print(home, place, *words)
    assert answer.code == 0, answer.out
    assert problems("schedule-litestream", answer.result) == []
    files = {file["name"]: file["text"] for file in answer.result["files"]}
    assert set(files) == {"litestream.yml", "litestream.service"}
    path = home.parent / "litestream.yml"
    path.write_text(files["litestream.yml"])
    return path


def _databases(configuration: Path) -> list[dict[str, str]]:
    """Return what litestream reads in it."""
    words: list[str | Path] = ["databases", "-json", "-config", configuration]
    done = subprocess.run([PROGRAM, *words], check=True, capture_output=True, timeout=60)
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("name", ["replica", "a b", "100%", "it's", 'a "x"', "back\\slash", "ünï"])
def test_a_directory_is_replicated_to_and_restored_from(
    home: Path, tmp_path: Path, name: str
) -> None:
    """Whatever its name."""
    configuration = _configuration(home, tmp_path / name)

    litestream.replicate(configuration)

    assert (tmp_path / name / "ltx").is_dir()
    target = litestream.restored(configuration, home / DATABASE, tmp_path / "restored.db")
    assert target.stat().st_size > 0


def test_a_bucket_is_replicated_to(
    home: Path, tmp_path: Path, seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of the user's configuration; the credentials are in the environment alone."""
    bucket = seaweedfs.bucket()
    remote = {"url": f"{bucket.url}/replica", **bucket.remote}
    lines = [f"{key} = {json.dumps(value)}" for key, value in remote.items()]
    file = tmp_path / "config.toml"
    file.write_text("\n".join(["[remote.offsite]", *lines]))
    file.chmod(0o600)

    configuration = _configuration(home, "offsite:", "--config", file)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
        assert value not in configuration.read_text() or "SECRET" not in name
    litestream.replicate(configuration)

    litestream.on_path(monkeypatch)
    drilled = call(
        *("--json", "--home", home, "drill", "--from", "litestream"),
        *("--litestream-config", configuration),
    )
    assert (drilled.code, drilled.result["outcome"]) == (0, "proved")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("s3://bucket/prefix", "s3"),
        ("gs://bucket/prefix", "gs"),
        ("az://account/container/prefix", "abs"),
        ("sftp://user@[::1]:2222/replica", "sftp"),
    ],
)
def test_every_store_is_one_that_litestream_knows(
    home: Path, tmp_path: Path, place: str, kind: str
) -> None:
    """It parses the settings, and finds the database."""
    words: tuple[object, ...] = ()
    if kind == "sftp":
        (tmp_path / "host.pub").write_text(HOST_KEY + "\n")
        (tmp_path / "key").write_text("")
        words = ("--host-key", tmp_path / "host.pub", "--ssh-key", tmp_path / "key")

    configuration = _configuration(home, place, *words)

    assert _databases(configuration) == [{"path": str(home / DATABASE), "replica": kind}]
    replica = yaml.safe_load(configuration.read_text())["dbs"][0]["replica"]
    assert replica.get("host-key", HOST_KEY) == HOST_KEY


def test_an_sftp_server_without_its_key_is_refused(home: Path) -> None:
    """Litestream would trust any."""
    answer = _print(home, "sftp://user@host/replica")

    assert answer.code == 2
    assert "without the last it would trust any server" in answer.document["error"]["message"]


@pytest.mark.parametrize(
    ("version", "code"),
    [("0.5.16", 2), ("0.3.13", 2), ("v0.5.8", 2), ("none", 2), ("0.5.17", 0), ("0.6.0-beta1", 0)],
)
def test_a_version_with_the_bug_of_sqlite_is_refused_with_the_reason(
    home: Path, tmp_path: Path, version: str, code: int
) -> None:
    """SQLite 3.51.2 of 0.5.16 can damage a database of two writers."""
    program = litestream.stub(tmp_path, version)

    answer = _print(home, tmp_path / "replica", "--program", program)

    assert answer.code == code, answer.out
    if code and version != "none":
        assert "older than 0.5.17: its SQLite has the WAL-reset bug" in answer.out


def test_the_real_program_has_the_fix() -> None:
    """The reason for the demand: the version of SQLite in it."""
    assert b"\n3.53." in PROGRAM.read_bytes() or b"3.53.0" in PROGRAM.read_bytes()


def test_a_program_that_is_missing_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With where to get it."""
    monkeypatch.setenv("PATH", str(tmp_path))

    answer = call("--home", home, "schedule", "litestream", tmp_path / "replica")

    assert answer.code == 10
    assert "litestream: not installed" in answer.err


def test_names_that_litestream_would_change_are_refused(home: Path, tmp_path: Path) -> None:
    """It has no escape for `$`."""
    assert _print(home, tmp_path / "$HOME").code == 2
    assert _print(home, home / "replica").code == 2
    assert _print(home, tmp_path / "a\nb").code == 2


def test_a_directory_of_something_else_is_refused(home: Path, tmp_path: Path) -> None:
    """Whatever links lead to it: the home, what is around it, the snapshots."""
    (tmp_path / "link").symlink_to(home)
    snapshots = tmp_path / "home.snapshots"

    assert _print(home, tmp_path / "link/replica").code == 2
    assert _print(home, home.parent).code == 2
    assert (
        "snapshot directory"
        in call("--home", home, "schedule", "litestream", "--program", PROGRAM, snapshots).err
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd")
def test_the_unit_is_valid(home: Path, tmp_path: Path) -> None:
    """There is nothing wrong with it to systemd."""
    into = tmp_path / "units"
    into.mkdir()
    assert _print(home, tmp_path / "a b", "--into", into).code == 0

    done = subprocess.run(
        ["systemd-analyze", "verify", into / "litestream.service"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )

    assert (done.returncode, done.stderr) == (0, "")
