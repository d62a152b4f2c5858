"""Homes whose database is on a PostgreSQL server, their snapshots, and psql alone."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from home_builder import build_home
from postgres_server import Server, installations, running
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.home.paths import locate
from sagewai_ops.progress import Progress
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.snapshots.server_database import ServerFacts, read_server

USERS = "NOT IN ('pg_catalog', 'information_schema')"
DEFINITIONS = (
    "SELECT schemaname::text, sequencename::text, last_value FROM pg_sequences",
    f"SELECT indexdef FROM pg_indexes WHERE schemaname {USERS}",
    """SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid)
       FROM pg_constraint WHERE contype IN ('p', 'u', 'x', 'c', 'f')""",
    f"""SELECT table_name::text, column_name::text, data_type::text, column_default::text,
       is_nullable::text, is_identity::text, generation_expression::text, collation_name::text
       FROM information_schema.columns WHERE table_schema {USERS}""",
    f"""SELECT p.oid::regprocedure::text, prosrc FROM pg_proc p
       JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname {USERS}""",
)

_TABLES = f"SELECT schemaname::text, tablename::text FROM pg_tables WHERE schemaname {USERS}"


@dataclass(frozen=True, slots=True)
class ServerHome:
    """A home on a server: its directory, its database, and what points to that."""

    root: Path
    server: Server
    database: str
    user: str = "postgres"

    @property
    def environment(self) -> dict[str, str]:
        """The variable that Sagewai would have."""
        return {"SAGEWAI_DATABASE_URL": self.server.url(self.database, user=self.user)}

    def back_up(self, *, progress: Progress | None = None, **options: Any) -> BackupReport:
        """Create a snapshot."""
        home = locate(self.root, self.environment)
        choices = BackupOptions(key_environment=self.environment, **options)
        return create_snapshot(home, home.snapshots, choices, progress=progress)

    @property
    def snapshots(self) -> Path:
        """Its snapshot directory."""
        return self.root.with_name(f"{self.root.name}.snapshots")

    def run(self, *statements: str) -> None:
        """Execute statements in the database."""
        self.server.run(self.database, *statements)


def home_and_snapshot(
    directories: pytest.TempPathFactory, *, revision: str = HEAD, statement: str = ""
) -> Iterator[tuple[ServerHome, BackupReport]]:
    """Yield a home on the default server, and its snapshot: the body of a fixture of a module.

    Args:
        statement: Executed in its database before the snapshot.
    """
    if not installations():
        pytest.skip("no PostgreSQL here")
    path = directories.mktemp("original") / "home"
    made = make_server_home(path, running(installations()[0]), revision)
    if statement:
        made.run(statement)
    yield made, made.back_up()
    made.server.drop(made.database)


def facts_of(report: BackupReport) -> ServerFacts:
    """Return the record of the server in a manifest."""
    assert report.path
    with open_archive(report.path) as reader:
        found = read_server(reader.manifest)
    assert found
    return found


def unpack(archive: Path, target: Path) -> None:
    """Do as `zstd -dc FILE | tar x`."""
    content = zstandard.ZstdDecompressor().stream_reader(
        archive.read_bytes(), read_across_frames=True
    )
    target.mkdir()
    subprocess.run(["tar", "-x", "-C", target], input=content.read(), check=True)


def restore(report: BackupReport, server: Server, target: Path, *, encoding: str = "UTF8") -> str:
    """Rebuild the database of a snapshot with psql alone; return its name."""
    assert report.path
    return restore_archive(report.path, server, target, encoding=encoding)


def restore_archive(archive: Path, server: Server, target: Path, *, encoding: str = "UTF8") -> str:
    """Do as `restore` with an archive."""
    unpack(archive, target)
    database = f"restored_{secrets.token_hex(4)}"
    make = f"CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    server.run("postgres", make)
    done = subprocess.run(
        [
            server.installation.programs / "psql",
            *("-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", server.sockets, "-p", str(server.port)),
            *("-U", "postgres", "-d", database, "-f", "postgres/restore.sql"),
        ],
        cwd=target,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return database


def content(server: Server, database: str) -> dict[str, Any]:
    """Return the rows of all tables, their definitions, and the values of sequences."""

    async def read() -> dict[str, Any]:
        found: dict[str, Any] = {}
        connection = await server.connect(database)
        try:
            for schema, name in await connection.fetch(_TABLES):
                quoted = '"{}"."{}"'.format(*(part.replace('"', '""') for part in (schema, name)))
                rows = await connection.fetch(f"SELECT t::text FROM {quoted} t ORDER BY 1")
                found[f"{schema}.{name}"] = [tuple(row) for row in rows]
            for query in DEFINITIONS:
                found[query] = sorted(map(tuple, await connection.fetch(query)), key=str)
        finally:
            await connection.close()
        return found

    return asyncio.run(read())


def make_server_home(root: Path, server: Server, revision: str = HEAD, **recipe: Any) -> ServerHome:
    """Build a small home, and a database at a revision with rows in two tables."""
    database = server.at(revision)
    choices = {"rows": 1, "vectors": 0, "artifacts": False, "leftovers": False} | recipe
    build_home(root, **choices)
    server.run(
        database,
        "INSERT INTO sessions (session_id, agent_name, messages)"
        " SELECT n::text, E'a\\tb\\\\\\n', '[1, \"x\"]' FROM generate_series(1, 50) n",
        "INSERT INTO workflow_events (run_id, event_type) VALUES ('r', 'started'), ('r', 'ended')",
    )
    return ServerHome(root, server, database)
