"""Run a command at the times of a schedule, in the foreground: for containers.

Each run is a process of its own, so a killed one ends neither the loop nor the next run, and two
never overlap: a time that passes during a run is skipped. The wall clock decides when a run is due.
If it jumps forward over the time, the run begins at once; if it is set back, the time is not
repeated: between two runs at least half a period elapses, by a clock that nothing sets.
"""

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sagewai_ops.process.child import end
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.records import dataclass
from sagewai_ops.schedule.times import Every

_CLOCK_SECONDS = 20.0  # between two looks at the clock, which can be set while we sleep
_END_SECONDS = 60.0  # from SIGTERM to SIGKILL: it removes partial files
_KILLED = 128  # and the signal: as a shell reports it
# Without a document: of an interpreter that did not start, or a wrapper whose program was killed.
_UNREPORTED = (1, 126, 127, *range(_KILLED + 1, _KILLED + signal.NSIG))


class Clock:
    """The clocks of the system; tests replace them."""

    def now(self) -> float:
        """Return the time, in seconds since 1970."""
        return time.time()

    def elapsed(self) -> float:
        """Return seconds of a clock that is never set, the time of a suspended system included."""
        # BOOTTIME is Linux's.
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended.

    Attributes:
        document: The JSON object that it printed; None if it was killed before.
        interruption: What ends the loop: a signal ended the run; None otherwise.
        is_reported: Whether the run itself could report its end. It could not if it was killed, was
            not started, or did not get as far as Python.
    """

    exit_code: int
    seconds: float
    document: dict[str, Any] | None
    interruption: BaseException | None = None
    is_reported: bool = True

    @property
    def problem(self) -> str:
        """Why it ended without a document, in a phrase."""
        number = self.exit_code - _KILLED
        if not 0 < number < signal.NSIG:
            return f"ended without a result, exit code {self.exit_code}"
        cause = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
        return f"killed by signal {number}{cause}"


@dataclass(frozen=True, slots=True)
class ScheduleRuns:
    """The runs of a schedule that has ended."""

    runs: int
    failed: int


def due_times(
    every: Every, delay: Callable[[], float], clock: Clock, skipped: Callable[[float], None]
) -> Iterator[float]:
    """Wait for each time of a schedule, and yield it.

    Args:
        delay: Returns the delay of the next run, in seconds.
        skipped: Called with each time that has no run: the first that passed during a run, and
            those that a clock that was set back repeats.
    """
    last: float | None = None
    started = 0.0
    while True:
        if last is not None and every.at and (missed := every.next_after(last)) <= clock.now():
            skipped(missed)
        due, extra = every.next_after(clock.now()), delay()
        while (now := clock.now()) < due + extra:
            clock.sleep(min(due + extra - now, _CLOCK_SECONDS))
            # A clock that was set back can have an earlier time before it.
            due = min(due, every.next_after(clock.now()))
        is_repeated = last is not None and due <= last
        if is_repeated and clock.elapsed() - started < every.period_seconds / 2:
            skipped(due)
            continue
        last, started = due, clock.elapsed()
        yield due


def run_once(words: Sequence[str]) -> Ended:
    """Run a command that prints one JSON object, and wait for its end.

    A signal ends it too, and is returned: the run is reported before the loop ends.

    Raises:
        OSError: The program cannot be started.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        with uninterrupted():  # a signal must not lose the process
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, start_new_session=True
            )
        interruption: BaseException | None = None
        try:
            code = process.wait()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            interruption = error
            code = end(process, _END_SECONDS, alone=True)
        output.seek(0)
        document = _parse(output.read())
    # A run that gets as far as a report prints its object first.
    is_reported = code >= 0 and (document is not None or code not in _UNREPORTED)
    if code < 0:
        code = _KILLED - code
    return Ended(code, time.monotonic() - began, document, interruption, is_reported)


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
