"""Pruning a directory: two phases, a way back, and every snapshot in one place after any crash."""

import errno
import json
import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import archives
from other_process import running
from sagewai_ops.errors import (
    LockedError,
    NotFoundError,
    OpsError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.snapshots import cards, catalog, trash
from sagewai_ops.snapshots.ownership import owner_of
from sagewai_ops.snapshots.prune import PruneResult, prune, undelete
from sagewai_ops.snapshots.retention import Policy
from step_counter import counting, failing, killed_at, until_done

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)
LAST_TWO = Policy(last=2)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that need not exist: its place is its identity."""
    return locate(tmp_path / "home", {})


def put(
    directory: Path, home: Home, sequence: int, /, *, days: int | None = None, **card: Any
) -> Path:
    """Put a snapshot of a home into a directory, with its card."""
    owner = owner_of(home)
    moment = NOW - timedelta(days=60 - (sequence if days is None else days))
    path = directory / f"sagewai-{moment:%Y%m%dT%H%M%SZ}-{sequence:06x}.tar.zst"
    directory.mkdir(exist_ok=True)
    facts = {"home_id": next(iter(owner.ids)), "home": owner.home, "host": owner.host, **card}
    header = {"sequence": sequence, **{name: facts[name] for name in ("home_id", "home", "host")}}
    archives.write(
        path, [], facts={k: v for k, v in header.items() if v}, name=catalog.id_of(path.name)
    )
    cards.write_card(path, {"archive": path.name, "sequence": sequence, **facts})
    return path


@pytest.fixture
def directory(tmp_path: Path, home: Home) -> Path:
    """A directory of five snapshots, one a day."""
    for sequence in range(1, 6):
        put(tmp_path / "backups", home, sequence)
    return tmp_path / "backups"


def pruned(home: Home, directory: Path, policy: Policy = LAST_TWO, **options: Any) -> PruneResult:
    """Prune at the moment that the tests call now."""
    return prune(home, directory, policy, now=NOW, **options)


def sequences(ids: Iterable[str]) -> list[int]:
    """Return the sequence numbers of snapshots, which their ids end with: see `put`."""
    return [int(snapshot_id.rpartition("-")[2], 16) for snapshot_id in ids]


def places(directory: Path) -> dict[str, str]:
    """Map the number of each archive and card to the place that it is in."""
    found = {}
    for place, path in (("folder", directory), ("trash", directory / ".trash")):
        for name in os.listdir(path) if path.is_dir() else ():
            if name.startswith("sagewai-"):
                kind = "card" if name.endswith(".json") else "archive"
                number = int(name.split("-")[2].split(".")[0], 16)
                assert f"{kind} {number}" not in found
                found[f"{kind} {number}"] = place
    return found


def numbers(directory: Path) -> list[int]:
    """Return the sequence numbers of the snapshots of a directory."""
    return [item.sequence for item in catalog.list_snapshots(directory)]


def test_what_goes_rests_in_the_trash_until_the_next_prune(home: Home, directory: Path) -> None:
    """Archive and card, private; the next successful prune removes them permanently."""
    first = pruned(home, directory)

    assert sequences(first.removed) == [1, 2, 3]
    assert first.purged == ()
    assert (directory / ".trash").stat().st_mode & 0o777 == 0o700
    assert numbers(directory) == [4, 5]
    assert [item.sequence for item in trash.list_trash(directory)] == [1, 2, 3]

    put(directory, home, 6)
    second = pruned(home, directory)

    assert sequences(second.purged) == [1, 2, 3]
    assert numbers(directory) == [5, 6]
    assert places(directory) == {
        **dict.fromkeys(("archive 5", "card 5", "archive 6", "card 6"), "folder"),
        **dict.fromkeys(("archive 4", "card 4"), "trash"),
    }


def test_a_dry_run_touches_nothing_and_plans_the_same(home: Home, directory: Path) -> None:
    """Not even the trash comes to be."""
    before = sorted(os.listdir(directory))

    planned = pruned(home, directory, dry_run=True)

    assert sorted(os.listdir(directory)) == before
    assert planned.snapshots == pruned(home, directory).snapshots
    assert sequences(pruned(home, directory, dry_run=True).purged) == [1, 2, 3]


def test_a_directory_that_is_not_there_has_nothing_to_prune(home: Home, tmp_path: Path) -> None:
    """And does not come to be."""
    assert pruned(home, tmp_path / "none").snapshots == ()
    assert not (tmp_path / "none").exists()


def test_an_empty_policy_removes_nothing(home: Home, directory: Path) -> None:
    """Neither from the directory nor from the trash."""
    pruned(home, directory)

    with pytest.raises(UsageError):
        pruned(home, directory, Policy())

    assert len(trash.list_trash(directory)) == 3
    assert numbers(directory) == [4, 5]


def test_what_is_not_of_this_home_stays_also_in_the_trash(home: Home, directory: Path) -> None:
    """Another home's, one of a clone on another machine. Without a card the header counts."""
    put(directory, home, 10, days=1, home_id="them")
    put(directory, home, 11, days=1, home="/elsewhere")
    blank = put(directory, home, 12, days=1)
    cards.card_path(blank).write_text("{")
    (directory / "notes.txt").touch()
    theirs = put(directory / ".trash", home, 13, days=1, home_id="them")

    result = pruned(home, directory)
    again = pruned(home, directory)

    assert sequences(result.removed) == [1, 2, 3, 4]
    assert again.resting == (catalog.id_of(theirs.name),)
    assert theirs.exists()
    assert blank.exists()
    assert (directory / "notes.txt").exists()
    assert {5, 10, 11} <= set(numbers(directory))


def test_machines_that_take_turns_keep_each_their_own(home: Home, directory: Path) -> None:
    """Two clones of a home write into one directory."""
    put(directory, home, 6, host="elsewhere")
    put(directory, home, 7)

    result = pruned(home, directory, Policy(last=1))

    assert sequences(result.removed) == [1, 2, 3, 4, 5]
    assert result.snapshots[5].reasons == ("of the home on elsewhere",)


def test_a_machine_of_another_name_each_time_prunes_all(home: Home, directory: Path) -> None:
    """A container has another name in each run; the home is the same."""
    put(directory, home, 6, host="pod-1")
    put(directory, home, 7, host="pod-2")

    assert len(pruned(home, directory, Policy(last=1)).removed) == 6


def test_a_clone_elsewhere_is_pruned_when_that_is_asked_for(home: Home, directory: Path) -> None:
    """A home that moved leaves its snapshots behind otherwise."""
    put(directory, home, 6, host="elsewhere", home="/old")

    result = pruned(home, directory, all_paths=True)

    assert sequences(result.removed) == [1, 2, 3, 4]


def test_nothing_goes_for_ever_while_a_snapshot_is_dated_ahead(home: Home, directory: Path) -> None:
    """The clock was ahead when the rules were applied, or is behind now: all can come back."""
    ahead = put(directory, home, 6, days=4000)
    first = pruned(home, directory, Policy(within="30d"))
    assert sequences(first.removed) == [1, 2, 3, 4, 5]

    put(directory, home, 7, days=59)
    second = pruned(home, directory, Policy(within="30d"))

    assert second.ahead == ahead.name[len("sagewai-") : -len(".tar.zst")]
    assert second.purged == ()
    assert second.set_back != ()
    assert len(undelete(directory, ())) == 5
    assert numbers(directory) == [1, 2, 3, 4, 5, 6, 7]


def test_removed_snapshots_come_back_whole(home: Home, directory: Path) -> None:
    """By the beginnings of their ids, or all of them."""
    pruned(home, directory)
    first = trash.list_trash(directory)[0]

    assert undelete(directory, [first.id[:-2]]) == (directory / first.path.name,)
    assert numbers(directory) == [1, 4, 5]
    assert len(undelete(directory, ())) == 2
    assert numbers(directory) == [1, 2, 3, 4, 5]
    assert set(places(directory).values()) == {"folder"}
    assert undelete(directory, ()) == ()


def test_what_does_not_rest_there_does_not_come_back(home: Home, directory: Path) -> None:
    """Nor is one of several guessed, nor anything overwritten."""
    with pytest.raises(NotFoundError, match="not found"):
        undelete(directory / "none", ())
    pruned(home, directory)
    first = trash.list_trash(directory)[0]

    with pytest.raises(NotFoundError, match=r"not found in .*\.trash"):
        undelete(directory, ["1999"])
    with pytest.raises(UsageError, match="ambiguous, 3 ids"):
        undelete(directory, ["20"])
    (directory / first.path.name).write_bytes(b"another")
    with pytest.raises(TargetBusyError, match="exists already"):
        undelete(directory, [first.id])

    assert (directory / first.path.name).read_bytes() == b"another"
    assert first.path.stat().st_size > len(b"another")


def test_snapshot_of_the_same_name_in_the_trash_is_not_overwritten(
    home: Home, directory: Path
) -> None:
    """It was copied back by hand."""
    pruned(home, directory)
    first = trash.list_trash(directory)[0]
    put(directory, home, 1)

    with pytest.raises(TargetBusyError, match="exists already"):
        pruned(home, directory)

    assert first.path.exists()
    assert (directory / first.path.name).exists()


def test_what_a_hand_moved_back_gets_its_card_again(home: Home, directory: Path) -> None:
    """The archive is the snapshot; its card follows it."""
    pruned(home, directory)
    first = trash.list_trash(directory)[0]
    first.path.rename(directory / first.path.name)

    pruned(home, directory, Policy(last=9))

    assert places(directory)["card 1"] == "folder"
    assert numbers(directory) == [1, 4, 5]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_trash_that_is_no_directory_is_refused(home: Home, directory: Path, kind: str) -> None:
    """Nothing is moved to where a link leads."""
    if kind == "file":
        (directory / ".trash").touch()
    else:
        (directory.parent / "elsewhere").mkdir()
        (directory / ".trash").symlink_to(directory.parent / "elsewhere")

    with pytest.raises(OpsError, match="not a directory"):
        pruned(home, directory)

    assert numbers(directory) == [1, 2, 3, 4, 5]


def test_a_held_directory_is_refused_or_waited_for(home: Home, directory: Path) -> None:
    """By a process of its own, which is named with its machine, command and start."""
    code = """
import pathlib
sys.path.remove("")
from sagewai_ops.fs import locks
with locks.exclusive(pathlib.Path(sys.argv[1])):
    pause()
"""
    with running(code, str(directory)) as other:
        with pytest.raises(LockedError) as raised:
            pruned(home, directory)
        with pytest.raises(LockedError):
            undelete(directory, ())

        for word in (os.uname().nodename, f"pid {other.pid}", "python", "since 20"):
            assert word in raised.value.message
        assert catalog.list_snapshots(directory)  # who only reads is not held up
        assert pruned(home, directory, dry_run=True).removed
        other.kill()

    assert pruned(home, directory, wait_seconds=30).removed


def test_who_reads_a_home_or_a_directory_keeps_no_other_reader_away(directory: Path) -> None:
    """Shared locks go together."""
    with locks.shared(directory), locks.shared(directory):
        pass


def _act(home: Home, directory: Path) -> None:
    pruned(home, directory)
    undelete(directory, [trash.list_trash(directory)[0].id])


def _is_whole(directory: Path) -> None:
    """Each archive exists once, and after another run its metadata file is next to it."""
    known = {path.name: path for path in directory.rglob("sagewai-*.zst")}
    assert len(known) == len(list(directory.rglob("sagewai-*.zst")))
    assert {"archive 4", "archive 5"} <= set(places(directory))
    trash.repair_trash(directory)
    for item in [*catalog.list_snapshots(directory), *trash.list_trash(directory)]:
        assert item.sequence, item
    cards = list(directory.rglob("sagewai-*.json"))
    assert all(path.with_suffix("").exists() for path in cards)


def test_a_kill_at_any_step_leaves_each_snapshot_once(home: Home, tmp_path: Path) -> None:
    """In the directory or in the trash, with its card after the next run."""

    def attempt(number: int) -> bool:
        directory = tmp_path / f"backups-{number}"
        for sequence in range(1, 6):
            put(directory, home, sequence)
        pruned(home, directory, Policy(last=4))
        put(directory, home, 6)
        was_killed = killed_at(number, lambda: _act(home, directory))
        _is_whole(directory)
        after = pruned(home, directory, Policy(last=9))
        assert after.removed == ()
        return was_killed

    assert until_done(attempt) > 10


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_any_step_leaves_each_snapshot_once(
    home: Home, tmp_path: Path, code: int
) -> None:
    """It is reported, and the next run goes on."""
    directory = tmp_path / "counted"
    for sequence in range(1, 6):
        put(directory, home, sequence)
    with counting() as steps:
        pruned(home, directory)
    for number in range(1, steps.count + 1):
        directory = tmp_path / f"backups-{number}"
        for sequence in range(1, 6):
            put(directory, home, sequence)
        with failing(number, code), pytest.raises(OpsError):
            pruned(home, directory)
        _is_whole(directory)
        pruned(home, directory)
        assert numbers(directory) == [4, 5]


def test_a_card_names_machine_home_and_tags(directory: Path) -> None:
    """What the rules rely on is in it; odd values are passed over."""
    card = json.loads(next(directory.glob("*.json")).read_text())

    assert {"host", "home", "home_id", "sequence"} <= card.keys()


def test_the_last_good_one_stays_in_the_trash_while_the_directory_has_none(
    home: Home, tmp_path: Path
) -> None:
    """Also of a home without an administrator, whatever the rules; a later good one replaces it."""
    directory = tmp_path / "backups"
    put(directory, home, 1, complete=True, sound=True, plausible=True)
    trash.move_to_trash(directory, catalog.list_snapshots(directory))
    for sequence in range(2, 5):
        put(directory, home, sequence, complete=True, sound=False)
        pruned(home, directory, Policy(last=1))
        assert places(directory)["archive 1"] == "trash"

    put(directory, home, 6, complete=True, sound=True, plausible=True)
    pruned(home, directory, Policy(last=1))

    assert "archive 1" not in places(directory)
