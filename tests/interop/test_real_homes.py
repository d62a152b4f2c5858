"""The homes that the real Sagewai wrote (fixtures/homes), restored from a snapshot and used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import real_homes
from interop import program
from interop.client import Client
from interop.homes import FLEET, key_of, read_home
from interop.server import running

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_restored_home_is_used_like_the_one_it_came_from(name: str, tmp_path: Path) -> None:
    """Server, login and stores return on the restored home what they return on the original."""
    home = real_homes.unpack(name, tmp_path)
    key = next(path for path in (key_of(home), home / "master.key") if path.exists())
    snapshots = tmp_path / "snapshots"
    target = tmp_path / "restored"
    program.succeed(home, "backup", "--to", snapshots)
    restore = ("restore", "latest", "--to", target, "--key-file", key)
    program.succeed(home, *restore, snapshots=snapshots)

    with ThreadPoolExecutor(max_workers=2) as both:
        (listings, reading), restored = both.map(_use, (home, target))

    assert listings["providers"]
    assert reading["providers"]
    assert restored == (listings, reading)


def _use(home: Path) -> tuple[dict[str, object], dict[str, object]]:
    """List over HTTP as the administrator, then read through the stores."""
    with running(home, home.with_suffix(".log")) as server:
        client = Client(server.url)
        client.log_in(real_homes.ADMIN_EMAIL, real_homes.ADMIN_PASSWORD)
        listings = client.listings()
    return {name: listings[name] for name in set(listings) - FLEET}, read_home(home)
