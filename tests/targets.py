"""Databases to export to, and what there is to compare of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog_shapes import PostgresCatalog
from home_builder import build_home
from postgres_reader import read_postgres
from postgres_server import Server
from sagewai_ops.database.url import PostgresUrl, parse
from sagewai_ops.export.export import Options, export
from sagewai_ops.export.report import Report
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.schema import migrate_postgres

KEPT = 12  # databases of one server; no test needs more, and they may lie in memory

_templates: dict[Path, str] = {}
_made: dict[Path, list[str]] = {}


def at_head(server: Server) -> str:
    """Make a database at head without rows; the first of a server is migrated, the rest copied.

    Those that tests before this one left are dropped, but none that a fixture made.
    """
    if server.directory not in _templates:
        template = server.create(name="template_head")
        asyncio.run(migrate_postgres.upgrade(url_of(server, template)))
        _templates[server.directory] = template
    database = server.create(template=_templates[server.directory])
    if "(call)" in os.environ.get("PYTEST_CURRENT_TEST", ""):
        made = _made.setdefault(server.directory, [])
        made.append(database)
        if len(made) > KEPT:
            server.drop(made.pop(0))
    return database


def url_of(server: Server, database: str, **options: Any) -> PostgresUrl:
    """Return the URL of a database as the exporter takes it."""
    url = parse(server.url(database, **options))
    assert isinstance(url, PostgresUrl)
    return url


def catalog_of(server: Server, database: str) -> PostgresCatalog:
    """Read the whole catalog of a database."""

    async def read() -> PostgresCatalog:
        connection = await server.connect(database)
        try:
            return await read_postgres(connection)
        finally:
            await connection.close()

    return asyncio.run(read())


def counts_of(server: Server, database: str) -> dict[str, int]:
    """Count the rows of the tables that have any; Alembic's own apart."""
    names = [
        str(name)
        for (name,) in server.rows(
            database,
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind = 'r' AND relname <> 'alembic_version'",
        )
    ]
    if not names:
        return {}
    counted = ", ".join(f'(SELECT count(*) FROM "{name}")' for name in names)
    (counts,) = server.rows(database, f"SELECT {counted}")
    return {name: int(str(count)) for name, count in zip(names, counts, strict=True) if count}


def state_of(server: Server, database: str) -> object:
    """Return all that a failed export must leave as it was: catalog, rows, sequences."""
    sequences = server.rows(
        database,
        "SELECT sequencename::text, last_value FROM pg_sequences"
        " WHERE schemaname = 'public' ORDER BY 1",
    )
    return catalog_of(server, database), counts_of(server, database), sequences


def copy_of(home: Home, root: Path) -> Home:
    """Copy a home, which is quicker than building another."""
    shutil.copytree(home.root, root, symlinks=True)
    return locate(root, {})


def home_with(
    root: Path, change: Callable[[sqlite3.Connection], object] | None = None, **recipe: Any
) -> Home:
    """Build a small home, change its database, and return it."""
    choices: dict[str, Any] = {
        "artifacts": False,
        "leftovers": False,
        "journal": "none",
        "vectors": 0,
    }
    built = build_home(root, **choices | recipe)
    if change is not None:
        with contextlib.closing(sqlite3.connect(built.database)) as connection:
            change(connection)
            connection.commit()
    return locate(built.root, {})


def exported(home: Home, server: Server, database: str, **options: Any) -> Report:
    """Export a home to a database."""
    return export(home, url_of(server, database), Options(**options))


@contextlib.contextmanager
def small_tablespace(server: Server, size: str) -> Iterator[str]:
    """Yield the server a tablespace in a file system of a few megabytes."""
    with small_directory(server.directory / "small", size) as place:
        inside = place / "space"
        inside.mkdir()
        if server.user is not None and server.group is not None:
            os.chown(inside, server.user, server.group)
        server.run("postgres", f"CREATE TABLESPACE small LOCATION '{inside}'")
        try:
            yield "small"
        finally:
            server.run("postgres", "DROP TABLESPACE small")


@contextlib.contextmanager
def small_directory(place: Path, size: str) -> Iterator[Path]:
    """Make a directory that is a file system of a few megabytes, and remove it."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", os.fspath(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        place.rmdir()
        pytest.skip("only root mounts file systems here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)
        place.rmdir()


@contextlib.contextmanager
def opened_elsewhere(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process use the database of a home."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        " c.execute('SELECT count(*) FROM org').fetchone(); print('open', flush=True);"
        " sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, home.database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.communicate()
