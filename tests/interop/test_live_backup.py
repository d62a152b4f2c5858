"""A home of the real Sagewai is backed up while clients write, and the real Sagewai goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from interop import program
from interop.client import Client
from interop.homes import (
    FLEET,
    MARKER,
    Site,
    bursts,
    column,
    key_of,
    lacking,
    read_home,
    store_writer,
)
from interop.server import running

pytestmark = pytest.mark.interop

WRITER = "writer"  # project of what the other process writes, and beginning of its ids
TASKS = "tasks"  # of the bursts, the one that ends in the database
WARM_UP = 20  # records of the other process before the backup starts


def numbers_in(value: object, prefix: str) -> list[int]:
    """Find the numbers that follow a prefix anywhere in some JSON, in order."""
    return sorted({int(found) for found in re.findall(rf"{prefix}-(\d+)", json.dumps(value))})


def test_live_home_comes_back_as_it_was_at_one_moment(
    site: Site, tmp_path: Path, log: Path
) -> None:
    """Clients write through the whole backup: none sees an error, and a prefix of each is kept."""
    target = tmp_path / "restored"
    snapshots = tmp_path / "snapshots"

    with (
        running(site.home, log) as server,
        store_writer(site.home, WRITER, tmp_path / "numbers") as writer,
        bursts(server.url) as clients,
    ):
        writer.wait_for(WARM_UP)
        earlier = {client.resource.name: client.accepted for client in clients}
        earlier[WRITER] = writer.written
        program.succeed(site.home, "backup", "--to", snapshots)
        later = {client.resource.name: client.accepted for client in clients}
        later[WRITER] = writer.written
        writer.finish()
    restore = ("restore", "latest", "--to", target, "--key-file", key_of(site.home))
    program.succeed(site.home, *restore, snapshots=snapshots)
    with running(target, log) as server:
        restored = Client(server.url)
        restored.log_in()
        listings = restored.listings()
    tasks = column(target, "SELECT pool FROM fleet_tasks")
    found = read_home(target)

    assert [client.error for client in clients] == [None] * len(clients)
    assert all(0 < earlier[name] < later[name] for name in later)

    kept = {name: numbers_in(listings[name], name) for name in earlier if name in listings}
    kept[TASKS] = numbers_in(tasks, TASKS)
    kept[WRITER] = numbers_in(found["sessions"], WRITER)
    for name, numbers in kept.items():
        assert numbers == list(range(len(numbers)))
        # One more than was acknowledged may be in progress.
        assert earlier[name] <= len(numbers) <= later[name] + 1

    # The database is one transaction boundary: of a number, the session comes first.
    runs = numbers_in(found["workflow_runs"], WRITER)
    learnings = numbers_in(found["learnings"], WRITER)
    assert runs == kept[WRITER][: len(runs)]
    assert learnings == runs[: len(learnings)]
    assert len(kept[WRITER]) - 1 <= len(learnings)

    assert lacking(found, site.reading) == []
    assert all(MARKER in json.dumps(listings[name]) for name in set(listings) - FLEET)
