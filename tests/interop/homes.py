"""A home that the real Sagewai made, and how the tests take copies of it and look into them.

The home is at one path for all tests of a session: Sagewai derives the fleet's organisation
from the absolute path of its state file, so that workers, tasks and enrollment keys of a home are
invisible at any other path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from interop import environment
from interop.client import RESOURCES, Client, Resource
from interop.server import running

DRIVER = Path(__file__).with_name("driver.py")
# Resources whose rows name the home's path, so that a server does not list them at another one.
FLEET = frozenset({"workers", "enrollment keys", "tasks"})
MARKER = "kept"  # of everything that was in the home before any test touched it
PROFILE = f"{MARKER}-profile"
PROFILE_SECRETS = {"TOKEN": f"{MARKER}-sealed", "PASSWORD": "zwei\nZeilen 🔑"}
STOP_SECONDS = 60.0
WRITER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Site:
    """A home of the real Sagewai, killed while it ran, and what it held at that moment.

    Attributes:
        home: Where it is; each test begins in that state.
        frozen: The copy that it is made from again.
        listings: What the HTTP API listed, by resource.
        pages: What it reported of rows that others write, by path.
        reading: What `driver.py read` found.
    """

    home: Path
    frozen: Path
    listings: dict[str, object]
    pages: dict[str, object]
    reading: dict[str, object]


def make_site(directory: Path) -> Site:
    """Make and fill a home by the real Sagewai, through its stores and over HTTP, and kill it.

    The data is committed and is in the WAL, as after a power cut.
    """
    home = directory / "site" / "home"
    frozen = directory / "frozen"
    home.parent.mkdir()
    ask_driver(home, "fill", MARKER)
    with running(home, directory / "site" / "server.log") as server:
        Client(server.url).set_up()
        # The fleet's organisation is computed at the start, from the administrator's id.
        server.stop()
        server.start()
        client = Client(server.url)
        client.log_in()
        client.create_each(MARKER)
        listings, pages = client.listings(), client.pages()
        server.kill()
    copy_home(home, frozen)
    scratch = directory / "scratch"
    copy_home(frozen, scratch)
    reading = read_home(scratch)
    shutil.rmtree(scratch)
    return Site(home, frozen, listings, pages, reading)


def copy_home(source: Path, target: Path) -> None:
    """Copy a home that no user uses, with its modes, times and links, replacing the target."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def read_home(home: Path, variables: Mapping[str, str] | None = None) -> dict[str, object]:
    """Return what the real Sagewai finds in a home; opening it checkpoints its WAL."""
    found = ask_driver(home, "read", variables=variables)
    assert isinstance(found, dict)
    return found


def ask_driver(home: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> object:
    """Run `driver.py` on a home and return its answer.

    Args:
        home: SAGEWAI_HOME of the driver.
        arguments: What it is to do.
        variables: Added to its environment; SAGEWAI_DATABASE_URL takes it to PostgreSQL.
    """
    env = {"SAGEWAI_HOME": str(home)} | dict(variables or {})
    printed = environment.run_in_sagewai(DRIVER, *arguments, env=env)
    answer: object = json.loads(printed.splitlines()[-1])
    return answer


def key_of(home: Path) -> Path:
    """Return the master key's file."""
    return home / "secrets" / "master.key"


def lacking(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    """List, as text, what was expected of a reading and is not in the other."""
    missing = []
    for kind, values in expected.items():
        there = found[kind]
        if isinstance(values, list):
            assert isinstance(there, list)
            missing += [f"{kind}: {json.dumps(value)}" for value in values if value not in there]
    return missing


def column(home: Path, query: str) -> list[object]:
    """Return the first column of a query on a home that no server uses."""
    with contextlib.closing(sqlite3.connect(home / "db" / "sagewai.db")) as connection:
        return [row[0] for row in connection.execute(query)]


class Burst:
    """Writes one kind of thing over HTTP as fast as the server takes it, in a thread.

    Args:
        url: Of the server.
        resource: What to write; the markers are its name and a number from 0.
    """

    def __init__(self, url: str, resource: Resource) -> None:
        self.resource = resource
        self.accepted = 0  # numbers below this one were acknowledged
        self.error: Exception | None = None
        self._client = Client(url)
        self._client.log_in()
        self._stopping = Event()
        self._thread = Thread(target=self._write, daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def finish(self) -> None:
        """Stop after the request in progress; the failure, if any, is in `error`."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def marker(self, number: int) -> str:
        """Return the thing of a number."""
        return f"{self.resource.name}-{number:06d}"

    def _write(self) -> None:
        while not self._stopping.is_set():
            try:
                self._client.create(self.resource, self.marker(self.accepted))
            except Exception as error:  # noqa: BLE001 - the test reports whatever it was
                self.error = error
                return
            self.accepted += 1


@contextlib.contextmanager
def bursts(url: str) -> Iterator[list[Burst]]:
    """Keep one HTTP client writing for every resource that may be made by the thousand."""
    writers = [Burst(url, resource) for resource in RESOURCES if resource.burst]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.finish()


class StoreWriter:
    """Another process that writes sessions, runs and learnings through Sagewai's stores.

    Args:
        home: The home that it shares with the server.
        marker: Project, and beginning of every id.
        log: Takes what it prints; outside the home.
    """

    def __init__(self, home: Path, marker: str, log: Path) -> None:
        self._errors = log.with_suffix(".errors")
        # A file, not a pipe: a full pipe would stop the writer.
        self._numbers = log
        with open(self._errors, "wb") as errors, open(self._numbers, "wb") as numbers:
            self._process = subprocess.Popen(
                [str(environment.python_of_sagewai()), str(DRIVER), "write", marker],
                env=environment.quiet_environment() | {"SAGEWAI_HOME": str(home)},
                stdin=subprocess.DEVNULL,
                stdout=numbers,
                stderr=errors,
            )

    @property
    def written(self) -> int:
        """How many records are committed in full."""
        return self._numbers.read_bytes().count(b"\n")

    def wait_for(self, count: int) -> None:
        """Return when so many records are committed; the first comes after a slow import.

        Raises:
            AssertionError: It ended before, or does not get there.
        """
        deadline = time.monotonic() + WRITER_SECONDS
        while self.written < count:
            assert self._process.poll() is None, self._errors.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, f"{self.written} records, {count} expected"
            time.sleep(0.05)

    def finish(self) -> int:
        """Stop it and return how many records it wrote in full.

        Raises:
            AssertionError: One of its writes went wrong.
        """
        os.kill(self._process.pid, signal.SIGTERM)
        self._process.wait(STOP_SECONDS)
        assert self._process.returncode == 0, self._errors.read_text(encoding="utf-8")
        return int(self._numbers.read_text(encoding="utf-8").splitlines()[-1])

    def abandon(self) -> None:
        """End it whatever it does; nothing is left running after a failed test."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(STOP_SECONDS)


@contextlib.contextmanager
def store_writer(home: Path, marker: str, log: Path) -> Iterator[StoreWriter]:
    """Keep another process writing through the stores, and let none of it outlive the test."""
    writer = StoreWriter(home, marker, log)
    try:
        yield writer
    finally:
        writer.abandon()
