"""The ground under the other interop tests: what the real Sagewai does without us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from interop.client import RESOURCES, Client
from interop.homes import (
    FLEET,
    MARKER,
    PROFILE,
    PROFILE_SECRETS,
    Site,
    ask_driver,
    column,
    copy_home,
    read_home,
    store_writer,
)
from interop.server import running

pytestmark = pytest.mark.interop

TABLES = 55


def test_site_holds_something_of_everything(site: Site) -> None:
    """Every table has a row and every resource of the API lists the marker."""
    counts = site.reading["counts"]
    assert isinstance(counts, dict)
    listed = {name: json.dumps(listing) for name, listing in site.listings.items()}

    assert len(counts) == TABLES
    assert min(counts.values()) >= 1
    assert [name for name in listed if MARKER not in listed[name]] == []
    assert set(listed) == {resource.name for resource in RESOURCES}


def test_reading_opens_every_sealed_value(site: Site) -> None:
    """Providers, connections, profiles and tenants come back in the clear, learnings are found."""
    text = json.dumps(site.reading, ensure_ascii=False)
    learnings = site.reading["learnings"]
    assert isinstance(learnings, list)

    assert "fernet:" not in text
    for sealed in ("key", "token", "secret", "sealed"):
        assert f'"{MARKER}-{sealed}"' in text
    assert learnings
    assert all(learning["found"] for learning in learnings)


def test_killed_server_leaves_its_rows_in_the_wal(site: Site, tmp_path: Path) -> None:
    """The site is what a power cut leaves: the main file alone lacks what the API was given."""
    query = f"SELECT pool FROM fleet_tasks WHERE pool = '{MARKER}'"
    main_file_alone = tmp_path / "home"
    (main_file_alone / "db").mkdir(parents=True)
    shutil.copy2(site.home / "db" / "sagewai.db", main_file_alone / "db")

    assert column(main_file_alone, query) == []
    assert column(site.home, query) == [MARKER]


def test_killed_server_starts_again_with_everything(site: Site, log: Path) -> None:
    """A restart in place lists the previous content and reveals the profile's secrets."""
    with running(site.home, log) as server:
        client = Client(server.url)
        client.log_in()

        assert client.listings() == site.listings
        for name, value in PROFILE_SECRETS.items():
            assert client.reveal(PROFILE, name) == value


def test_copied_home_reads_the_same_without_its_fleet(
    site: Site, tmp_path: Path, log: Path
) -> None:
    """Elsewhere everything is there but workers, tasks and keys, whose rows name the old path."""
    elsewhere = tmp_path / "elsewhere"
    copy_home(site.frozen, elsewhere)

    assert read_home(elsewhere) == site.reading
    with running(elsewhere, log) as server:
        client = Client(server.url)
        client.log_in()
        listings = client.listings()

    differing = {name for name in listings if listings[name] != site.listings[name]}
    assert differing == FLEET


def test_store_writer_and_server_share_a_home(site: Site, tmp_path: Path, log: Path) -> None:
    """Another process commits through the stores while the server runs, and loses nothing."""
    with running(site.home, log), store_writer(site.home, "shared", tmp_path / "writer") as writer:
        writer.wait_for(20)
        written = writer.finish()

    ids = column(site.home, "SELECT session_id FROM sessions WHERE project_id = 'shared'")
    assert len(ids) == written >= 20


def test_sagewai_finds_nothing_to_add_to_its_own_home(site: Site) -> None:
    """The comparison of schemas that later tests rely on is quiet where it should be."""
    answer = ask_driver(site.home, "schema")
    assert isinstance(answer, list)
    before, after = answer

    assert len(before) > TABLES
    assert before == after
