"""Times of a schedule: local, with changes of the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.errors import UsageError
from sagewai_ops.schedule.times import Every, parse_every, parse_jitter

YEARS = st.floats(min_value=1.5e9, max_value=2.5e9)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Change the time zone of this process."""

    def change(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield change
    monkeypatch.undo()
    time.tzset()


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def _nights(every: Every, moment: float, count: int) -> list[str]:
    found = []
    for _number in range(count):
        moment = every.next_after(moment)
        found.append(f"{datetime.fromtimestamp(moment, timezone.utc):%m-%dT%H:%M}")
    return found


def test_summer_time_is_neither_skipped_nor_run_twice(zone: Callable[[str], None]) -> None:
    """02:30 does not exist on the last Sunday of March, and exists twice on that of October."""
    zone("Europe/Berlin")
    every = parse_every("day@02:30")

    spring = _nights(every, _moment("2026-03-27T12:00"), 3)
    autumn = _nights(every, _moment("2026-10-23T12:00"), 3)

    assert spring == ["03-28T01:30", "03-29T01:30", "03-30T00:30"]  # 03:30 by the new time
    assert autumn == ["10-24T00:30", "10-25T00:30", "10-26T01:30"]


def test_weeks_have_their_day(zone: Callable[[str], None]) -> None:
    """The day is that of the time zone."""
    zone("UTC")

    weeks = _nights(parse_every("Sunday@04:00"), _moment("2026-11-29T04:00"), 2)

    assert weeks == ["12-06T04:00", "12-13T04:00"]


@given(moment=YEARS, hour=st.integers(0, 23), minute=st.integers(0, 59))
def test_the_next_time_is_the_first_later_one(moment: float, hour: int, minute: int) -> None:
    """At most a day and the change of a clock later, and with the minute that was asked for."""
    due = parse_every(f"day@{hour}:{minute:02}").next_after(moment)

    assert moment < due <= moment + 25 * 3600
    assert time.localtime(due).tm_min == minute


@pytest.mark.parametrize(
    "text",
    ["", "day", "day@24:00", "day@2:3", "noon@02:30", "0h", "6", "h", "367d", "999999d"],
)
def test_other_texts_are_refused(text: str) -> None:
    """With an example."""
    with pytest.raises(UsageError, match="--every"):
        parse_every(text)


def test_a_jitter_is_less_than_50_percent_of_the_period() -> None:
    """Else two runs could be moments apart."""
    assert parse_jitter("15m", parse_every("day@02:30")) == 900
    assert parse_jitter("", parse_every("1s")) == 0
    for text in ("30m", "x", "-5m"):
        with pytest.raises(UsageError, match="--jitter"):
            parse_jitter(text, parse_every("1h"))
