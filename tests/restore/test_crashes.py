"""A restore is killed, or fails, at each of its steps; the home is as before or as asked."""

import contextlib
import errno
import functools
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from archives import DIRECTORY, LINK, STATE, write
from memory_directory import memory_directory
from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.errors import LockedError, NoSpaceError, OpsError
from sagewai_ops.fs import beneath
from sagewai_ops.home.paths import OWN_PREFIX, Home, locate
from sagewai_ops.operations.recover import recover_home
from sagewai_ops.restore.plan import RestoreOptions
from sagewai_ops.restore.restore import restore
from sagewai_ops.restore.undo import undo_restore
from sagewai_ops.swap import pending, swap
from small_homes import everything_of
from step_counter import counting, failing, killed_at, until_done

MOMENT_NS = 1_700_000_000_000_000_000
DATA = Entry("data", EntryType.DIRECTORY, 0o755, MOMENT_NS)
NOTE = Entry("data/note", EntryType.FILE, 0o644, MOMENT_NS)

Tree = dict[str, tuple[int, int, bytes | str]]

# What is the same for every try of every test is made once.
_ARCHIVE: list[bytes] = []
_GIVEN: dict[tuple[tuple[str, ...], bool], Tree | None] = {}


@dataclass(slots=True)
class World:
    """A home, a snapshot of another state of it, and one command on them.

    Attributes:
        before: What the home holds before the command; None if it is not there.
        after: What it holds after it.
        keeps: Whether the command keeps the previous home.
        again: Whether the command can be repeated with the same result.
    """

    directory: Path
    run: Callable[[], object]
    before: Tree | None
    after: Tree | None
    keeps: bool
    again: bool = True

    @property
    def home(self) -> Path:
        """The home."""
        return self.directory / "home"

    @property
    def tree(self) -> Tree | None:
        """What it holds now."""
        return tree_of(self.home)


def tree_of(home: Path) -> Tree | None:
    """Return a home's content without the files of this program; None if it does not exist.

    The time of a directory is left out: it is that of the last change in it.
    """
    if not home.exists():
        return None
    return {
        path: (mode, 0 if stat.S_ISDIR(mode) else moment, content)
        for path, (mode, moment, content) in everything_of(home).items()
        if not path.startswith(OWN_PREFIX)
    }


def leftovers(directory: Path) -> list[str]:
    """List what is neither the home, nor kept, nor the snapshot."""
    siblings = [
        name
        for name in os.listdir(directory)
        if name not in ("home", "a.tar.zst") and not name.startswith("home.before-restore-")
    ]
    home = directory / "home"
    inside = [
        name
        for name in (os.listdir(home) if home.exists() else ())
        if name.startswith(f".{OWN_PREFIX[1:]}")
        and not name.startswith(f"{OWN_PREFIX}before-restore-")
    ]
    return siblings + inside


def make_old(home: Path) -> None:
    """Make the home that is to be replaced."""
    (home / "config").mkdir(parents=True)
    (home / "config/admin-state.json").write_bytes(b'{"old": true}')
    (home / "config/only-old").write_bytes(b"old")
    (home / "secrets").mkdir(0o700)
    (home / "secrets/profiles.json").write_bytes(b'{"version": 1, "profiles": []}')
    (home / "plain").symlink_to("config/only-old")
    for path in home.rglob("*"):
        os.utime(path, ns=(MOMENT_NS, MOMENT_NS), follow_symlinks=False)


def options(*only: str) -> RestoreOptions:
    """Ask for parts of a home, or for all of it."""
    return RestoreOptions(replace=True, only=only)


def whole(directory: Path) -> World:
    """Restore over a home."""
    make_old(directory / "home")
    return _restoring(directory, options(), keeps=True)


def absent(directory: Path) -> World:
    """Restore to where nothing is."""
    return _restoring(directory, options(), keeps=False)


def empty(directory: Path) -> World:
    """Restore into an empty directory."""
    (directory / "home").mkdir(0o750)
    return _restoring(directory, options(), keeps=False)


def only(directory: Path) -> World:
    """Restore a directory, and a file whose directory is missing."""
    make_old(directory / "home")
    return _restoring(directory, options("config", "data/note"), keeps=True)


def entries(directory: Path) -> World:
    """Restore over a home whose name cannot be exchanged."""
    make_old(directory / "home")
    return _restoring(directory, options(), keeps=True)


def undone(directory: Path) -> World:
    """Undo a restore."""
    return _undoing(whole(directory))


def only_undone(directory: Path) -> World:
    """Undo a restore of parts."""
    return _undoing(only(directory))


def _restoring(directory: Path, wanted: RestoreOptions, *, keeps: bool) -> World:
    archive = directory / "a.tar.zst"
    if not _ARCHIVE:
        members = [(DIRECTORY, b""), (STATE, b"{}"), (LINK, b""), (DATA, b""), (NOTE, b"new")]
        _ARCHIVE.append(write(archive, members).read_bytes())
    archive.write_bytes(_ARCHIVE[0])
    target = locate(directory / "home", {})

    def run() -> object:
        return restore(archive, target, wanted)

    before = tree_of(directory / "home")
    after = _expected_tree(directory, wanted)
    return World(directory, run, before, after, keeps)


def _expected_tree(directory: Path, wanted: RestoreOptions) -> Tree | None:
    """Restore a copy of the home once, undisturbed."""
    key = (wanted.only, (directory / "home/config").exists())
    if key in _GIVEN:
        return _GIVEN[key]
    with tempfile.TemporaryDirectory(dir=directory) as aside:
        copy = Path(aside, "home")
        if (directory / "home").exists():
            shutil.copytree(directory / "home", copy, symlinks=True)
        restore(directory / "a.tar.zst", locate(copy, {}), wanted)
        _GIVEN[key] = tree_of(copy)
        return _GIVEN[key]


def _undoing(world: World) -> World:
    world.run()
    target = locate(world.home, {})
    return World(
        world.directory,
        lambda: undo_restore(target),
        before=world.after,
        after=world.before,
        keeps=True,
        again=False,
    )


@contextlib.contextmanager
def in_entries() -> Iterator[None]:
    """Replace entries only, as if each home were a mount point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swap, "can_swap_whole", lambda _target: False)
        yield


@contextlib.contextmanager
def without_exchange() -> Iterator[None]:
    """Simulate a file system without the exchange of two names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beneath, "exchange", lambda _first, _second: False)
        yield


@contextlib.contextmanager
def world_of(make: Callable[[Path], World]) -> Iterator[World]:
    """Make a world in memory, where syncing costs nothing."""
    with memory_directory() as directory:
        (directory / "w").mkdir()
        yield make(directory / "w")


WORLDS = [
    pytest.param(whole, contextlib.nullcontext, id="whole"),
    pytest.param(whole, without_exchange, id="whole, two renames"),
    pytest.param(absent, contextlib.nullcontext, id="absent"),
    pytest.param(empty, contextlib.nullcontext, id="empty"),
    pytest.param(empty, without_exchange, id="empty, two renames"),
    pytest.param(entries, in_entries, id="entries"),
    pytest.param(only, contextlib.nullcontext, id="only"),
    pytest.param(only, without_exchange, id="only, two renames"),
    pytest.param(undone, contextlib.nullcontext, id="undo"),
    pytest.param(undone, without_exchange, id="undo, two renames"),
    pytest.param(only_undone, contextlib.nullcontext, id="undo of parts"),
    pytest.param(only_undone, without_exchange, id="undo of parts, two renames"),
]


def recover_restore(target: Home) -> str:
    """Recover a restore; return the outcome."""
    report = recover_home(target, {}, kinds=[pending.RESTORE])
    return report.recovered[-1].outcome if report.recovered else "nothing to do"


def is_pending(home: Path) -> bool:
    """Return whether a restore is pending on a home."""
    return bool(pending.pending_operations(home, [pending.RESTORE]))


def check_settled(world: World) -> None:
    """Recover, and see that the home is old or new, whole, and that nothing else is left."""
    if not is_pending(world.home):
        assert world.tree in (world.before, world.after)
    else:
        with pytest.raises(LockedError):
            pending.require_settled(world.home)

    recover_restore(locate(world.home, {}))

    assert not is_pending(world.home)
    assert world.tree in (world.before, world.after)
    assert leftovers(world.directory) == []
    assert recover_restore(locate(world.home, {})) == "nothing to do"
    if world.tree == world.after and world.keeps and world.after != world.before:
        check_kept(world)


def check_kept(world: World) -> None:
    """Check that an undo restores the previous home, and that a second one reverts the first."""
    target = locate(world.home, {})
    for expected in (world.before, world.after):
        undo_restore(target)
        assert world.tree == expected
    assert leftovers(world.directory) == []


def check_again(world: World) -> None:
    """Repeat the command where that is possible, and check its result."""
    if world.again or world.tree == world.before:
        world.run()
    assert world.tree == world.after
    assert leftovers(world.directory) == []


@pytest.mark.parametrize(("make", "setting"), WORLDS)
def test_killed_at_any_step_it_is_old_or_new(
    make: Callable[[Path], World],
    setting: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """A kill before any step leaves a home that one `--recover` makes whole, old or new."""

    def attempt(number: int) -> bool:
        with setting(), world_of(make) as world:
            was_killed = killed_at(number, world.run)
            check_settled(world)
            check_again(world)
            return was_killed

    assert until_done(attempt) > 15


@pytest.mark.parametrize(
    ("make", "setting", "code"),
    [
        *(
            pytest.param(*world.values, errno.ENOSPC, id=f"{world.id}, no space")
            for world in WORLDS
        ),
        *(pytest.param(*world.values, errno.EIO, id=f"{world.id}, EIO") for world in WORLDS[:2]),
    ],
)
def test_failing_at_any_step_it_is_old_and_says_so_or_new(
    make: Callable[[Path], World],
    setting: Callable[[], contextlib.AbstractContextManager[None]],
    code: int,
) -> None:
    """One step that the system refuses leaves the home as it was, or does not matter."""

    def attempt(number: int) -> bool:
        with setting(), world_of(make) as world:
            error = _refused(world, number, code)
            assert not is_pending(world.home)
            assert world.tree == (world.after if error is None else world.before)
            if error is not None and code == errno.ENOSPC:
                assert isinstance(error, NoSpaceError)
            check_settled(world)
            check_again(world)
            return number < total

    with setting(), world_of(make) as world, counting() as steps:
        world.run()
        total = steps.count

    assert until_done(attempt) > 15


@pytest.mark.parametrize(("make", "setting"), WORLDS)
def test_disk_that_goes_read_only_at_any_step_is_recovered_from(
    make: Callable[[Path], World],
    setting: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Even the rollback fails; once the cause is fixed, `--recover` completes it."""

    def attempt(number: int) -> bool:
        with setting(), world_of(make) as world:
            _refused(world, number, errno.EROFS, for_ever=True)
            check_settled(world)
            check_again(world)
            return number < total

    with setting(), world_of(make) as world, counting() as steps:
        world.run()
        total = steps.count

    assert until_done(attempt) > 15


@pytest.mark.parametrize(
    ("make", "setting"), [pytest.param(whole, without_exchange, id="whole"), WORLDS[7], WORLDS[11]]
)
def test_recovery_can_be_killed_at_any_step_too(
    make: Callable[[Path], World],
    setting: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """A `--recover` that is killed anywhere leaves what the next one ends."""

    def interrupted(number: int, step: int) -> bool:
        """Kill the command, then its recovery; return whether both were killed."""
        with setting(), world_of(make) as world:
            killed_at(number, world.run)
            assert is_pending(world.home)
            was_killed = killed_at(step, lambda: recover_restore(locate(world.home, {})))
            check_settled(world)
            check_again(world)
            return was_killed

    def is_between(number: int) -> bool | None:
        with setting(), world_of(make) as world:
            was_killed = killed_at(number, world.run)
            return is_pending(world.home) if was_killed else None

    between = []
    for number in itertools.count(1):
        if (answer := is_between(number)) is None:
            break
        if answer:
            between.append(number)
    for number in between:
        steps = until_done(functools.partial(interrupted, number))
        assert steps > 2

    assert between


def _refused(world: World, number: int, code: int, *, for_ever: bool = False) -> OpsError | None:
    try:
        with failing(number, code, for_ever=for_ever):
            world.run()
    except OpsError as error:
        return error
    return None
