"""Which snapshots stay, by rules of time and number: a plan from facts alone, touching nothing.

The rules are those of restic and borg, in UTC: `hourly` to `yearly` keep the newest snapshot of
each of the N newest hours, days, ISO weeks, months or years that have one, and the oldest of all
as long as N is not reached; a snapshot that any rule keeps stays.

What may be removed at all are the snapshots of one home at one place whose cards tell so. They are
ordered by the sequence of the catalog. Where the UTC in the names falls from one to the next, a
clock went back: the snapshots before and after are then held to the rules apart, so that neither
side pushes out the other.
"""

import calendar
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from sagewai_ops.errors import UsageError
from sagewai_ops.snapshots.catalog import Snapshot
from sagewai_ops.snapshots.ownership import NO_DATE, Owner, reason_not_owned

_WITHIN = re.compile("".join(f"(?:([0-9]{{1,5}}){unit})?" for unit in "ymwdh"))


def _week(moment: datetime) -> str:
    year, week, _day = moment.isocalendar()
    return f"{year}-W{week:02}"


PERIODS: Mapping[str, Callable[[datetime], str]] = {
    "hourly": lambda moment: f"{moment:%Y-%m-%dT%H}",
    "daily": lambda moment: f"{moment:%Y-%m-%d}",
    "weekly": _week,
    "monthly": lambda moment: f"{moment:%Y-%m}",
    "yearly": lambda moment: f"{moment:%Y}",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is to stay.

    Attributes:
        last: So many of the newest.
        periods: Rule (`hourly` to `yearly`) -> of how many periods the newest one stays.
        within: All that are at most this much older than the newest, such as `30d`; "" for none.
        tags: All that bear one of these.
    """

    last: int = 0
    periods: Mapping[str, int] = field(default_factory=dict)
    within: str = ""
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.within and not any(_span(self.within)):
            raise UsageError(
                f"--keep-within {self.within}: no time at all, which would keep nothing",
                hint="keep the newest alone: --keep-last 1",
            )
        if "" in self.tags:
            raise UsageError("--keep-tag '': not a tag", hint="sagewai-ops snapshots list")

    @property
    def is_empty(self) -> bool:
        """Whether it asks for nothing."""
        return not (self.last or any(self.periods.values()) or self.within or self.tags)


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a snapshot.

    Attributes:
        reasons: Why it stays, one phrase for each rule; empty if it goes.
    """

    snapshot: Snapshot
    reasons: tuple[str, ...]

    @property
    def is_kept(self) -> bool:
        """Whether it is kept."""
        return bool(self.reasons)


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What becomes of each snapshot of a directory.

    Attributes:
        decisions: In the order in which the snapshots were given.
        clock_changes: Pairs of ids: the second was taken after the first and is dated before it.
    """

    decisions: tuple[Decision, ...]
    clock_changes: tuple[tuple[str, str], ...] = ()

    @property
    def removed(self) -> tuple[Snapshot, ...]:
        """What goes."""
        return tuple(decision.snapshot for decision in self.decisions if not decision.is_kept)


def plan_retention(snapshots: Sequence[Snapshot], policy: Policy, owner: Owner) -> RetentionPlan:
    """Decide which snapshots stay.

    Raises:
        UsageError: The policy asks for nothing: everything would go.
    """
    if policy.is_empty:
        raise UsageError(
            "retention: no rule says what is kept", hint="name one, such as --keep-daily 7"
        )
    kept = {one.path: refusal for one in snapshots if (refusal := reason_not_owned(one, owner))}
    own = sorted((one for one in snapshots if one.path not in kept), key=_order)
    always = _protected(own)
    staying = list(own)
    reasons: dict[Path, list[str]] = {}
    # What goes may have stood between snapshots before and after a change of the clock; without it
    # they may be in order, and are held to the rules together. So a second run finds nothing more.
    while True:
        reasons = {one.path: list(always.get(one.path, ())) for one in staying}
        _apply(staying, policy, reasons)
        remaining = [one for one in staying if reasons[one.path]]
        if len(remaining) == len(staying):
            break
        staying = remaining
    return RetentionPlan(
        tuple(
            Decision(
                one, (kept[one.path],) if one.path in kept else tuple(reasons.get(one.path, ()))
            )
            for one in snapshots
        ),
        tuple((before.id, after.id) for before, after in _falls(own)),
    )


def subtract_span(moment: datetime, text: str) -> datetime:
    """Go back from a moment by a span such as `1y6m`, `30d` or `36h`, in calendar months.

    Raises:
        UsageError: The text is no span.
    """
    years, months, weeks, days, hours = _span(text)
    total = moment.year * 12 + moment.month - 1 - years * 12 - months
    if total < 12:
        return NO_DATE
    year, month = divmod(total, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    try:
        return moment.replace(year=year, month=month + 1, day=day) - timedelta(
            weeks=weeks, days=days, hours=hours
        )
    except OverflowError:
        return NO_DATE


def _span(text: str) -> tuple[int, ...]:
    match = _WITHIN.fullmatch(text)
    if not text or match is None:
        raise UsageError(
            f"--keep-within {text}: not a span of time",
            hint="years, months, weeks, days, hours in this order: 30d, 1y6m, 2w, 36h",
        )
    return tuple(int(number or 0) for number in match.groups())


def _order(snapshot: Snapshot) -> tuple[int, datetime, str]:
    return snapshot.sequence, snapshot.created_at, snapshot.id


def _protected(own: Sequence[Snapshot]) -> dict[Path, list[str]]:
    """Name what stays whatever the rules say."""
    reasons: dict[Path, list[str]] = {}
    for name, ones in (
        ("newest", own),
        ("newest proved restorable", [one for one in own if one.proved_at]),
        # Nightly runs that all lack a file, or find the database damaged, must not use up the good.
        ("newest complete", [one for one in own if _is_sound(one)]),
    ):
        if ones:
            reasons.setdefault(ones[-1].path, []).append(name)
        # One that was cut since is of no use: then the newest of those that were not stays too.
        whole = [one for one in ones if not one.is_truncated]
        if whole and ones[-1].is_truncated:
            reasons.setdefault(whole[-1].path, []).append(f"{name} of the right size")
    return reasons


def _is_sound(snapshot: Snapshot) -> bool:
    return snapshot.card.get("complete") is True and snapshot.card.get("sound", True) is True


def _falls(own: Sequence[Snapshot]) -> Iterator[tuple[Snapshot, Snapshot]]:
    """Give the neighbours between which a clock went back."""
    for before, after in itertools.pairwise(own):
        if after.created_at < before.created_at:
            yield before, after


def _stretches(own: Sequence[Snapshot]) -> Iterator[list[Snapshot]]:
    """Cut what is in the order of the sequence where a clock went back."""
    stretch: list[Snapshot] = []
    for one in own:
        if stretch and one.created_at < stretch[-1].created_at:
            yield stretch
            stretch = []
        stretch.append(one)
    if stretch:
        yield stretch


def _apply(own: Sequence[Snapshot], policy: Policy, reasons: Mapping[Path, list[str]]) -> None:
    """Note for each snapshot the rules that keep it."""
    for number, one in enumerate(reversed(own[-policy.last :] if policy.last else ()), start=1):
        reasons[one.path].append(f"last {number}")
    for stretch in _stretches(own):
        newest_first = stretch[::-1]
        for rule, count in policy.periods.items():
            _apply_periods(newest_first, rule, count, reasons)
        if policy.within:
            oldest = subtract_span(newest_first[0].created_at, policy.within)
            for one in newest_first:
                if one.created_at > oldest:
                    reasons[one.path].append(f"within {policy.within}")
    for one in own:
        for tag in one.tags:
            if tag in policy.tags:
                reasons[one.path].append(f"tag {tag}")


def _apply_periods(
    newest_first: Sequence[Snapshot], rule: str, count: int, reasons: Mapping[Path, list[str]]
) -> None:
    last = ""
    for one in newest_first:
        if not count:
            return
        period = PERIODS[rule](one.created_at)
        if period != last:
            reasons[one.path].append(f"{rule} {period}")
        elif one is newest_first[-1]:
            reasons[one.path].append(f"{rule}, the oldest")
        else:
            continue
        last = period
        count -= 1
