"""When a schedule is due: `day@02:30`, `sunday@04:00`, or an interval such as `6h`.

Times of day are local: those of TZ, in containers UTC. One that a change to summer time skips is
due an hour later, one that the change back repeats is due once. An interval begins at the start of
the loop or the end of a run.
"""

import re
from datetime import datetime, time, timedelta

from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TIME = re.compile(rf"(day|{'|'.join(_DAYS)})@([01]?[0-9]|2[0-3]):([0-5][0-9])")
_SPAN = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DAY_SECONDS = 86_400
_MOST_SECONDS = 366 * _DAY_SECONDS
_SOON_DAYS = 9  # a week, and a day on each side


@dataclass(frozen=True, slots=True)
class Every:
    """The times of a schedule.

    Attributes:
        period_seconds: Between two times; a day of a change of the clock is longer or shorter.
        weekday: From 0, Monday; None for every day, or for an interval.
        at: The time of day; None for an interval.
    """

    period_seconds: int
    at: time | None = None
    weekday: int | None = None

    def next_after(self, moment: float) -> float:
        """Return the first time after a moment, both in seconds since 1970."""
        if self.at is None:
            return moment + self.period_seconds
        today = datetime.fromtimestamp(moment).date()  # noqa: DTZ006 - local on purpose
        days = (today + timedelta(days=number) for number in range(_SOON_DAYS))
        return next(
            due
            for day in days
            if self.weekday in (None, day.weekday())
            # `fold` is 0: before a change of the clock where the time exists twice or not at all.
            and (due := datetime.combine(day, self.at).timestamp()) > moment
        )


def parse_every(text: str) -> Every:
    """Parse the times of a schedule.

    Raises:
        UsageError: It is neither a time of day nor an interval of up to a year.
    """
    if match := _TIME.fullmatch(text.lower()):
        day, at = match[1], time(int(match[2]), int(match[3]))
        if day == "day":
            return Every(_DAY_SECONDS, at)
        return Every(7 * _DAY_SECONDS, at, _DAYS.index(day))
    if 0 < (seconds := _seconds(text)) <= _MOST_SECONDS:
        return Every(seconds)
    raise UsageError(
        f"--every {text}: not a time of day, nor an interval",
        hint="--every day@02:30  # or sunday@04:00, 6h",
    )


def parse_jitter(text: str, every: Every) -> int:
    """Parse the longest random delay, and return it in seconds; "" for none.

    Raises:
        UsageError: It is not a duration, or not shorter than half of the period.
    """
    if not text or text == "0":
        return 0
    seconds = _seconds(text)
    if not seconds or seconds * 2 >= every.period_seconds:
        raise UsageError(
            f"--jitter {text}: not a duration shorter than half of the period", hint="--jitter 15m"
        )
    return seconds


def _seconds(text: str) -> int:
    """Return a duration in seconds; 0 if the text is not one."""
    match = _SPAN.fullmatch(text.lower())
    return int(match[1]) * _SECONDS[match[2]] if match else 0
