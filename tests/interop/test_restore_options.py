"""Options of `restore` that change what the real Sagewai accepts of a restored home."""

from __future__ import annotations

from pathlib import Path

import pytest

from interop import program
from interop.client import Client, RequestError
from interop.homes import (
    FLEET,
    Site,
    key_of,
)
from interop.server import running

pytestmark = pytest.mark.interop


def test_rebound_fleet_is_seen_elsewhere(
    site: Site, snapshots: Path, tmp_path: Path, log: Path
) -> None:
    """`--rebind-fleet` assigns workers, tasks and keys to the organisation of the new path."""
    target = tmp_path / "restored"

    restore = ("restore", "latest", "--to", target, "--rebind-fleet")
    program.succeed(site.home, *restore, "--key-file", key_of(site.home), snapshots=snapshots)

    with running(target, log) as server:
        client = Client(server.url)
        client.log_in()
        listings = client.listings()
    for name in FLEET:
        assert _without_organisation(listings[name]) == _without_organisation(site.listings[name])


def test_revoked_sessions_are_refused_by_the_server(site: Site, tmp_path: Path, log: Path) -> None:
    """`--revoke-sessions` ends the sessions that the snapshot would bring back to life."""
    snapshots = tmp_path / "snapshots"
    with running(site.home, log) as server:
        client = Client(server.url)
        client.log_in()
        program.succeed(site.home, "backup", "--to", snapshots)
        headers = client.headers

    targets = {"kept": (), "revoked": ("--revoke-sessions",)}
    answers = {}
    for name, options in targets.items():
        target = tmp_path / name
        restore = ("restore", "latest", "--to", target, "--key-file", key_of(site.home))
        program.succeed(site.home, *restore, *options, snapshots=snapshots)
        with running(target, log) as server:
            visitor = Client(server.url, headers)
            try:
                visitor.call("GET", "/api/v1/auth/me")
                answers[name] = "welcome"
            except RequestError as error:
                answers[name] = str(error)
            visitor.log_in()
    assert answers["kept"] == "welcome"
    assert ": 401 " in answers["revoked"]


def _without_organisation(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: _without_organisation(inner) for key, inner in value.items() if key != "org_id"
        }
    if isinstance(value, list):
        return [_without_organisation(inner) for inner in value]
    return value
