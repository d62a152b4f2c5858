"""The loop of a schedule: clocks that are set, runs that fail or are killed."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import pytest

from sagewai_ops.schedule.loop import Clock, due_times, run_once
from sagewai_ops.schedule.times import Every, parse_every

HOUR = 3600.0
DAY = 24 * HOUR
START = 1_795_478_400.0  # 2026-11-24 00:00 UTC


class FakeClock(Clock):
    """A clock that moves only while it is slept on.

    Args:
        jumps: Elapsed seconds -> by how much the wall clock is set then.
    """

    def __init__(self, jumps: dict[float, float] | None = None) -> None:
        self.jumps = dict(jumps or {})
        self.wall, self.real = START, 0.0

    def now(self) -> float:
        """Return the wall clock."""
        return self.wall

    def elapsed(self) -> float:
        """Return the time that no jump changes."""
        return self.real

    def sleep(self, seconds: float) -> None:
        """Advance both clocks."""
        self.spend(seconds)

    def spend(self, seconds: float) -> None:
        """Advance both clocks."""
        self.wall += seconds
        self.real += seconds
        for moment in [moment for moment in self.jumps if moment <= self.real]:
            self.wall += self.jumps.pop(moment)


def _runs(
    clock: FakeClock,
    every: Every,
    count: int,
    *,
    seconds: float = 60,
    delay: Callable[[], float] = lambda: 0,
    skipped: Callable[[float], None] = lambda _time: None,
) -> list[float]:
    """Return when runs begin, in elapsed hours."""
    begun = []
    for _due in itertools.islice(due_times(every, delay, clock, skipped), count):
        begun.append(round(clock.real / HOUR, 1))
        clock.spend(seconds)
    return begun


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


NIGHT = parse_every("day@02:30")


def test_each_night_has_one_run() -> None:
    """At the time, whatever the run before took."""
    assert _runs(FakeClock(), NIGHT, 3) == [2.5, 26.5, 50.5]


def test_a_time_that_passes_during_a_run_is_skipped() -> None:
    """Two runs never overlap, and the missed one is not made up for, but reported."""
    missed: list[float] = []

    begun = _runs(FakeClock(), NIGHT, 3, seconds=25 * HOUR, skipped=missed.append)

    assert begun == [2.5, 50.5, 98.5]
    assert [(time - START) / HOUR for time in missed] == [26.5, 74.5]


def test_a_delay_is_added_to_each_time() -> None:
    """And does not add up."""
    assert _runs(FakeClock(), NIGHT, 3, delay=lambda: 0.5 * HOUR) == [3.0, 27.0, 51.0]


def test_a_clock_that_jumps_over_the_time_begins_at_once() -> None:
    """After a suspended night, or the first contact with a time server."""
    assert _runs(FakeClock({1 * HOUR: 6 * HOUR}), NIGHT, 2) == [1.0, 20.5]


@pytest.mark.parametrize("delay", [0.0, 1800.0])
def test_a_clock_that_is_set_back_repeats_no_run(delay: float) -> None:
    """An hour back, twice in the night of a run: neither a second run, nor a lost night."""
    back = {2.5 * HOUR + 120: -HOUR, 3.2 * HOUR: -HOUR}

    begun = _runs(FakeClock(back), NIGHT, 2, delay=lambda: delay)

    assert begun[0] == pytest.approx(2.5 + delay / HOUR, abs=2.1 if delay else 0.1)
    assert 20 < begun[1] - begun[0] <= 28


def test_a_clock_of_another_year_is_corrected() -> None:
    """It began in 2038; after it was set right, the first night is the next one."""
    clock = FakeClock({0.5 * HOUR: -12 * 365 * DAY})
    clock.wall += 12 * 365 * DAY

    assert _runs(clock, NIGHT, 2) == [2.5, 26.5]


def test_a_jump_soon_after_a_run_loses_no_time() -> None:
    """Each time of the clock has its run, also if the one before began late."""
    assert _runs(FakeClock({3 * HOUR: DAY}), NIGHT, 3) == [2.5, 3.0, 26.5]
    # Asleep from 01:00 to 17:00: the run of that night is late, the next one is not.
    assert _runs(FakeClock({1 * HOUR: 16 * HOUR}), NIGHT, 3) == [1.0, 10.5, 34.5]


def test_a_repeated_time_is_reported() -> None:
    """An hour back after the run: its time comes again, and has no second run."""
    missed: list[float] = []

    begun = _runs(FakeClock({3 * HOUR: -HOUR}), NIGHT, 2, skipped=missed.append)

    assert begun == [2.5, 27.5]
    assert missed == [START + 2.5 * HOUR]


def test_intervals_are_counted_from_the_end_of_a_run() -> None:
    """Of six hours; a set clock changes the next one at most."""
    every = parse_every("6h")

    assert _runs(FakeClock(), every, 3, seconds=HOUR) == [6.0, 13.0, 20.0]
    assert _runs(FakeClock({1 * HOUR: -DAY}), every, 2) == [7.0, 13.0]


def test_a_killed_run_has_no_document() -> None:
    """Its exit code is a shell's; what it printed until then is not taken for a result."""
    killed = (
        "import os, signal; print('{\"a\": 1', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )

    ended = run_once([sys.executable, "-c", killed])
    whole = run_once([sys.executable, "-c", "print('{\"a\": 1}'); raise SystemExit(4)"])

    assert (ended.exit_code, ended.document, ended.interruption) == (137, None, None)
    assert (whole.exit_code, whole.document) == (4, {"a": 1})
    assert ended.problem == "killed by signal 9, perhaps for lack of memory"
    assert (ended.is_reported, whole.is_reported) == (False, True)


@pytest.mark.parametrize(("code", "is_reported"), [(1, False), (13, True), (137, False)])
def test_what_prints_nothing_and_ends_may_have_reported(code: int, *, is_reported: bool) -> None:
    """Not an interpreter that does not start, nor a wrapper; but a run on a full disk."""
    ended = run_once([sys.executable, "-c", f"raise SystemExit({code})"])

    assert (ended.exit_code, ended.document, ended.is_reported) == (code, None, is_reported)
