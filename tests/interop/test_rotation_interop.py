"""The real Sagewai on homes whose key was exchanged: it reads and writes as if nothing had been."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import real_homes
from interop import environment, program
from interop.client import Client
from interop.homes import Site, ask_driver, key_of, lacking, read_home
from interop.server import running
from postgres_server import Server
from sagewai_ops.archive.age import temporary_identity
from targets import at_head

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]  # Sagewai is imported up to 3 times

NO_SNAPSHOT = ("--no-snapshot", "--yes")


def rotated(home: Path, *options: str | Path) -> dict[str, object]:
    """Rotate a home and return what was reported of it."""
    done = program.call(home, "keys", "rotate", *options)
    assert done.code == 0, (done.answer, done.errors)
    return done.result


def test_a_home_that_was_written_to_until_it_was_killed(site: Site, tmp_path: Path) -> None:
    """Stores, server and logins find the same; what Sagewai seals next is under the new key."""
    recipient, _ = temporary_identity()
    key = key_of(site.home).read_bytes()

    result = rotated(site.home, "--recipient", recipient, "--snapshots", tmp_path / "snapshots")

    assert key_of(site.home).read_bytes() != key
    assert result["effective"] is True
    with running(site.home, tmp_path / "server.log") as server:
        client = Client(server.url)
        client.log_in()
        assert client.listings() == site.listings
        client.create_each("after")
        server.stop()
    assert lacking(read_home(site.home), site.reading) == []
    checked = program.call(site.home, "keys", "check").result
    assert checked["lost_to_sagewai"] == 0
    values = checked["values"]
    assert isinstance(values, list)
    assert len(values) > sum(dict(result["resealed"]).values())  # type: ignore[call-overload]


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_homes_of_every_layout(name: str, tmp_path: Path) -> None:
    """What Sagewai's stores read is the same before and after."""
    home = real_homes.unpack(name, tmp_path)
    before = read_home(home)

    rotated(home, *NO_SNAPSHOT)

    assert read_home(home) == before


def test_a_key_of_the_environment(site: Site) -> None:
    """With the variable set to the new key, and without it, everything opens."""
    key = key_of(site.home).read_bytes()
    key_of(site.home).unlink()
    words = ["--home", str(site.home), "keys", "rotate", *NO_SNAPSHOT]
    done = subprocess.run(
        [str(program.EXECUTABLE), *words],
        env={**os.environ, "SAGEWAI_MASTER_KEY": key.decode()},
        capture_output=True,
        check=False,
    )

    assert done.returncode == 3
    new = key_of(site.home).read_bytes()
    by_file = read_home(site.home)
    key_of(site.home).unlink()
    by_variable = read_home(site.home, {"SAGEWAI_MASTER_KEY": new.decode()})
    assert lacking(by_file, site.reading) == []
    assert by_variable == by_file


def test_what_sagewais_own_rotation_tore_apart_is_joined(site: Site, tmp_path: Path) -> None:
    """Sagewai 1.0.1 seals profiles again and nothing else; with its old key all comes together."""
    old = tmp_path / "old.key"
    old.write_bytes(key_of(site.home).read_bytes())
    sagewai = environment.python_of_sagewai().with_name("sagewai")
    subprocess.run(
        [str(sagewai), "admin", "sealed", "rotate-master-key"],
        env=environment.quiet_environment() | {"SAGEWAI_HOME": str(site.home)},
        input=b"y\ny\n",
        capture_output=True,
        check=True,
    )
    torn = program.call(site.home, "keys", "check")
    assert torn.code == 4, torn.answer

    refused = program.call(site.home, "keys", "rotate", *NO_SNAPSHOT)
    rotated(site.home, *NO_SNAPSHOT, "--key-file", old)

    assert refused.code == 12
    assert lacking(read_home(site.home), site.reading) == []


def test_tables_on_a_server(postgres: Server, tmp_path: Path) -> None:
    """Tenants' providers and connections open through the server's wrapped data keys."""
    home = tmp_path / "home"
    home.mkdir()
    url = postgres.url(at_head(postgres))
    variables = {"SAGEWAI_DATABASE_URL": url}
    ask_driver(home, "fill", "server", variables=variables)
    before = read_home(home, variables)
    assert before["tenants"]

    done = subprocess.run(
        [str(program.EXECUTABLE), "--home", str(home), "keys", "rotate", *NO_SNAPSHOT],
        env={**os.environ, **variables},
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert read_home(home, variables) == before
