"""Run commands on a home that other processes write to all the while, and hold both to their laws.

    python tests/proof/live.py --seconds 30      thirty seconds for each command, as `make proof`

A writer commits pairs of rows, replaces the documents as Sagewai does and changes artifacts
(fixtures/home_writer.py). A second one moves amounts between rows, so that their sum stays the same
after each commit: only with SQLite 3.51.3 or later, because an older one can corrupt a database in
WAL mode by itself when two processes write (docs/database.md).
The same home on a server has a writer of its own there, of 200 transactions a second, each of which
changes two tables.
Each copy that a command makes must hold whole transactions, whole documents, and all that was
committed before it began; and no writer may get the error that the database is locked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HERE = Path(__file__).resolve().parent
for _directory in (_HERE.parent, _HERE.parent.parent / "fixtures"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

import asyncpg  # noqa: E402 - the path first

import home_writer  # noqa: E402
from home_builder import build_home  # noqa: E402
from postgres_server import Server, installations  # noqa: E402
from program import Answer, run, taken  # noqa: E402
from sagewai_ops.database.url import VARIABLES  # noqa: E402
from sagewai_ops.schema.revision_graph import HEAD  # noqa: E402

WITHOUT_RESET_BUG = (3, 51, 3)
ACCOUNTS = 20
TOTAL = 20_000
RATE = 220  # transactions a second on the server
_HOLDER = "live-accounts"
_DOCUMENTS = ("config/admin-state.json", "config/connections.json", "secrets/profiles.json")
_FINDINGS = 4
_DAMAGE = ("integrity",)
_HOLDERS = """
WITH taker AS (
  INSERT INTO budget_spend (project_id, agent_name, cost_usd) VALUES ('default', $1, 0)
  RETURNING id)
INSERT INTO cost_records (project_id, agent_name, model, cost_usd, tokens)
  VALUES ('default', $1, 'none', 0.0, $2::int) RETURNING id, (SELECT id FROM taker) AS other
"""
# One transaction, and one message: as four statements, parsed each time, with the holders found by
# name among their dead versions, it took three times as long.
_TRANSACTION = """
WITH pair AS (
  INSERT INTO cost_records (project_id, agent_name, model, cost_usd, tokens)
  VALUES ('default', $1, 'none', 0.0, $2::int)
), other AS (
  INSERT INTO budget_spend (project_id, agent_name, cost_usd) VALUES ('default', $1, $2::int)
), giver AS (UPDATE cost_records SET tokens = tokens - $3::int WHERE id = $4)
UPDATE budget_spend SET cost_usd = cost_usd + $3::int WHERE id = $5
"""


@dataclass(slots=True)
class Tally:
    """What was done with one command."""

    name: str
    runs: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where it takes place."""

    directory: Path
    server: Server

    @property
    def home(self) -> Path:
        """The home that is written to."""
        return self.directory / "home"

    @property
    def database(self) -> Path:
        """Its database."""
        return self.home / "db/sagewai.db"

    @property
    def copy(self) -> Path:
        """Where a snapshot is restored to."""
        return self.directory / "copy"


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--only", default="", help="commands whose names begin so")
    parser.add_argument("--accounts", type=Path, help="be the second writer of this database")
    parser.add_argument("--server", metavar="URL", help="be the writer of this database")
    chosen = parser.parse_args()
    if chosen.server:
        asyncio.run(_write_to_server(chosen.server))
        return 0
    if chosen.accounts:
        _move_amounts(chosen.accounts)
        return 0
    with tempfile.TemporaryDirectory(prefix="ops-live-") as directory, _served() as server:
        tallies = through(Scene(Path(directory), server), chosen.seconds, chosen.only)
    for tally in tallies:
        print(f"{tally.name:20} {tally.runs:5} runs in {tally.seconds:4.0f} s", end=", ")
        print(f"{len(tally.violations)} violations")
    for tally in tallies:
        for violation in tally.violations[:20]:
            print(f"VIOLATION {tally.name}: {violation}")
    return int(any(tally.violations for tally in tallies))


def through(scene: Scene, seconds: float, only: str = "") -> list[Tally]:
    """Return each command its seconds under the writers."""
    build_home(scene.home, rows=2, vectors=0, leftovers=False)
    with contextlib.closing(sqlite3.connect(scene.database)) as connection:
        connection.executemany(
            "INSERT INTO cost_records (project_id, agent_name, model, cost_usd, tokens)"
            " VALUES ('default', ?, 'none', 0.0, ?)",
            [(_HOLDER, TOTAL // ACCOUNTS)] * ACCOUNTS,
        )
        connection.commit()
    tallies = []
    with home_writer.start(scene.home, rate=100), _second_writer(scene.database):
        for name, once in COMMANDS.items():
            if name.startswith(only):
                tallies.append(_repeat(name, once, scene, seconds))
    last = Tally("the home itself", 1)
    last.violations += _broken(scene.home, 0)
    if SERVER.startswith(only):
        tallies.append(_on_server(scene, seconds))
    return [*tallies, last]


def _on_server(scene: Scene, seconds: float) -> Tally:
    """Back up and restore the home with a database of a server that is written to."""
    server, database = scene.server, scene.server.at(HEAD, name="live")
    url = server.url(database)
    with _writer("--server", url):
        while not _pairs_on(server, database)[0]:
            time.sleep(0.05)

        def once(scene: Scene, _committed: int) -> Iterator[str]:
            yield from _backup_of_server(scene, url, _pairs_on(server, database)[0])

        begun, first = time.monotonic(), _pairs_on(server, database)[0]
        tally = _repeat(SERVER, once, scene, seconds)
        rate = (_pairs_on(server, database)[0] - first) / (time.monotonic() - begun)
    print(f"writer of the server: {rate:.0f} transactions a second")
    server.drop(database)
    return tally


def _backup_of_server(scene: Scene, url: str, committed: int) -> Iterator[str]:
    answer = run("--home", scene.home, "--json", "backup", environment={VARIABLES[0]: url})
    if answer.code:
        yield _message(answer)
        return
    archive, target = taken(answer), scene.server.create(name="live_restored")
    restored = run(
        *("--home", scene.home, "restore", archive, "--to", scene.copy),
        *("--database-url", scene.server.url(target)),
    )
    if restored.code:
        yield f"its restore: {_message(restored)}"
    else:
        pairs = _pairs_on(scene.server, target)
        if len(set(pairs)) != 1 or pairs[0] < committed:
            yield f"pairs {pairs}, {committed} were committed before"
        if (total := _total_on(scene.server, target)) != TOTAL:
            yield f"the amounts are {total} together, not {TOTAL}"
    scene.server.drop(target)
    shutil.rmtree(scene.copy, ignore_errors=True)
    shutil.rmtree(archive.parent)


def _pairs_on(server: Server, database: str) -> tuple[int, ...]:
    """Return the number of the writer's rows and the highest of them, of both tables."""
    (found,) = server.rows(
        database,
        """SELECT a.*, b.* FROM
           (SELECT count(*)::int, coalesce(max(tokens), 0)::int FROM cost_records
            WHERE agent_name = $1) a,
           (SELECT count(*)::int, coalesce(max(cost_usd), 0)::int FROM budget_spend
            WHERE agent_name = $1) b""",
        home_writer.MARKER,
    )
    return tuple(int(str(number)) for number in found)


def _total_on(server: Server, database: str) -> int:
    ((total,),) = server.rows(
        database,
        """SELECT ((SELECT sum(tokens) FROM cost_records WHERE agent_name = $1)
           + (SELECT sum(cost_usd) FROM budget_spend WHERE agent_name = $1))::int""",
        _HOLDER,
    )
    return int(str(total))


def _repeat(
    name: str, once: Callable[[Scene, int], Iterator[str]], scene: Scene, seconds: float
) -> Tally:
    tally = Tally(name)
    begun = time.monotonic()
    while not tally.runs or time.monotonic() - begun < seconds:
        committed = home_writer.pairs(scene.database)[0]
        tally.violations += once(scene, committed)
        tally.runs += 1
    tally.seconds = time.monotonic() - begun
    return tally


def _backup(scene: Scene, committed: int) -> Iterator[str]:
    answer = run("--home", scene.home, "--json", "backup")
    if answer.code:
        yield _message(answer)
        return
    archive = taken(answer)
    restored = run("restore", archive, "--to", scene.copy, "--without-key")
    if restored.code:
        yield f"its restore: {_message(restored)}"
    else:
        yield from _broken(scene.copy, committed)
    shutil.rmtree(scene.copy, ignore_errors=True)
    shutil.rmtree(archive.parent)


def _tree(scene: Scene, committed: int) -> Iterator[str]:
    place = scene.directory / "trees"
    answer = run("--home", scene.home, "--json", "backup", "--format", "directory", "--to", place)
    if answer.code:
        yield _message(answer)
        return
    yield from _broken(taken(answer), committed)


def _status(scene: Scene, _committed: int) -> Iterator[str]:
    answer = run("--home", scene.home, "--json", "status")
    if answer.code or not answer.result:
        yield _message(answer)


def _check(scene: Scene, _committed: int) -> Iterator[str]:
    answer = run("--home", scene.home, "--json", "db", "check")
    if answer.code not in (0, _FINDINGS):
        yield _message(answer)
        return
    for finding in answer.result["findings"]:
        if finding["kind"] in _DAMAGE:
            yield f"{finding}"


def _keys(scene: Scene, _committed: int) -> Iterator[str]:
    answer = run("--home", scene.home, "--json", "keys", "check")
    if answer.code not in (0, _FINDINGS):
        yield _message(answer)


def _export(scene: Scene, committed: int) -> Iterator[str]:
    database = scene.server.create(name="live")
    url = scene.server.url(database)
    upgraded = run(
        *("--home", scene.home, "db", "upgrade", "--no-snapshot"),
        environment={"SAGEWAI_DATABASE_URL": url},
    )
    answer = run(
        *("--home", scene.home, "--json", "export-to-postgres", url, "--allow-live"),
        *("--on-invalid", "repair"),
    )
    if upgraded.code or answer.code:
        yield f"{_message(upgraded)}, {_message(answer)}"
    else:
        counted = [
            scene.server.rows(
                database,
                f"SELECT count(*)::int, coalesce(max({column}), 0)::int FROM {table}"
                " WHERE agent_name = $1",
                home_writer.MARKER,
            )[0]
            for table, column in (("cost_records", "tokens"), ("budget_spend", "cost_usd"))
        ]
        pairs = {int(str(number)) for pair in counted for number in pair}
        if len(pairs) != 1 or min(pairs) < committed:
            yield f"pairs {counted}, {committed} were committed before"
        ((total,),) = scene.server.rows(
            database, "SELECT sum(tokens)::int FROM cost_records WHERE agent_name = $1", _HOLDER
        )
        if total != TOTAL:
            yield f"the amounts are {total} together, not {TOTAL}"
    scene.server.drop(database)


SERVER = "backup, of a server"
COMMANDS = {
    "backup": _backup,
    "backup, directory": _tree,
    "status": _status,
    "db check": _check,
    "keys check": _keys,
    "export, --allow-live": _export,
}


def _broken(home: Path, committed: int) -> Iterator[str]:
    """Yield the laws that a home at rest or a copy breaks."""
    database = home / "db/sagewai.db"
    try:
        first, second = home_writer.pairs(database)
        if first != second or first < committed:
            yield f"pairs {first} and {second}, {committed} were committed before"
    except (ValueError, sqlite3.Error) as error:
        yield f"pairs: {error}"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        ((total,),) = connection.execute(
            "SELECT sum(tokens) FROM cost_records WHERE agent_name = ?", (_HOLDER,)
        )
        if total != TOTAL:
            yield f"the amounts are {total} together, not {TOTAL}"
        ((verdict, *_),) = connection.execute("PRAGMA integrity_check(1)")
        if verdict != "ok":
            yield f"integrity: {verdict}"
    for name in _DOCUMENTS:
        try:
            json.loads((home / name).read_bytes())
        except (OSError, ValueError) as error:
            yield f"{name}: {error}"


@contextlib.contextmanager
def _second_writer(database: Path) -> Iterator[None]:
    if sqlite3.sqlite_version_info < WITHOUT_RESET_BUG:
        print(f"SQLite {sqlite3.sqlite_version}: one writer of the database, not two")
        yield
        return
    with _writer("--accounts", os.fspath(database)):
        yield


@contextlib.contextmanager
def _writer(option: str, place: str) -> Iterator[None]:
    """Run this program as a writer for the block."""
    with subprocess.Popen([sys.executable, os.fspath(Path(__file__)), option, place]) as process:
        try:
            yield
            if process.poll() is not None:
                raise RuntimeError(f"the writer {option} ended with {process.returncode}")
        finally:
            process.kill()


async def _write_to_server(url: str) -> None:
    """Commit pairs of rows, and move an amount from one table to the other, until killed."""
    connection = await asyncpg.connect(url)
    draw = random.Random(1)
    holders = await connection.fetchrow(_HOLDERS, _HOLDER, TOTAL)
    transaction = await connection.prepare(_TRANSACTION)
    begun, number = time.monotonic(), 0
    while True:
        number += 1
        amount = draw.randrange(-50, 50)
        await transaction.fetch(home_writer.MARKER, number, amount, *holders)
        await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))


def _move_amounts(database: Path) -> None:
    """Move amounts between rows until killed."""
    draw = random.Random(1)
    with contextlib.closing(sqlite3.connect(database, timeout=5, isolation_level=None)) as file:
        rows = [
            row
            for (row,) in file.execute(
                "SELECT rowid FROM cost_records WHERE agent_name = ?", (_HOLDER,)
            )
        ]
        while True:
            giver, taker = draw.sample(rows, 2)
            amount = draw.randrange(100)
            file.execute("BEGIN IMMEDIATE")
            for row, change in ((giver, -amount), (taker, amount)):
                file.execute(
                    "UPDATE cost_records SET tokens = tokens + ? WHERE rowid = ?", (change, row)
                )
            file.execute("COMMIT")
            time.sleep(draw.random() / 50)


@contextlib.contextmanager
def _served() -> Iterator[Server]:
    server = Server(installations()[0])
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _message(answer: Answer) -> str:
    return f"exit {answer.code}: {(answer.err or answer.out)[:500]}"


if __name__ == "__main__":
    sys.exit(main())
