"""Swapping a home for another: what is removed, what is kept, and what is asked of a person."""

import ctypes
import errno
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memory_directory import memory_directory
from sagewai_ops.errors import InterruptedRunError, LockedError, OpsError, TargetBusyError
from sagewai_ops.fs import beneath, locks
from sagewai_ops.home.paths import locate
from sagewai_ops.process.signals import raise_on_signals
from sagewai_ops.swap import journal as swap_journal
from sagewai_ops.swap import pending, staging, swap
from sagewai_ops.swap.journal import Journal, Move, State
from sagewai_ops.swap.mounts import is_mount, mounts_below
from small_homes import everything_of
from step_counter import counting, killed_at
from unprivileged import reachable_directory, unprivileged

MOMENT = "20240501T101112131415Z"
EARLIER = "20230501T101112131415Z"


@pytest.fixture
def home() -> Iterator[Path]:
    """Make a home with one file, alone in a directory in memory."""
    with memory_directory() as directory:
        root = directory / "home"
        root.mkdir(mode=0o750)
        (root / "note").write_text("old")
        yield root


def _exchange(home: Path, *paths: str) -> swap.Staged:
    with swap.staged(home, paths or None) as stage:
        (stage.content / "note").write_text("new")
        swap.swap(stage)
    return stage


def _close_and_fail(content: Path) -> None:
    """Leave directories that forbid what is in them."""
    (content / "data/closed").mkdir(parents=True)
    (content / "data/closed/note").write_text("x")
    (content / "data/closed").chmod(0o555)
    (content / "data").chmod(0)
    raise KeyError


def test_whole_home_is_exchanged_and_the_old_one_kept(home: Path) -> None:
    """The new one has the name, and the old one is next to it."""
    stage = _exchange(home)

    assert (home / "note").read_text() == "new"
    assert stage.before is not None
    assert (stage.before / "note").read_text() == "old"
    assert swap.kept_before(home) == [stage.before]
    assert sorted(os.listdir(home.parent)) == sorted(["home", stage.before.name])


def test_everything_is_durable_before_the_next_thing_builds_on_it(home: Path) -> None:
    """Content, then journal, then names, then the journal goes: what a power cut leaves."""
    steps: list[tuple[str, str]] = []

    def note(_number: int, name: str, path: object) -> None:
        shown = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        steps.append((name, str(shown)))

    with swap.staged(home, None) as stage, counting(note):
        (stage.content / "note").write_text("new")
        swap.swap(stage)
    content, journal = str(stage.content), f"{stage.content}.json"
    order = [
        ("sync_tree", content),
        ("fsync", ""),  # the journal, and the directory that it came to be in
        ("rename", f"{content}/.sagewai-ops-journal"),
        ("fsync", ""),
        ("unlink", f"{content}/.sagewai-ops-staging"),
        ("fsync", ""),
        ("exchange", content),
        ("rename", content),
        ("sync_tree", str(home.parent)),
        ("unlink", journal),
    ]

    remaining = iter(steps)
    assert [wanted for wanted in order if wanted not in remaining] == []


def test_time_of_the_new_home_s_directory_is_what_it_was_given(home: Path) -> None:
    """Marks and journals that came and went in it leave no trace."""
    with swap.staged(home, None) as stage:
        (stage.content / "note").write_text("new")
        os.utime(stage.content, ns=(1_000, 1_600_000_000_000_000_007))
        stage.content.chmod(0o755)
        swap.swap(stage)

    assert home.stat().st_mtime_ns == 1_600_000_000_000_000_007
    assert stat.S_IMODE(home.stat().st_mode) == 0o755


def test_parts_are_exchanged_inside_the_home(home: Path) -> None:
    """What else is there stays, with the home's own directory."""
    inode = home.stat().st_ino
    (home / "other").write_text("mine")

    stage = _exchange(home, "note")

    assert home.stat().st_ino == inode
    assert (home / "note").read_text() == "new"
    assert (home / "other").read_text() == "mine"
    assert stage.before is not None
    assert (stage.before / "note").read_text() == "old"


def test_what_need_not_be_kept_leaves_nothing_beside_it(home: Path) -> None:
    """Extracting into a directory that cannot be renamed adds the files and nothing else."""
    (home / "note").unlink()

    with swap.staged(home, ("note",), keeps=False) as stage:
        (stage.content / "note").write_text("new")
        swap.swap(stage)

    assert stage.before is None
    assert os.listdir(home) == ["note"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_is_not_kept_is_not_overwritten_either(
    home: Path, monkeypatch: pytest.MonkeyPatch, *, can_exchange: bool
) -> None:
    """A file that came to the place in the meantime stays, and the swap is refused."""
    if not can_exchange:
        monkeypatch.setattr(beneath, "exchange", lambda _first, _second: False)
    with swap.staged(home, ("note",), keeps=False) as stage:
        (stage.content / "note").write_text("new")
        with pytest.raises(OpsError):
            swap.swap(stage)

    assert (home / "note").read_text() == "old"
    assert os.listdir(home) == ["note"]


def test_block_that_fails_leaves_nothing(home: Path) -> None:
    """Whatever is raised while the staging is filled, it goes."""
    before = everything_of(home.parent)

    for paths in (None, ("note",)):
        with pytest.raises(KeyError), swap.staged(home, paths) as stage:
            _close_and_fail(stage.content)

    assert everything_of(home.parent).keys() == before.keys()


def test_directories_above_a_home_that_did_not_come_go_again(home: Path) -> None:
    """They were made for it alone."""
    with pytest.raises(KeyError), swap.staged(home.parent / "a/b/home", None):
        raise KeyError

    assert os.listdir(home.parent) == ["home"]


def test_staging_that_forbids_its_removal_is_removed() -> None:
    """Who is not root must be able to clean up after directories that he may not write to."""
    with reachable_directory() as directory, unprivileged():
        with pytest.raises(KeyError), swap.staged(directory / "home", None) as stage:
            _close_and_fail(stage.content)

        assert os.listdir(directory) == []


def _staging(home: Path) -> Path:
    return home.with_name(f".home.restore-{MOMENT}")


def test_dead_staging_with_its_mark_is_swept(home: Path) -> None:
    """The mark reports that it never was a home."""
    dead = _staging(home)
    dead.mkdir()
    (dead / ".sagewai-ops-staging").touch()
    (dead / "note").write_text("half")

    assert pending.sweep(home) == [dead.name]
    assert os.listdir(home.parent) == ["home"]


def test_directory_without_mark_or_journal_is_never_swept(home: Path) -> None:
    """It may be a home, whatever it is called."""
    unknown = _staging(home)
    unknown.mkdir()
    (unknown / "note").write_text("another's")

    assert pending.sweep(home) == []
    assert (unknown / "note").read_text() == "another's"


@pytest.mark.parametrize("name", [f".home.discard-{MOMENT}", f".home.restore-{MOMENT}"])
def test_what_was_to_be_removed_and_what_was_just_made_is_swept(home: Path, name: str) -> None:
    """A directory renamed to mark that it goes, and one that a kill left empty."""
    (home.parent / name).mkdir()
    if "discard" in name:
        (home.parent / name / "note").write_text("half")

    assert pending.sweep(home) == [name]
    assert os.listdir(home.parent) == ["home"]


def test_staging_of_a_living_run_is_left_alone(home: Path) -> None:
    """Its run holds it."""
    with swap.staged(home, None) as stage:
        assert pending.sweep(home) == []
        assert stage.content.exists()


@pytest.mark.parametrize("other", ["home2", "xhome", "home.x"])
def test_stagings_of_other_homes_are_left_alone(home: Path, other: str) -> None:
    """Each home has its own, distinguished by the name."""
    dead = home.with_name(f".{other}.restore-{MOMENT}")
    dead.mkdir()

    assert pending.sweep(home) == []
    assert dead.exists()


def test_link_that_is_called_like_a_staging_is_left_alone(home: Path) -> None:
    """Nothing is removed through a link."""
    (home.parent / "precious").mkdir()
    _staging(home).symlink_to("precious")

    assert pending.sweep(home) == []
    assert (home.parent / "precious").is_dir()


def recover(home: Path) -> str:
    """Recover a restore and sweep; return the outcome."""
    recoveries, _removed = pending.recover(locate(home, {}), {}, pending.RESTORE)
    return recoveries[-1].outcome if recoveries else "nothing to do"


def _killed_between(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kill a swap after the home got another name and before the new one got its."""
    monkeypatch.setattr(beneath, "exchange", lambda _first, _second: False)
    for number in range(1, 60):
        assert killed_at(number, lambda: _exchange(home))
        if not home.exists():
            (found,) = pending.pending_operations(home)
            return found.journal
        recover(home)
    raise AssertionError


def test_home_that_came_back_by_itself_is_not_overwritten(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sagewai may have made an empty home in the gap: a person must look."""
    _killed_between(home, monkeypatch)
    home.mkdir()
    (home / "fresh").write_text("of Sagewai")

    with pytest.raises(OpsError, match="neither the previous nor the restored entry"):
        recover(home)

    assert (home / "fresh").read_text() == "of Sagewai"
    with pytest.raises(LockedError):
        pending.require_settled(home)
    os.rename(home, home.with_name("aside"))
    assert recover(home) == "completed"
    assert (home / "note").read_text() == "new"


def test_recovery_that_cannot_go_forward_goes_back(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system refuses the rest, the previous entry is there again."""
    _killed_between(home, monkeypatch)
    rename = os.rename

    def refuse_new(source: str, target: str, **directories: int) -> None:
        if ".restore-" in source and target == home.name:
            raise OSError(5, "Input/output error", source)
        rename(source, target, **directories)

    monkeypatch.setattr(os, "rename", refuse_new)

    assert recover(home) == "rolled back"
    assert (home / "note").read_text() == "old"
    assert os.listdir(home.parent) == ["home"]


def _with_journal(home: Path, content: bytes) -> Path:
    path = home.with_name(f".home.restore-{MOMENT}.json")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"version": 2}',
        b'{"format": "sagewai-ops/journal", "version": 3, "kind": "restore", "content": {}}',
        b'{"format": "sagewai-ops/journal", "version": 2, "kind": "key rotation", "content": {}}',
        b'{"version": 1, "opening": null, "closing": null, "moves": [{"place": "../x"}]}',
        json.dumps(
            {
                "version": 1,
                "opening": ["../a", "b"],
                "closing": None,
                "moves": [],
            }
        ).encode(),
        json.dumps(
            {
                "version": 1,
                "opening": None,
                "closing": None,
                "moves": [
                    {
                        "place": "home",
                        "fresh": "/etc",
                        "kept": None,
                        "fresh_inode": 1,
                        "old_inode": 2,
                    }
                ],
            }
        ).encode(),
    ],
)
def test_journal_that_is_none_of_ours_is_not_followed(home: Path, content: bytes) -> None:
    """It is named, everything refuses, and nothing is moved or removed."""
    path = _with_journal(home, content)
    before = everything_of(home.parent)

    with pytest.raises(LockedError):
        pending.require_settled(home)
    with pytest.raises(OpsError, match="unusable"):
        recover(home)

    assert everything_of(home.parent) == before
    assert path.exists()


def test_clock_that_went_back_does_not_reorder_what_is_kept(home: Path) -> None:
    """The last restore is the last, whatever the clock shows."""
    future = home.with_name("home.before-restore-29990101T000000000000Z")
    future.mkdir()

    stage = _exchange(home)

    assert swap.kept_before(home) == [future, stage.before]


def test_kept_directories_are_recognised_by_their_names(home: Path) -> None:
    """Those next to and those inside, the oldest first; no files and links."""
    inside = home / f".sagewai-ops-before-restore-{EARLIER}"
    beside = home.with_name(f"home.before-restore-{MOMENT}")
    inside.mkdir()
    beside.mkdir()
    home.with_name("home.before-restore-2024").mkdir()
    home.with_name(f"home2.before-restore-{MOMENT}").mkdir()
    home.with_name("home.before-restore-20250501T101112131415Z").symlink_to("home")

    assert swap.kept_before(home) == [inside, beside]


def test_undo_of_parts_refuses_entries_of_another_user(home: Path) -> None:
    """Nothing is lost with the directory that goes."""
    stage = _exchange(home, "note")
    assert stage.before is not None
    (stage.before / "mine").write_text("x")

    with pytest.raises(OpsError, match="added after the restore"):
        swap.undo(home, stage.before)

    assert (home / "note").read_text() == "new"
    assert (stage.before / "note").read_text() == "old"


@pytest.mark.parametrize("content", [None, b"{", b'["../x"]', b"7"])
def test_undo_of_parts_needs_their_list(home: Path, content: bytes | None) -> None:
    """Without it, it is unknown what was exchanged; nothing is moved."""
    stage = _exchange(home, "note")
    assert stage.before is not None
    listed = stage.before / ".sagewai-ops-paths"
    listed.unlink() if content is None else listed.write_bytes(content)

    with pytest.raises(OpsError, match="list of parts"):
        swap.undo(home, stage.before)

    assert (home / "note").read_text() == "new"


def test_part_that_was_not_there_goes_again_by_undo(home: Path) -> None:
    """Undo takes away what the restore added, and the next undo brings it back."""
    (home / "note").unlink()
    stage = _exchange(home, "note")
    assert stage.before is not None

    _, away = swap.undo(home, stage.before)
    assert not (home / "note").exists()
    assert away is not None
    swap.undo(home, away)

    assert (home / "note").read_text() == "new"


def test_new_home_is_locked_until_the_swap_is_over(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process comes in between the exchange and its end."""
    seen = []
    complete = swap_journal.complete

    def complete_and_check(journal: Journal) -> None:
        complete(journal)
        seen.append(locks.is_abandoned(home))

    monkeypatch.setattr(swap_journal, "complete", complete_and_check)

    _exchange(home)

    assert seen == [False]
    assert locks.is_abandoned(home)


def test_whole_is_refused_where_only_entries_can_be_exchanged(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that became a mount point in the meantime is not half exchanged."""
    monkeypatch.setattr(swap, "can_swap_whole", lambda _target: False)

    with pytest.raises(TargetBusyError), swap.staged(home, None):
        pass


@pytest.mark.parametrize(("mode", "can"), [(0o755, True), (0o1777, False), (0o775, False)])
def test_home_in_a_directory_of_all_users_is_exchanged_inside(
    home: Path, mode: int, *, can: bool
) -> None:
    """Where others can replace staging and journal, sticky or not, nothing is put next to it."""
    home.parent.chmod(mode)

    assert swap.can_swap_whole(home) is can
    assert swap.can_swap_whole(home.with_name("new")) is can


def test_mount_points_are_known() -> None:
    """The root of all, and what the system mounts below it."""
    assert is_mount(Path("/"))
    if Path("/proc/self").exists():
        assert is_mount(Path("/proc"))
        assert Path("/proc") in mounts_below(Path("/"))
    assert mounts_below(Path("/nowhere")) == []


def _states(base: Path) -> Callable[[Move], State]:
    return lambda move: swap_journal.state_of(Journal(base / "j.json", (move,)))


def test_move_is_recognised_by_its_inodes(home: Path) -> None:
    """Untouched, begun, done, or a question for a person."""
    base = home.parent
    (base / "new").mkdir()
    move = swap_journal.plan_move(base, "home", "new", "kept")
    assert move is not None
    state = _states(base)

    assert state(move) is State.UNTOUCHED
    os.rename(home, base / "kept")
    assert state(move) is State.BEGUN
    os.rename(base / "new", home)
    assert state(move) is State.DONE
    os.rename(base / "kept", base / "new")
    assert state(move) is State.BEGUN
    os.rename(base / "new", base / "elsewhere")
    (base / "new").mkdir()
    assert state(move) is State.UNKNOWN


def test_nothing_on_either_side_is_no_move(home: Path) -> None:
    """A part that neither has needs nothing."""
    assert swap_journal.plan_move(home.parent, "home/none", "none", "kept") is None
    assert swap_journal.state_of(Journal(home.parent / "j.json", ())) is State.DONE


def test_place_that_is_taken_is_not_overwritten(home: Path) -> None:
    """Neither a file nor a directory of the name that something would get."""
    base = home.parent
    (base / "new").write_text("new")
    (base / "kept").write_text("mine")
    move = swap_journal.plan_move(base, "home/note", "new", "kept")
    assert move is not None
    journal = Journal(base / "j.json", (move,))

    with pytest.raises(TargetBusyError, match="created by another program"):
        swap_journal.complete(journal)

    swap_journal.roll_back(journal)
    assert (base / "kept").read_text() == "mine"
    assert (home / "note").read_text() == "old"
    assert (base / "new").read_text() == "new"


def test_system_call_that_a_container_forbids_is_done_without(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older ones answer EPERM to what they do not know."""

    class Library:
        """A C library whose system call is refused."""

        @staticmethod
        def renameat2(*_arguments: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EPERM)

    _exchange(home)

    assert (home / "note").read_text() == "new"


def test_names_of_kept_directories_are_those_that_are_documented(home: Path) -> None:
    """What people find next to a home and in it."""
    assert staging.next_to(home).before(MOMENT).name == f"home.before-restore-{MOMENT}"
    assert staging.inside(home).before(MOMENT).parent == home


def test_signal_at_the_end_of_a_staging_does_not_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is removed first."""
    is_garbage = staging._is_garbage

    def stop_and_ask(path: Path) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return is_garbage(path)

    monkeypatch.setattr(staging, "_is_garbage", stop_and_ask)

    with (
        pytest.raises(InterruptedRunError),
        raise_on_signals(),
        staging.own_directory(tmp_path / ".home.restore-20260101T000000Z"),
    ):
        pass

    assert os.listdir(tmp_path) == []
