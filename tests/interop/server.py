"""The real `sagewai admin serve` on a home, started and ended as its operators and fate do it.

`stop` is what an operator does (SIGTERM), `kill` is what the out-of-memory killer does (SIGKILL).
Both leave the committed data in `db/sagewai.db-wal`: Sagewai never checkpoints when it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from interop import environment
from postgres_server import free_port

READY_SECONDS = 120.0  # two cores that other work keeps busy; 10 s when they are idle
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1
SETTINGS = {
    "SAGEWAI_SCHEDULER_INTERVAL_SECONDS": "3600",  # no background work of its own in a test
    "SAGEWAI_ALLOW_HOST_EXEC": "1",  # it records a workflow run only if it might execute one
}


class ServerError(RuntimeError):
    """The server did not become ready or did not end; the message holds the end of its log."""


@contextlib.contextmanager
def running(home: Path, log: Path, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server, and kill whatever still runs of it at the end.

    Args:
        home: SAGEWAI_HOME of the process.
        log: File that its output is appended to; outside the home.
        variables: Added to its environment, for instance SAGEWAI_DATABASE_URL.
    """
    server = Server(home, log, variables)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Server:
    """One process of the real server on one home; `running` makes it.

    Args:
        home: SAGEWAI_HOME of the process.
        log: File that its output is appended to; outside the home.
        variables: Added to its environment, for instance SAGEWAI_DATABASE_URL.
    """

    def __init__(self, home: Path, log: Path, variables: Mapping[str, str] | None) -> None:
        self.home = home
        self.log = log
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Address without a slash at its end."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id, as `/proc` and a lock's holder name it.

        Raises:
            ServerError: It is not running.
        """
        if self._process is None:
            raise ServerError(f"{self.home}: the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server on a free port and return when it answers.

        Raises:
            ServerError: It ended, or did not become ready in READY_SECONDS.
        """
        self._port = free_port()
        sagewai = environment.python_of_sagewai().with_name("sagewai")
        command = [str(sagewai), "admin", "serve", "--port", str(self._port)]
        variables = environment.quiet_environment() | {"SAGEWAI_HOME": str(self.home)}
        self._output = open(self.log, "ab")  # noqa: SIM115 - closed by _ended, with the process
        self._process = subprocess.Popen(
            command,
            env=variables | SETTINGS | self._variables,
            cwd=self.log.parent,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """End it as an operator does, with SIGTERM, and wait.

        Raises:
            ServerError: It still runs after STOP_SECONDS.
        """
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL and wait; does nothing when it is not running."""
        self._end(signal.SIGKILL)

    def log_text(self) -> str:
        """Return everything that this server, and earlier ones on this log, printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._process.pid, number)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"{self.home}: the server ignores signal {number}") from error
        self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerError(f"{self.home}: the server ended at its start\n{self._tail()}")
            try:
                address = f"{self.url}/api/v1/readyz"
                with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - http, above
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(POLL_SECONDS)
        raise ServerError(f"{self.home}: not ready after {READY_SECONDS:.0f} s\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-40:])
