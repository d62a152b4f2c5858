"""Plan which snapshots to keep, by the rules of restic and borg, in UTC.

`hourly` to `yearly` keep the newest snapshot of each of the N newest hours, days, ISO weeks, months
or years that have one, and the oldest snapshot while N is not reached. A snapshot is kept if any
rule keeps it.

The rules count good snapshots only: complete, sound and plausible. Of the others the three newest
are kept, and those with a tag of the rules, so that they never displace a good one.

Only snapshots whose metadata files name this home and its path may be removed. They are ordered by
sequence number. Where the UTC in the names decreases, a clock was set back: the rules are applied
to the snapshots before and after that point separately, so that neither displaces the other.
"""

import calendar
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timedelta
from pathlib import Path

from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.catalog import Snapshot
from sagewai_ops.snapshots.ownership import NO_DATE, Owner, reason_not_owned

_OTHERS = 3  # of the snapshots that are not good, the newest ones that are kept
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
    """The rules.

    Attributes:
        last: Keep this many of the newest.
        periods: Rule (`hourly` to `yearly`) -> number of periods.
        within: Keep all that are at most this much older than the newest, such as `30d`; "" if
            unset.
        tags: Keep all with one of these.
    """

    last: int = 0
    periods: Mapping[str, int] = field(default_factory=dict)
    within: str = ""
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.within and not any(_parse_span(self.within)):
            raise UsageError(
                f"--keep-within {self.within}: an empty span keeps nothing",
                hint="keep only the newest: --keep-last 1",
            )
        if "" in self.tags:
            raise UsageError("--keep-tag '': not a tag", hint="sagewai-ops snapshots list")

    @property
    def is_empty(self) -> bool:
        """Whether it has no rule."""
        return not (self.last or any(self.periods.values()) or self.within or self.tags)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a snapshot is kept.

    Attributes:
        reasons: One phrase for each rule that keeps it; empty if it is removed.
    """

    snapshot: Snapshot
    reasons: tuple[str, ...]

    @property
    def is_kept(self) -> bool:
        """Whether it is kept."""
        return bool(self.reasons)


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """The decisions on all snapshots of a directory.

    Attributes:
        decisions: In the order of the snapshots.
        clock_changes: Pairs of ids: the second was created after the first and is dated before it.
    """

    decisions: tuple[Decision, ...]
    clock_changes: tuple[tuple[str, str], ...] = ()

    @property
    def removed(self) -> tuple[Snapshot, ...]:
        """The snapshots to remove."""
        return tuple(decision.snapshot for decision in self.decisions if not decision.is_kept)


def plan_retention(
    snapshots: Sequence[Snapshot], policy: Policy, owner: Owner, *, spares_good: bool = False
) -> RetentionPlan:
    """Decide which snapshots to keep.

    Args:
        spares_good: Keep all good ones, after a backup that is not good.

    Raises:
        UsageError: The policy has no rule, which would remove everything.
    """
    if policy.is_empty:
        raise UsageError("retention: no --keep rule", hint="add one, such as --keep-daily 7")
    not_owned = {
        item.path: (reason,) for item in snapshots if (reason := reason_not_owned(item, owner))
    }
    own = sorted((item for item in snapshots if item.path not in not_owned), key=_order)
    protected = protect(own)
    for number, item in enumerate(reversed([item for item in own if not counts(item)]), start=1):
        if number <= _OTHERS:
            protected.setdefault(item.path, []).append(f"{_fault(item)}: {number} of {_OTHERS}")
    if spares_good:
        for item in filter(counts, own):
            protected.setdefault(item.path, []).append("good, and the new one is not")
    kept = list(own)
    reasons: dict[Path, list[str]] = {}
    # A removed snapshot may be the reason why two others are separated by a change of the clock.
    # Repeat until nothing changes, so that a second run removes nothing more.
    while True:
        reasons = {item.path: list(protected.get(item.path, ())) for item in kept}
        _apply(kept, policy, reasons)
        remaining = [item for item in kept if reasons[item.path]]
        if len(remaining) == len(kept):
            break
        kept = remaining
    return RetentionPlan(
        tuple(
            Decision(item, not_owned.get(item.path) or tuple(reasons.get(item.path, ())))
            for item in snapshots
        ),
        tuple((before[-1].id, after[0].id) for before, after in itertools.pairwise(_runs(own))),
    )


def subtract_span(moment: datetime, text: str, option: str = "--keep-within") -> datetime:
    """Subtract a span such as `1y6m`, `30d` or `36h`, counting calendar months.

    Args:
        option: That has the span.

    Raises:
        UsageError: The text is not a span.
    """
    years, months, weeks, days, hours = _parse_span(text, option)
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


def _parse_span(text: str, option: str = "--keep-within") -> tuple[int, ...]:
    match = _WITHIN.fullmatch(text)
    if not text or match is None:
        raise UsageError(
            f"{option} {text}: not a span of time",
            hint="write years, months, weeks, days, hours in this order: 30d, 1y6m, 2w, 36h",
        )
    return tuple(int(number or 0) for number in match.groups())


def _order(snapshot: Snapshot) -> tuple[int, datetime, str]:
    return snapshot.sequence, snapshot.created_at, snapshot.id


def counts(snapshot: Snapshot) -> bool:
    """Return whether the rules count a snapshot: it is good, and has its recorded size."""
    return snapshot.is_good and not snapshot.is_truncated


def protect(own: Sequence[Snapshot]) -> dict[Path, list[str]]:
    """Return the reasons of the snapshots that are kept regardless of the rules.

    Args:
        own: In their order.
    """
    reasons: dict[Path, list[str]] = {}
    good = [item for item in own if item.is_good]
    recorded = [item for item in good if item.card.get("complete") is True]
    engines = sorted({item.engine for item in good})
    for name, candidates in (
        ("newest", own),
        ("newest proved restorable", [item for item in own if item.proved_at]),
        ("newest good", good),
        # One whose properties are not recorded may be none.
        ("newest recorded as good", recorded if recorded[-1:] != good[-1:] else []),
        *(
            (f"newest of {engine}", [item for item in good if item.engine == engine])
            for engine in (engines if len(engines) > 1 else ())
        ),
    ):
        if not candidates:
            continue
        reasons.setdefault(candidates[-1].path, []).append(name)
        # A truncated one is useless: keep the newest of the right size, too.
        whole = [item for item in candidates if not item.is_truncated]
        if whole and candidates[-1].is_truncated:
            reasons.setdefault(whole[-1].path, []).append(f"{name} of the right size")
    return reasons


def _fault(snapshot: Snapshot) -> str:
    return ", ".join(snapshot.faults) or "wrong size"


def _runs(own: Sequence[Snapshot]) -> Iterator[list[Snapshot]]:
    """Split snapshots in sequence order where a clock was set back."""
    run: list[Snapshot] = []
    for snapshot in own:
        if run and snapshot.created_at < run[-1].created_at:
            yield run
            run = []
        run.append(snapshot)
    if run:
        yield run


def _apply(own: Sequence[Snapshot], policy: Policy, reasons: Mapping[Path, list[str]]) -> None:
    """Add to each snapshot's reasons the rules that keep it."""
    good = [item for item in own if counts(item)]
    for number, item in enumerate(reversed(good[-policy.last :] if policy.last else ()), start=1):
        reasons[item.path].append(f"last {number}")
    for run in _runs(good):
        newest_first = run[::-1]
        for rule, count in policy.periods.items():
            _apply_periods(newest_first, rule, count, reasons)
        if policy.within:
            oldest = subtract_span(newest_first[0].created_at, policy.within)
            for item in newest_first:
                if item.created_at > oldest:
                    reasons[item.path].append(f"within {policy.within}")
    for item in own:
        for tag in item.tags:
            if tag in policy.tags:
                reasons[item.path].append(f"tag {tag}")


def _apply_periods(
    newest_first: Sequence[Snapshot], rule: str, count: int, reasons: Mapping[Path, list[str]]
) -> None:
    last = ""
    for item in newest_first:
        if not count:
            return
        period = PERIODS[rule](item.created_at)
        if period != last:
            reasons[item.path].append(f"{rule} {period}")
        elif item is newest_first[-1]:
            reasons[item.path].append(f"{rule}, the oldest")
        else:
            continue
        last = period
        count -= 1
