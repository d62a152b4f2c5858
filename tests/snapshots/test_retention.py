"""Which snapshots the rules keep: restic's answers on the same dates, and laws that always hold."""

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagewai_ops.errors import UsageError
from sagewai_ops.snapshots.catalog import Snapshot
from sagewai_ops.snapshots.ownership import Owner, reason_not_owned
from sagewai_ops.snapshots.retention import (
    PERIODS,
    Policy,
    RetentionPlan,
    plan_retention,
    subtract_span,
)

OURS = Owner(frozenset({"us"}), "/srv/home", "here")
CARD = {"home_id": "us", "home": "/srv/home", "host": "here"}
MOMENT = "%Y-%m-%d %H:%M:%S"
FOURTEEN = (
    "2024-12-31 23:30:00",  # 1
    "2025-01-01 00:10:00",
    "2025-11-02 12:00:00",
    "2026-01-04 10:00:00",  # a Sunday
    "2026-01-05 10:00:00",  # 5, the Monday after
    "2026-02-10 01:00:00",
    "2026-02-10 01:40:00",
    "2026-02-10 02:10:00",
    "2026-02-11 09:00:00",
    "2026-02-20 09:00:00",  # 10
    "2026-03-01 08:00:00",
    "2026-03-01 23:59:59",
    "2026-03-02 00:00:00",
    "2026-03-02 00:30:00",
)
FOUR = ("2025-01-01 00:10:00", "2025-11-02 12:00:00", "2025-11-02 13:00:00", "2026-03-02 00:30:00")


def made(sequence: int, moment: datetime, **card: Any) -> Snapshot:
    """Return a snapshot as the catalog does."""
    name = f"{moment:%Y%m%dT%H%M%SZ}-{sequence:06x}"
    facts = {**CARD, "sequence": sequence, **card}
    return Snapshot(name, Path(f"/b/sagewai-{name}.tar.zst"), moment, False, 1, facts)


def dated(*moments: str) -> list[Snapshot]:
    """Make snapshots of these moments, taken in this order."""
    return [
        made(number, datetime.strptime(moment, MOMENT).replace(tzinfo=timezone.utc))
        for number, moment in enumerate(moments, start=1)
    ]


def numbers(plan: RetentionPlan) -> list[int]:
    """Return the sequence numbers of the kept snapshots."""
    return [decision.snapshot.sequence for decision in plan.decisions if decision.is_kept]


# What `restic forget --dry-run` (0.14.0, TZ=UTC) kept of snapshots with these times.
@pytest.mark.parametrize(
    ("moments", "policy", "kept"),
    [
        (FOURTEEN, Policy(last=3), [12, 13, 14]),
        (FOURTEEN, Policy(periods={"hourly": 4}), [10, 11, 12, 14]),
        (FOURTEEN, Policy(periods={"hourly": 20}), [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14]),
        (FOURTEEN, Policy(periods={"daily": 3}), [10, 12, 14]),
        (FOURTEEN, Policy(periods={"daily": 20}), [1, 2, 3, 4, 5, 8, 9, 10, 12, 14]),
        (FOURTEEN, Policy(periods={"weekly": 3}), [10, 12, 14]),
        (FOURTEEN, Policy(periods={"monthly": 2}), [10, 14]),
        (FOURTEEN, Policy(periods={"monthly": 20}), [1, 2, 3, 5, 10, 14]),
        (FOURTEEN, Policy(periods={"yearly": 2}), [3, 14]),
        (FOURTEEN, Policy(periods={"yearly": 5}), [1, 3, 14]),
        (FOURTEEN, Policy(within="20d"), [6, 7, 8, 9, 10, 11, 12, 13, 14]),
        (FOURTEEN, Policy(within="1m"), [6, 7, 8, 9, 10, 11, 12, 13, 14]),
        (FOURTEEN, Policy(within="1y2d"), [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]),
        (FOURTEEN, Policy(within="1d12h"), [11, 12, 13, 14]),
        (FOURTEEN, Policy(within="24h"), [11, 12, 13, 14]),
        (
            FOURTEEN,
            Policy(periods={"daily": 2, "weekly": 2, "monthly": 3, "yearly": 1}),
            [5, 10, 12, 14],
        ),
    ],
)
def test_the_rules_are_those_of_restic(
    moments: Sequence[str], policy: Policy, kept: list[int]
) -> None:
    """The same dates, the same rules, the same snapshots."""
    assert numbers(plan_retention(dated(*moments), policy, OURS)) == kept


# As `borg prune` (1.2.4) does it, and restic since 0.17 by its documentation.
@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (Policy(periods={"yearly": 5}), [1, 3, 4]),
        (Policy(periods={"yearly": 3}), [1, 3, 4]),
        (Policy(periods={"yearly": 2}), [3, 4]),
        (Policy(periods={"daily": 4}), [1, 3, 4]),
    ],
)
def test_the_oldest_stays_while_a_rule_is_not_filled(policy: Policy, kept: list[int]) -> None:
    """So history grows as far back as it can, until there are as many periods as may be."""
    assert numbers(plan_retention(dated(*FOUR), policy, OURS)) == kept


def test_each_reason_names_its_rule_and_period() -> None:
    """In the order of the rules, the protected ones first."""
    plan = plan_retention(
        dated(*FOUR), Policy(1, {"daily": 1, "weekly": 2, "yearly": 3}, "1d"), OURS
    )

    assert [decision.reasons for decision in plan.decisions] == [
        ("yearly, the oldest",),
        (),
        ("weekly 2025-W44", "yearly 2025"),
        (
            *("newest", "newest good", "last 1", "daily 2026-03-02"),
            *("weekly 2026-W10", "yearly 2026", "within 1d"),
        ),
    ]


def test_all_with_a_tag_stay() -> None:
    """One of several is enough; what a card holds that is no text is no tag."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    known = [
        made(number, start + timedelta(hours=number), tags=tags)
        for number, tags in enumerate((["a", "b"], ["b"], [], [7, None], ["c"], []), start=1)
    ]

    assert numbers(plan_retention(known, Policy(tags=frozenset({"a", "c"})), OURS)) == [1, 5, 6]


@pytest.mark.parametrize("policy", [Policy(), Policy(last=0, periods={"daily": 0})])
def test_an_empty_policy_is_refused(policy: Policy) -> None:
    """It would remove everything: that is never meant."""
    with pytest.raises(UsageError, match="no --keep rule"):
        plan_retention(dated(*FOUR), policy, OURS)


@pytest.mark.parametrize("text", ["0d", "0y0h"])
def test_a_span_of_no_time_is_refused(text: str) -> None:
    """It would remove all but the newest; --keep-last 1 does that."""
    with pytest.raises(UsageError, match="keeps nothing"):
        Policy(within=text)


def test_a_tag_of_nothing_is_refused() -> None:
    """It is `--keep-tag "$UNSET"` in a script, and no snapshot bears it: everything would go."""
    with pytest.raises(UsageError, match="not a tag"):
        Policy(tags=frozenset({"nightly", ""}))


@pytest.mark.parametrize("text", ["30", "d", "-3d", "3d1y", "1.5d", "30 d", "٣d", "1y1y"])
def test_what_is_no_span_is_refused(text: str) -> None:
    """Before anything else is looked at."""
    with pytest.raises(UsageError, match="not a span"):
        Policy(within=text)


def test_a_span_goes_by_the_calendar() -> None:
    """A month before the end of March is the end of February; before all time is all time."""
    march = datetime(2026, 3, 31, 12, tzinfo=timezone.utc)

    assert subtract_span(march, "1m") == datetime(2026, 2, 28, 12, tzinfo=timezone.utc)
    assert subtract_span(march, "1y1m1w1d1h") == datetime(2025, 2, 20, 11, tzinfo=timezone.utc)
    assert subtract_span(march, "9999y") == datetime.min.replace(tzinfo=timezone.utc)
    assert subtract_span(march, "2025y9999w").year == 1


def test_the_newest_the_newest_proved_and_the_newest_good_stay() -> None:
    """Regardless of the rules, even if the last snapshots are all incomplete."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    facts: list[dict[str, Any]] = [
        {"complete": True},
        {"proved_restorable_at": "2026-01-09T00:00:00Z", "complete": False},
        {"proved_restorable_at": "2026-01-08T00:00:00Z", "complete": False},
        {"complete": True},
        {"complete": True, "sound": False},
        {"complete": False},
        {"complete": False},
    ]
    known = [
        made(number, start + timedelta(days=number), **card) for number, card in enumerate(facts, 1)
    ]

    plan = plan_retention(known, Policy(tags=frozenset({"none"})), OURS)

    assert [(decision.snapshot.sequence, *decision.reasons) for decision in plan.decisions][2:] == [
        (3, "newest proved restorable"),
        (4, "newest good"),
        (5, "not sound: 3 of 3"),
        (6, "not complete: 2 of 3"),
        (7, "newest", "not complete: 1 of 3"),
    ]


def test_a_truncated_snapshot_displaces_no_complete_one() -> None:
    """Of newest, newest proved and newest good, the newest of its card's size stays as well."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    proved = {"proved_restorable_at": "2026-01-09T00:00:00Z"}
    facts: list[dict[str, Any]] = [
        {**proved, "archive_bytes": 1},
        {"complete": True, "archive_bytes": 1},
        {"archive_bytes": 1},
        {"archive_bytes": 1},
        {**proved, "complete": True, "archive_bytes": 2},
        {"archive_bytes": 9},
    ]
    known = [
        made(number, start + timedelta(days=number), **card) for number, card in enumerate(facts, 1)
    ]

    plan = plan_retention(known, Policy(tags=frozenset({"none"})), OURS)

    assert [(decision.snapshot.sequence, *decision.reasons) for decision in plan.decisions] == [
        (1, "newest proved restorable of the right size"),
        (2, "newest recorded as good of the right size"),
        (3,),
        (4, "newest of the right size", "newest good of the right size"),
        (5, "newest proved restorable", "newest recorded as good", "wrong size: 2 of 3"),
        (6, "newest", "newest good", "wrong size: 1 of 3"),
    ]


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ({}, "its metadata file does not name its home"),
        ({"home_id": "us", "home": "/srv/home"}, "its metadata file does not name its home"),
        ({**CARD, "sequence": 1, "home_id": "them"}, "of another home"),
        ({**CARD, "sequence": 1, "home": "/srv/copy"}, "of the home at /srv/copy"),
        ({**CARD, "sequence": 1, "host": "there"}, "of the home on there"),
    ],
)
def test_what_is_not_surely_of_this_home_stays(card: dict[str, Any], reason: str) -> None:
    """A clone bears the same id: path and machine count too."""
    moment = datetime(2020, 1, 1, tzinfo=timezone.utc)
    other = Snapshot("other", Path("/b/other"), moment, False, 1, card)

    plan = plan_retention([other, *dated(*FOURTEEN)], Policy(last=1), OURS)

    assert plan.decisions[0].reasons == (reason,)
    assert numbers(plan)[1:] == [14]


def test_what_the_home_left_elsewhere_is_its_own_when_it_says_so() -> None:
    """After a move; never another home's for that."""
    moved = Owner(frozenset({"us", "place"}), "/new", "there", all_paths=True)
    known = dated(*FOUR)
    foreigner = made(9, known[0].created_at, home_id="them")

    assert numbers(plan_retention([*known, foreigner], Policy(last=1), moved)) == [4, 9]


def test_a_card_without_a_host_is_matched_by_its_path() -> None:
    """Its id and its path are all that is known."""
    known = made(1, datetime(2026, 1, 1, tzinfo=timezone.utc))
    bare = {name: value for name, value in known.card.items() if name != "host"}
    snapshot = Snapshot(known.id, known.path, known.created_at, False, 1, bare)

    assert reason_not_owned(snapshot, OURS) == ""


def test_a_clock_that_went_back_deletes_nothing() -> None:
    """What was taken before it stays exactly as if nothing had come after."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    back = datetime(2020, 1, 1, tzinfo=timezone.utc)
    before = [made(number, start + timedelta(days=number)) for number in range(1, 8)]
    after = [made(10 + number, back + timedelta(days=number)) for number in range(5)]
    policy = Policy(periods={"daily": 7}, within="7d")

    for count in range(1, len(after) + 1):
        plan = plan_retention([*before, *after[:count]], policy, OURS)
        assert plan.removed == ()
        assert plan.clock_changes == ((before[-1].id, after[0].id),)


def test_snapshots_of_a_clock_that_was_ahead_push_out_no_other() -> None:
    """One dated in the future takes the place of none that comes after it."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    ahead = made(6, datetime(2038, 1, 1, tzinfo=timezone.utc))
    known = [made(number, start + timedelta(days=number)) for number in range(1, 12) if number != 6]

    plan = plan_retention([*known, ahead], Policy(periods={"daily": 5}), OURS)

    assert set(numbers(plan)) >= {6, 7, 8, 9, 10, 11}
    assert set(numbers(plan)) >= {2, 3, 4, 5}


def test_once_the_clock_is_right_again_the_rules_meet() -> None:
    """When what the wrong clock dated is gone, all are in order and held to the rules together."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    wrong = made(8, datetime(2020, 1, 1, tzinfo=timezone.utc))
    known = [made(number, start + timedelta(days=number)) for number in range(1, 20) if number != 8]

    plan = plan_retention([*known, wrong], Policy(periods={"daily": 3}), OURS)

    assert numbers(plan) == [17, 18, 19]


_START = datetime(2024, 1, 1, tzinfo=timezone.utc)


@st.composite
def directories(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots of several homes, some without a card, by a clock that may go back."""
    found = []
    moment = _START
    for number in range(1, draw(st.integers(1, 25)) + 1):
        moment += timedelta(
            hours=draw(st.sampled_from([0, 1, 5, 24, 24, 30, 170, 900, -50, -9000]))
        )
        moment = max(moment, _START)
        card: dict[str, Any] = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "complete": st.booleans(),
                    "tags": st.lists(st.sampled_from("ab"), max_size=2, unique=True),
                    "proved_restorable_at": st.just("2026-01-01T00:00:00Z"),
                    "home_id": st.sampled_from(["us", "them"]),
                },
            )
        )
        item = made(number, moment, **card)
        is_blank = draw(st.integers(0, 9)) == 0
        found.append(Snapshot(item.id, item.path, moment, False, 1, {}) if is_blank else item)
    return draw(st.permutations(found))


_COUNTS = st.integers(0, 4)
_POLICIES = st.builds(
    Policy,
    last=_COUNTS,
    periods=st.fixed_dictionaries(dict.fromkeys(PERIODS, _COUNTS)),
    within=st.sampled_from(["", "1d", "30d", "1y"]),
    tags=st.frozensets(st.sampled_from("ab")),
).filter(lambda policy: not policy.is_empty)


def _kept(known: Sequence[Snapshot], policy: Policy) -> set[str]:
    plan = plan_retention(known, policy, OURS)
    return {decision.snapshot.id for decision in plan.decisions if decision.is_kept}


@settings(max_examples=50)
@given(directories(), _POLICIES, st.data())
def test_asking_for_more_never_removes_more(
    known: list[Snapshot], policy: Policy, data: st.DataObject
) -> None:
    """Every rule only ever adds."""
    more = Policy(
        last=policy.last + data.draw(_COUNTS),
        periods={rule: count + data.draw(_COUNTS) for rule, count in policy.periods.items()},
        within={"": "1d", "1d": "30d", "30d": "1y", "1y": "1y"}[policy.within],
        tags=policy.tags | data.draw(st.frozensets(st.sampled_from("ab"))),
    )

    assert _kept(known, policy) <= _kept(known, more)


@settings(max_examples=50)
@given(directories(), _POLICIES)
def test_a_second_plan_removes_nothing(known: list[Snapshot], policy: Policy) -> None:
    """What stays, stays under the same rules."""
    kept = _kept(known, policy)
    remaining = [item for item in known if item.id in kept]

    assert _kept(remaining, policy) == kept


@settings(max_examples=50)
@given(directories(), _POLICIES)
def test_what_is_protected_is_never_removed(known: list[Snapshot], policy: Policy) -> None:
    """The newest, the newest proved, and all that is not surely of this home."""
    kept = _kept(known, policy)
    own = sorted((item for item in known if item.home_id == "us"), key=lambda item: item.sequence)
    proved = [item for item in own if item.proved_at]

    assert {item.id for item in known if item.home_id != "us"} <= kept
    assert {item.id for item in (*own[-1:], *proved[-1:])} <= kept


@settings(max_examples=50)
@given(directories(), _POLICIES, st.randoms())
def test_the_order_in_which_a_directory_is_listed_decides_nothing(
    known: list[Snapshot], policy: Policy, random: Any
) -> None:
    """Only the sequence and the dates do."""
    other = list(known)
    random.shuffle(other)

    assert _kept(known, policy) == _kept(other, policy)


FAULTS = st.sampled_from(("", "complete", "sound", "plausible"))


@settings(max_examples=60, deadline=None)
@given(nights=st.lists(FAULTS, min_size=1, max_size=20), last=st.integers(1, 5))
def test_snapshots_that_are_not_good_displace_none(nights: list[str], last: int) -> None:
    """`--keep-last N` keeps N good ones whatever follows, and at most three others."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    known = [
        made(
            number,
            start + timedelta(hours=number),
            **{name: name != fault for name in ("complete", "sound", "plausible")},
        )
        for number, fault in enumerate(nights, 1)
    ]
    good = [number for number, fault in enumerate(nights, 1) if not fault]
    others = [number for number, fault in enumerate(nights, 1) if fault]

    kept = numbers(plan_retention(known, Policy(last=last), OURS))

    assert kept == sorted([*good[-last:], *others[-3:]])


def test_the_newest_of_each_engine_stays() -> None:
    """A home that moved to a server can still go back."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    engines: tuple[dict[str, Any], ...] = (
        {},
        {},
        {"engine": "postgresql"},
        {"engine": "postgresql"},
    )
    known = [
        made(number, start + timedelta(days=number), **card)
        for number, card in enumerate(engines, 1)
    ]

    plan = plan_retention(known, Policy(last=1), OURS)

    assert numbers(plan) == [2, 4]
    assert plan.decisions[1].reasons == ("newest of sqlite",)


def test_after_a_backup_that_is_not_good_only_others_are_removed() -> None:
    """Every good one stays until there is a new good one."""
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    known = [
        made(number, start + timedelta(days=number), complete=number < 4) for number in range(1, 9)
    ]

    plan = plan_retention(known, Policy(last=1), OURS, spares_good=True)

    assert numbers(plan) == [1, 2, 3, 6, 7, 8]
