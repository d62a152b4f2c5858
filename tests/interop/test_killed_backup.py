"""A home whose server was killed goes into a snapshot and comes back, whole, to Sagewai."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop import program
from interop.client import Client
from interop.homes import (
    FLEET,
    MARKER,
    PROFILE,
    PROFILE_SECRETS,
    Site,
    column,
    key_of,
    read_home,
)
from interop.server import running

pytestmark = pytest.mark.interop

PAGE_BYTES = 4096  # of the main file while everything else is in the WAL
PASSPHRASE = "neun Pferde im Regen"


def test_home_restored_elsewhere_reads_the_same(
    site: Site, snapshots: Path, tmp_path: Path, log: Path
) -> None:
    """All that was in the WAL is there, secrets open, the administrator logs in."""
    target = tmp_path / "restored"

    restore = ("restore", "latest", "--to", target, "--key-file", key_of(site.home))
    restored = program.succeed(site.home, *restore, snapshots=snapshots)

    with running(target, log) as server:
        client = Client(server.url)
        client.log_in()
        listings = client.listings()
        revealed = {name: client.reveal(PROFILE, name) for name in PROFILE_SECRETS}
    assert {name for name in listings if listings[name] != site.listings[name]} == FLEET
    assert restored.result["fleet_rows"] == len(FLEET)
    assert revealed == PROFILE_SECRETS
    assert key_of(target).read_bytes() == key_of(site.home).read_bytes()
    assert read_home(target) == site.reading


def test_home_that_stands_in_the_wal_alone_comes_back(tmp_path: Path, log: Path) -> None:
    """After a kill on the first day the main file is one empty page; the rest is not lost."""
    home, snapshots, target = (tmp_path / name for name in ("home", "snapshots", "restored"))
    with running(home, log) as server:
        client = Client(server.url)
        client.set_up()
        client.log_in()
        client.create_each(MARKER)
        listings = client.listings()
        server.kill()
    database = home / "db" / "sagewai.db"
    journal = database.with_name("sagewai.db-wal")
    before = (database.read_bytes(), journal.read_bytes())

    program.succeed(home, "backup", "--to", snapshots)
    after = (database.read_bytes(), journal.read_bytes())
    restore = ("restore", "latest", "--to", target, "--key-file", key_of(home))
    program.succeed(home, *restore, snapshots=snapshots)

    assert len(before[0]) == PAGE_BYTES
    assert after == before
    assert column(target, "SELECT pool FROM fleet_tasks") == [MARKER]
    with running(target, log) as server:
        client = Client(server.url)
        client.log_in()
        restored = client.listings()
    assert {name for name in restored if restored[name] != listings[name]} == FLEET


def test_home_restored_in_its_place_keeps_its_fleet(
    site: Site, snapshots: Path, tmp_path: Path, log: Path
) -> None:
    """After a disaster the same path holds the same home, workers, tasks and keys as well."""
    with running(site.home, log) as server:
        client = Client(server.url)
        client.log_in()
        client.create_each("regretted")
        server.kill()

    key = tmp_path / "escrow.key"
    key.write_bytes(key_of(site.home).read_bytes())
    restore = ("restore", "latest", "--replace", "--key-file", key)
    program.succeed(site.home, *restore, snapshots=snapshots)

    with running(site.home, log) as server:
        client = Client(server.url)
        client.log_in()
        assert client.listings() == site.listings


def test_key_sealed_in_the_snapshot_opens_everything(site: Site, tmp_path: Path) -> None:
    """With `--key sealed` the archive and the passphrase are all that is needed."""
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(f"{PASSPHRASE}\n", encoding="utf-8")
    snapshots = tmp_path / "snapshots"
    target = tmp_path / "restored"

    seal = ("backup", "--to", snapshots, "--key", "sealed", "--passphrase-file", passphrase)
    program.succeed(site.home, *seal)
    key_of(site.home).unlink()
    restore = ("restore", "latest", "--to", target, "--passphrase-file", passphrase)
    program.succeed(site.home, *restore, snapshots=snapshots)

    assert read_home(target) == site.reading


def test_restore_over_a_running_server_is_refused(site: Site, snapshots: Path, log: Path) -> None:
    """Exit 15 names the process, and the server goes on with what it had."""
    with running(site.home, log) as server:
        client = Client(server.url)
        client.log_in()
        restore = ("restore", "latest", "--replace", "--key-file", key_of(site.home))
        refused = program.call(site.home, *restore, snapshots=snapshots)
        listings = client.listings()

        assert refused.code == 15
        assert str(server.pid) in refused.message
    assert listings == site.listings
