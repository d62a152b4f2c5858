"""Nights of good and bad backups with retention: the newest good snapshot is never lost."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from memory_directory import memory_directory
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.ownership import owner_of
from sagewai_ops.snapshots.prune import prune
from sagewai_ops.snapshots.quality import Cause, Content, Quality, assess
from sagewai_ops.snapshots.reference import find_reference
from sagewai_ops.snapshots.retention import Policy
from sagewai_ops.snapshots.trust import Trust

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
WHOLE = Content(
    size_bytes=10_000,
    database_bytes=4_000,
    tables={"agents": 10},
    documents={"admin-state.json": 900, "connections.json": 300},
    data_files=3,
    key="0123456789abcdef",
)
# What a night finds in the home: its content, and whether a part of that is damaged.
NIGHTS: dict[str, tuple[Content, bool]] = {
    "good": (WHOLE, False),
    "database missing": (replace(WHOLE, tables={}, database_bytes=0), False),
    "database truncated": (replace(WHOLE, tables={}, database_bytes=0), True),
    "rows lost": (replace(WHOLE, tables={"agents": 3}), False),
    "document torn": (
        replace(WHOLE, documents={"admin-state.json": 0, "connections.json": 300}),
        True,
    ),
    "key missing": (replace(WHOLE, key=""), False),
    "data missing": (replace(WHOLE, data_files=0), False),
}
OMITTED, DAMAGED = Cause("special", "data/x", ""), Cause("document", "config/y", "")
POLICIES = st.one_of(
    st.builds(Policy, last=st.integers(1, 3)),
    st.builds(Policy, periods=st.fixed_dictionaries({"daily": st.integers(1, 3)})),
    st.builds(Policy, periods=st.fixed_dictionaries({"weekly": st.integers(1, 2)})),
    st.just(Policy(within="2d")),
)
NIGHT = st.tuples(
    st.sampled_from([*NIGHTS, "good", "good", "not mounted"]),
    st.booleans(),  # complete
    st.sampled_from([False, False, False, True]),  # --accept-change
    st.booleans(),  # proved by a drill
)


def take(
    home: Home, directory: Path, number: int, night: tuple[str, bool, bool, bool]
) -> tuple[str, Quality]:
    """Write the metadata file of a backup, and an archive that nothing opens."""
    found, is_complete, accepts_change, is_proved = night
    content, is_damaged = NIGHTS[found]
    reference = find_reference(home, directory, Trust(home_ids=owner_of(home).ids))
    quality = assess(
        [] if is_complete else [OMITTED],
        [DAMAGED] if is_damaged else [],
        content,
        reference.content if reference else None,
        compared_with=reference.id if reference else "",
        accepts_change=accepts_change,
    )
    moment = START + timedelta(hours=12 * number)
    snapshot_id = f"{moment:%Y%m%dT%H%M%SZ}-{number:06x}"
    path = directory / catalog.archive_name(snapshot_id, is_encrypted=True)
    path.touch(0o600)
    owner = owner_of(home)
    facts: dict[str, Any] = {
        "archive": path.name,
        "id": snapshot_id,
        "sequence": number,
        "home_id": next(iter(owner.ids)),
        "home": owner.home,
        "host": owner.host,
        "archive_bytes": 0,
        "content_bytes": content.size_bytes,
        "key_fingerprint": content.key,
        **quality.card_facts,
        "content": content.card_facts(is_encrypted=True),
    }
    if is_proved:
        facts["proved_restorable_at"] = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
    cards.write_card(path, facts)
    return snapshot_id, quality


def is_expected_good(night: tuple[str, bool, bool, bool], last: Content | None) -> bool:
    """Return whether a night is good, without a comparison of sizes: a part is there or missing."""
    found, is_complete, accepts_change, _is_proved = night
    content, is_damaged = NIGHTS[found]
    if is_damaged or not is_complete:
        return False
    if last is None or accepts_change:
        return True
    return (
        content.tables.get("agents", 0) * 2 >= last.tables.get("agents", 0)
        and bool(content.key) >= bool(last.key)
        and bool(content.data_files) >= bool(last.data_files)
    )


@settings(max_examples=15, deadline=None)
@given(nights=st.lists(NIGHT, min_size=1, max_size=12), policy=POLICIES)
def test_the_newest_good_snapshot_is_never_lost(
    nights: list[tuple[str, bool, bool, bool]], policy: Policy
) -> None:
    """It is in the directory after every night, and so is the newest proved one.

    Of those that are not good at most three stay, and the newest proved one.
    """
    with memory_directory() as parent:
        home, directory = locate(parent / "home", {}), parent / "snapshots"
        directory.mkdir(0o700)
        last: Content | None = None
        good = proved = ""
        for number, night in enumerate(nights, 1):
            if night[0] == "not mounted":
                continue  # exit 10: nothing is written or pruned
            snapshot_id, quality = take(home, directory, number, night)
            assert quality.is_good == is_expected_good(night, last)
            if quality.is_good:
                good, last = snapshot_id, NIGHTS[night[0]][0]
            proved = snapshot_id if night[3] else proved

            trust = Trust(home_ids=owner_of(home).ids)
            now = START + timedelta(days=100)
            prune(home, directory, policy, now=now, trust=trust, spares_good=not quality.is_good)

            known = {item.id: item for item in catalog.list_snapshots(directory)}
            assert snapshot_id in known
            assert {name for name in (good, proved) if name} <= known.keys()
            others = [item for item in known.values() if not item.is_good and item.id != proved]
            assert len(others) <= 3
            if good:
                latest = catalog.find_snapshot(directory, "latest", trust.home_ids)
                assert catalog.id_of(latest.name) == good
