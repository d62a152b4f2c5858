"""A second process that checks a database, for `db check`: SQLite's own check, then whole tables.

Two threads of one process would wait for each other at every allocation of SQLite, which counts
its memory under one lock; that takes half of the time again. The process reads requests from stdin
and writes replies to stdout, both JSON, one a line. It ends with its parent.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops import errors
from sagewai_ops.database.sqlite.integrity import decode_lossy, find_damage, open_for_check
from sagewai_ops.errors import OpsError
from sagewai_ops.schema.findings import Finding, Tally

if TYPE_CHECKING:
    import subprocess

_END_SECONDS = 5.0  # from SIGTERM to SIGKILL
# Replies: a number of rows, a finding, and the end of a request, with its result or by an error.
_ROWS, _FINDING, _DONE = "rows", "finding", "done"
_SQLITE, _MEMORY, _ERROR = "sqlite", "memory", "error"


class CheckWorker:
    """The other process, as this one sees it: it answers one request at a time.

    Args:
        process: It runs `main`.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lock = threading.Lock()

    def open(self, path: Path) -> bool:
        """Open a database, of which this process has a read transaction.

        Returns:
            Whether it is open: a writer that waits for this process lets in no other.
        """
        try:
            self._request(os.fspath(path))
        except sqlite3.Error:
            return False
        return True

    def find_damage(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Run SQLite's check; see `integrity.find_damage`."""
        messages, unchecked = self._request(None)
        return tuple(messages), unchecked

    def check_values(
        self,
        table: str,
        columns: Sequence[str],
        report: Callable[[Finding], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Check the values of a table; see `home_values.check_values`.

        Args:
            report: Called with each finding, whose examples are rowids.

        Raises:
            sqlite3.DatabaseError: It cannot be read as a whole.
        """
        self._request([table, *columns], report, on_progress)

    def stop(self) -> None:
        """End the process; a method that waits for it fails."""
        self._process.kill()

    def close(self) -> None:
        """Wait for the end of the process, and so for that of its locks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _request(
        self,
        request: object,
        report: Callable[[Finding], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Any:
        with self._lock:
            requests, replies = self._process.stdin, self._process.stdout
            assert requests is not None
            assert replies is not None
            with suppress(BrokenPipeError):  # it has ended, which the missing reply shows
                _write(requests.fileno(), request)
            for line in replies:
                kind, *content = json.loads(line)
                if kind == _ROWS and on_progress:
                    on_progress(content[0])
                elif kind == _FINDING and report:
                    report(Finding(**{**content[0], "examples": tuple(content[0]["examples"])}))
                elif kind == _DONE:
                    return content[0]
                else:
                    raise _failure(kind, content)
        raise OpsError(f"worker process: ended with status {self._process.wait()}")


def _failure(kind: str, content: list[str]) -> Exception:
    """Return the error of a reply."""
    if kind == _SQLITE:
        return sqlite3.DatabaseError(*content)
    if kind == _MEMORY:
        return MemoryError()
    name, message, hint = content
    error: type[OpsError] = getattr(errors, name)
    return error(message, hint=hint)


@contextmanager
def start_worker() -> Iterator[CheckWorker]:
    """Run a worker for the block."""
    from sagewai_ops.process.child import python_child

    with python_child(__name__, end_seconds=_END_SECONDS) as process:
        yield CheckWorker(process)


def main() -> None:
    """Answer the requests that arrive on stdin: a path, null for SQLite's check, then tables."""
    from sagewai_ops.process import core_dumps
    from sagewai_ops.process.malloc import keep_large_blocks
    from sagewai_ops.process.parent import parent_death_signal

    parent_death_signal(signal.SIGKILL)()
    core_dumps.forbid()
    gc.disable()  # rows and documents have no cycles
    keep_large_blocks()  # for the joined texts
    path: Path | None = None
    with suppress(BrokenPipeError), ExitStack() as stack:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            try:
                if path is None:
                    path = Path(request)
                    # Its lock is also that of all later connections, which would not get another.
                    pin = stack.enter_context(open_for_check(path))
                    pin.execute("PRAGMA schema_version").fetchone()
                    _send(_DONE, None)
                elif request is None:
                    _find_damage(path)
                else:
                    _check_values(path, *request)
            except sqlite3.Error as error:
                _send(_SQLITE, str(error))
            except MemoryError:
                _send(_MEMORY)
            except OpsError as error:
                _send(_ERROR, type(error).__name__, error.message, error.hint)
    os._exit(0)  # nothing is left to close, which would take 20 ms


def _find_damage(path: Path) -> None:
    with open_for_check(path) as connection:
        connection.text_factory = decode_lossy
        _send(_DONE, find_damage(connection, path))


def _check_values(path: Path, table: str, *columns: str) -> None:
    from sagewai_ops.export.validate.home_values import check_values

    tally = Tally()

    def report(kind: str, column: str, reason: str, rows: Sequence[int], *, is_note: bool) -> None:
        tally.add(kind, table, column, reason, rows, str, is_note=is_note)

    try:
        with open_for_check(path) as connection:
            check_values(connection, table, columns, report, lambda rows: _send(_ROWS, rows))
    finally:  # what was found before an error counts too
        for found in tally.findings():
            _send(_FINDING, asdict(found))
    _send(_DONE, None)


def _send(*reply: object) -> None:
    _write(1, reply)


def _write(descriptor: int, message: object) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]
