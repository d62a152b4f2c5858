"""A snapshot as a tree of plain files at a path that stays: a source for restic, borg or kopia.

The tree is what unpacking an archive gives. The database keeps every page in its place, and a file
that did not change is the same file (a hard link to the one of the tree before), with the same
time, so a store that deduplicates finds almost everything again.

A new tree is built and proved beside the old one, and the two are exchanged in one step; what is
left over of a run that dies is swept by the next. Where the system cannot exchange two directories,
the old one is set aside for a moment, and put back by the next run if this one dies in it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.archive.directory_reader import DirectoryReader, open_mirror, read_header
from sagewai_ops.archive.manifest import Entry, EntryType, Header
from sagewai_ops.backup.create import check_directory, check_options, check_space, staging_in
from sagewai_ops.backup.mirror_writer import MirrorWriter
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.errors import DamagedError, NotFoundError, TargetBusyError, UsageError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_abandoned, remove_tree
from sagewai_ops.fs.tempdirs import locked_directory
from sagewai_ops.home.paths import Home, require
from sagewai_ops.process.signals import too_late, uninterrupted
from sagewai_ops.progress import Progress
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.catalog import TREE
from sagewai_ops.snapshots.ownership import Owner, owner_of, reason_foreign
from sagewai_ops.swap import swap
from sagewai_ops.text import shell_word

_ASIDE = ".sagewai-ops-tree-before"  # the old tree, for the moment between two renames


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree of a snapshot directory.

    Attributes:
        created_at: UTC, as its header has it.
    """

    path: Path
    id: str
    created_at: str


def find_mirror(directory: Path) -> Tree | None:
    """Tell which tree a snapshot directory has; nothing but its header is read."""
    header = read_header(directory / TREE)
    if header is None:
        return None
    return Tree(directory / TREE, header.id, str(header.facts.get("created_at", "")))


def update_mirror(
    home: Home,
    directory: Path,
    options: BackupOptions,
    *,
    any_place: bool = False,
    progress: Progress | None = None,
) -> BackupReport:
    """Bring the tree of a snapshot directory up to a home that may be in use.

    Args:
        directory: Made with mode 0700 if it is not there; the tree is `tree` in it.
        any_place: Go on with a tree that this home left at another path.
        progress: As for `backup.create_snapshot`.

    Raises:
        UsageError: Options that a tree cannot have: it is neither encrypted nor compressed.
        TargetBusyError: What stands there is no tree, or of another home.
        NotFoundError, LockedError, NoSpaceError, DamagedError: As for `backup.create_snapshot`; the
            tree is the one that it was.
    """
    require(home)
    _check(options)
    check_options(options)
    check_directory(home, directory)
    swap.require_settled(home.root)
    place = directory / TREE
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        atomic.make_directory(directory)
        left_by_restores = swap.sweep(home.root)
        with locks.sweep_guard(directory):
            _put_back(directory)
            swept = (*catalog.sweep(directory), *left_by_restores)
        before = _tree_of(place, replace(owner_of(home, all_paths=any_place), host=""))
        run = BackupRun.begin(home, options, _next_sequence(before))
        fresh = catalog.staging_path(directory, catalog.new_id(datetime.now(timezone.utc)))
        with staging_in(directory, run.id) as staging:
            check_space(directory, run.scan)
            with locked_directory(fresh, stays=True) as descriptor, _opened(place) as old:
                writer = _write(run, fresh, place, old, staging, progress)
                with translate_os_errors(fresh):
                    atomic.sync_tree(fresh)
                _prove(descriptor, writer, progress)
                run.archive_bytes, run.archive_sha256 = writer.stored_bytes, writer.sha256
                report = replace(
                    run.report(place, swept), format="directory", kept_files=writer.kept_files
                )
                with translate_os_errors(place), uninterrupted():
                    _exchange(fresh, place)
                    too_late()  # the tree is the new one, and the old one is to be removed
        _discard(fresh)
    return report


def _check(options: BackupOptions) -> None:
    if options.custody == "sealed" or options.encryption is not None:
        raise UsageError(
            "--format directory: a tree is not encrypted, and never holds the master key",
            hint="let the store encrypt it, and keep the key elsewhere: sagewai-ops keys escrow",
        )
    if options.compact:
        raise UsageError(
            "--format directory: --compact moves every page, so that nothing is found again"
        )


def _tree_of(place: Path, owner: Owner) -> Header | None:
    """Give the header of the tree that is there, which must be this home's; None if none is."""
    if not os.path.lexists(place):
        return None
    header = read_header(place) if place.is_dir() and not place.is_symlink() else None
    if header is None:
        raise TargetBusyError(
            f"{place}: no tree of this program",
            hint=f"look: ls -la {shell_word(place)}\n"
            "and move it away, or use another directory: --snapshots DIR",
        )
    other = reason_foreign(header.facts, owner)
    if other:
        raise TargetBusyError(
            f"{place}: the tree {other}",
            hint="give each home a directory of its own: --snapshots DIR\n"
            "or, if this home was moved, go on with it: --all-paths",
        )
    return header


def _next_sequence(before: Header | None) -> int:
    number = before.facts.get("sequence") if before else 0
    return number + 1 if isinstance(number, int) else 1


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[DirectoryReader | None]:
    """Open the tree that is there; None if there is none, or it is damaged: then all is new."""
    with contextlib.ExitStack() as stack:
        reader = None
        with contextlib.suppress(NotFoundError, DamagedError):
            reader = stack.enter_context(open_mirror(place))
        yield reader


def _write(
    run: BackupRun,
    fresh: Path,
    place: Path,
    old: DirectoryReader | None,
    staging: Path,
    progress: Progress | None,
) -> MirrorWriter:
    made: list[MirrorWriter] = []

    def open_writer(header: Header, on_bytes: Callable[[int], None]) -> MirrorWriter:
        entries = {
            entry.path: entry
            for entry in (old.manifest.entries if old else ())
            if entry.type is EntryType.FILE
        }
        writer = MirrorWriter(
            fresh, header, mtime_ns=run.moment_ns, old=(place, entries), on_bytes=on_bytes
        )
        made.append(writer)
        return writer

    run.write_with(open_writer, staging, progress)
    return made[0]


def _prove(descriptor: int, writer: MirrorWriter, progress: Progress | None) -> None:
    """Read back what was written; what was kept of the old tree was read when it was kept."""
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if progress:
            progress("verify", done, writer.stored_bytes)

    def is_new(entry: Entry) -> bool:
        return entry.path not in writer.kept

    with contextlib.closing(DirectoryReader(descriptor)) as reader:
        for _entry, _content in reader.members(is_new, on_bytes=count):
            pass


def _exchange(fresh: Path, place: Path) -> None:
    """Give the new tree the name of the old one; what was there has the new one's name then."""
    aside = place.with_name(_ASIDE)
    if not os.path.lexists(place):
        os.rename(fresh, place)
    elif not atomic.exchange(fresh, place):
        os.rename(place, aside)
        try:
            os.rename(fresh, place)
        except OSError:
            os.rename(aside, place)
            raise
        os.rename(aside, fresh)
    atomic.sync_directory(place.parent)


def _put_back(directory: Path) -> None:
    """Finish what a run that died between two renames left."""
    aside, place = directory / _ASIDE, directory / TREE
    if os.path.lexists(aside):
        with translate_os_errors(aside):
            if os.path.lexists(place):
                remove_tree(aside)
            else:
                os.rename(aside, place)
                atomic.sync_directory(directory)


def _discard(old: Path) -> None:
    """Remove the old tree, unless somebody reads it: then the next run sweeps it."""
    remove_abandoned(old)
