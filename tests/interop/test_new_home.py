"""Homes that `sagewai-ops init` makes or completes, in the hands of the real Sagewai."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
from pathlib import Path

import pytest

import schema_catalogs
from interop import program
from interop.client import Client
from interop.homes import MARKER, Site, ask_driver, key_of, read_home
from interop.server import running
from sagewai_ops.schema.create import create_database

pytestmark = pytest.mark.interop


def test_sagewai_finds_our_schema_to_be_its_own(tmp_path: Path) -> None:
    """It adds nothing to a database that we create, which equals one that it creates."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for home in (ours, theirs):
        (home / "db").mkdir(parents=True)
    create_database(ours / "db" / "sagewai.db")

    before, after = _schemas(ours)
    _schemas(theirs)

    assert before == after
    assert _catalog(ours) == _catalog(theirs)


def test_real_server_lives_in_a_home_from_init(tmp_path: Path, log: Path) -> None:
    """It starts on it, keeps the key and the schema, seals with that key and opens it again."""
    home = tmp_path / "home"
    program.succeed(home, "init")
    key = key_of(home).read_bytes()
    catalog = _catalog(home)

    with running(home, log) as server:
        Client(server.url).set_up()
        server.stop()
        server.start()
        client = Client(server.url)
        client.log_in()
        client.create_each(MARKER)

    assert key_of(home).read_bytes() == key
    assert stat.S_IMODE(key_of(home).stat().st_mode) == 0o600
    assert _catalog(home) == catalog
    found = read_home(home)
    assert f'"{MARKER}-key"' in json.dumps(found["providers"])
    assert f'"{MARKER}-sealed"' in json.dumps(found["profiles"])
    assert f'"{MARKER}-secret"' in json.dumps(found["connections"])


def test_real_server_makes_the_key_that_init_left_out(tmp_path: Path, log: Path) -> None:
    """After `init --no-key` the server mints a key at its first secret, as on a home of its own."""
    home = tmp_path / "home"
    program.succeed(home, "init", "--no-key")
    assert not key_of(home).exists()

    with running(home, log) as server:
        client = Client(server.url)
        client.set_up()
        client.log_in()
        client.create_each(MARKER)

    assert stat.S_IMODE(key_of(home).stat().st_mode) == 0o600
    assert f'"{MARKER}-key"' in json.dumps(read_home(home)["providers"])


def test_init_leaves_a_home_of_sagewai_alone(site: Site) -> None:
    """On a home that has everything it changes nothing that Sagewai reads."""
    program.succeed(site.home, "init")

    assert read_home(site.home) == site.reading


def _schemas(home: Path) -> list[list[list[str]]]:
    """Return the schema before and after the upgrade that Sagewai makes at its start."""
    answer = ask_driver(home, "schema")
    assert isinstance(answer, list)
    return answer


def _catalog(home: Path) -> tuple[object, list[list[str]]]:
    """Return tables, columns, keys and indexes as facts, and the order of each table's columns."""
    with contextlib.closing(sqlite3.connect(home / "db" / "sagewai.db")) as connection:
        catalog = schema_catalogs.read_sqlite(connection)
    return catalog, [[name, *catalog[name]["columns"]] for name in sorted(catalog)]
