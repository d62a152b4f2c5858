"""The mirror: a snapshot as plain files at a fixed path, a source for restic, borg or kopia.

A mirror equals an unpacked archive. The database keeps the order of its pages, and an unchanged
file remains the same file (a hard link to that of the previous mirror) with the same time, so that
deduplication finds almost everything again.

A new mirror is written and verified, then exchanged with the previous one in one step; the next run
removes what a killed run leaves. Where the system cannot exchange two directories, the previous one
is renamed for a moment, and the next run renames it back if this one is killed then.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from sagewai_ops.archive.directory_reader import DirectoryReader, open_mirror, read_mirror_header
from sagewai_ops.archive.manifest import Entry, EntryType, Header
from sagewai_ops.backup.create import check_space, lock_home, staging_in
from sagewai_ops.backup.mirror_record import read_record
from sagewai_ops.backup.mirror_writer import MirrorWriter, PreviousMirror
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.errors import DamagedError, NotFoundError, OpsError, TargetBusyError, UsageError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_abandoned, remove_tree
from sagewai_ops.fs.tempdirs import locked_directory
from sagewai_ops.fs.trust import report as report_once
from sagewai_ops.home.paths import Home
from sagewai_ops.process.signals import mark_completed, uninterrupted
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.catalog import TREE
from sagewai_ops.snapshots.ownership import Owner, owner_of, reason_foreign
from sagewai_ops.snapshots.rebuild_cards import recorded_check, recorded_properties
from sagewai_ops.snapshots.reference import Reference, content_of
from sagewai_ops.text import shell_word

_PREVIOUS = ".sagewai-ops-tree-before"  # the previous mirror, between two renames
_NEXT = ".sagewai-ops-tree-next"  # the new one, while the previous one is removed


class Destination(Protocol):
    """Where else a mirror is stored, while the home is locked: a repository of an engine."""

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Check that it can be used, while databases are copied; `configure` has the result."""
        ...

    def configure(self, run: BackupRun) -> None:
        """Set number, predecessor and reference of the snapshot."""
        ...

    def store(
        self, run: BackupRun, tree: Path, previous: str, report: BackupReport
    ) -> BackupReport:
        """Store the updated mirror; return the report of the snapshot there.

        Args:
            previous: The digest of the mirror that it replaces; "" without one.
        """
        ...


def update_mirror(
    home: Home,
    directory: Path,
    options: BackupOptions,
    *,
    all_paths: bool = False,
    destination: Destination | None = None,
    progress: Progress | None = None,
) -> BackupReport:
    """Update the mirror of a home, which Sagewai may be using, in a snapshot directory.

    Args:
        directory: Created with mode 0700 if missing; the mirror is `tree` in it.
        all_paths: Also update the mirror of this home at another path.
        destination: Where it is stored too.
        progress: As for `create_snapshot`.

    Raises:
        UsageError: Options for archives only: a mirror is neither encrypted nor compressed.
        TargetBusyError: `tree` is not a mirror, or is that of another home.
        NotFoundError, LockedError, NoSpaceError, DamagedError: As for `create_snapshot`, or the
            home lost what the previous mirror has; the previous mirror remains.
    """
    _check(options)
    if beneath.is_routed(directory):
        raise UsageError(
            f"--format directory: only root can write {directory}, and the home is another user's",
            hint="name a directory of the home's owner: --snapshots DIR",
        )
    place = directory / TREE
    opened = destination.opened() if destination else contextlib.nullcontext()
    with lock_home(home, directory, options) as swept, opened:
        _rename_back(directory)
        before = _read_previous(place, replace(owner_of(home, all_paths=all_paths), host=""))
        run = BackupRun.start(home, options, _next_sequence(before), directory)
        fresh = catalog.staging_path(directory, catalog.new_id(datetime.now(timezone.utc)))
        with staging_in(directory, run.id) as staging:
            check_space(directory, directory, run.scan)
            with locked_directory(fresh, keep=True) as descriptor, _open_previous(place) as old:
                if old and old.mac and run.key:
                    run.previous = {"id": old.header.id, "mac": old.mac.hex()}
                run.reference = _reference(old) if old else None
                run.clone_from = place if old else None
                replaced = old.sha256.hex() if old else ""
                if destination:
                    run.configure = destination.configure
                writer = _write(run, fresh, place, old, staging, progress)
                with translate_os_errors(fresh):
                    atomic.sync_tree(fresh)
                _verify(descriptor, fresh, writer, progress)
                _require_good(run, place)
                run.archive_bytes, run.archive_sha256 = writer.stored_bytes, writer.sha256
                report = replace(
                    run.report(place, swept),
                    format="directory",
                    kept_files=writer.kept_files,
                    reused_files=writer.reused_files,
                    last_read_at=_moment(writer.last_read_at),
                )
                with translate_os_errors(place), uninterrupted():
                    _exchange(fresh, place)
                    if destination is None:
                        mark_completed()  # the mirror is the new one; the previous is removed
        if beneath.exists(fresh):
            _discard(fresh)
        _record(run, writer, place)
        if destination:
            report = destination.store(run, place, replaced, report)
    return report


def _check(options: BackupOptions) -> None:
    if options.custody == "sealed" or options.encryption is not None:
        raise UsageError(
            "--format directory: a mirror is not encrypted and never contains the master key",
            hint="sagewai-ops keys escrow",
        )
    if options.compact:
        raise UsageError(
            "--format directory: --compact moves every page, which defeats deduplication"
        )


def _read_previous(place: Path, owner: Owner) -> Header | None:
    """Read the header of the previous mirror; None if it is missing.

    Raises:
        TargetBusyError: The directory is not a mirror, or is that of another home.
    """
    if not beneath.exists(place):
        return None
    header = read_mirror_header(place) if beneath.is_directory(place) else None
    if header is None:
        raise TargetBusyError(
            f"{place}: not a mirror of this program",
            hint=f"ls -la {shell_word(place)}\n"
            "sagewai-ops backup --format directory --snapshots DIR",
        )
    other = reason_foreign(header.facts, owner)
    if other:
        raise TargetBusyError(
            f"{place}: the mirror {other}",
            hint="sagewai-ops backup --format directory --snapshots DIR\n"
            "sagewai-ops backup --format directory --all-paths  # this home was moved",
        )
    return header


def _next_sequence(before: Header | None) -> int:
    number = before.facts.get("sequence") if before else 0
    return number + 1 if isinstance(number, int) else 1


@contextlib.contextmanager
def _open_previous(place: Path) -> Iterator[DirectoryReader | None]:
    """Open the previous mirror; None if missing or damaged: then every file is new."""
    with contextlib.ExitStack() as stack:
        reader = None
        with contextlib.suppress(NotFoundError, DamagedError):
            reader = stack.enter_context(open_mirror(place))
        yield reader


def _reference(old: DirectoryReader) -> Reference | None:
    """Return the previous mirror, to compare the new one with it; None if it is worth nothing."""
    properties = recorded_properties(old.manifest.facts)
    is_good = properties["sound"] and properties.get("plausible", True)
    if not is_good:
        return None
    full_check_at = recorded_check(old.manifest.facts).get("full_check_at", "")
    return Reference(old.header.id, content_of(old), full_check_at)


def _require_good(run: BackupRun, place: Path) -> None:
    """Check that no good mirror is replaced by one that is not sound or not plausible.

    Raises:
        DamagedError: It would be; the previous one remains.
    """
    quality = run.quality
    if run.reference is None or (quality.is_sound and quality.is_plausible):
        return
    reasons = [cause.text for cause in quality.damaged] or list(quality.changes)
    more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    state = "not plausible" if quality.is_sound else "not sound"
    raise DamagedError(
        f"home {run.home.root}: {state}, {reasons[0]}{more}; {place} is not updated",
        hint="sagewai-ops backup --format directory --accept-change  # if it is intended"
        if quality.is_sound
        else "sagewai-ops status",
    )


def _write(
    run: BackupRun,
    fresh: Path,
    place: Path,
    old: DirectoryReader | None,
    staging: Path,
    progress: Progress | None,
) -> MirrorWriter:
    writers: list[MirrorWriter] = []

    def open_writer(header: Header, on_bytes: Callable[[int], None]) -> MirrorWriter:
        writer = MirrorWriter(
            fresh,
            header,
            mtime_ns=run.moment_ns,
            previous=_previous(run, place, old),
            searched=_searched(run),
            on_bytes=on_bytes,
            key=run.key,
        )
        run.add_unchanged = writer.add_unchanged
        writers.append(writer)
        return writer

    run.write_with(open_writer, staging, progress)
    return writers[0]


def _previous(run: BackupRun, place: Path, old: DirectoryReader | None) -> PreviousMirror:
    if old is None:
        return PreviousMirror(place)
    files = [entry for entry in old.manifest.entries if entry.type is EntryType.FILE]
    if run.options.reads_all:
        return PreviousMirror(place, files)
    record = read_record(place.parent, old.sha256, len(files), run.key)
    return PreviousMirror(place, files, record)


def _searched(run: BackupRun) -> str:
    """Identify the keys that no file may contain, without a hash of them on the disk."""
    return run.key.record_mac("searched keys", {"keys": run.key_search.digest()}) if run.key else ""


def _record(run: BackupRun, writer: MirrorWriter, place: Path) -> None:
    """Record what the next run need not read, last: the removal of a name changes a status."""
    if run.key:
        try:
            writer.record.write(place, writer.sha256, run.key, _searched(run))
        except (OSError, OpsError) as error:
            report_once(f"{place}: updated, but the next run reads every file: {error}")


def _moment(second: int | None) -> datetime | None:
    return None if second is None else datetime.fromtimestamp(second, timezone.utc)


def _verify(descriptor: int, fresh: Path, writer: MirrorWriter, progress: Progress | None) -> None:
    """Read the new files back.

    Those of the previous mirror were verified when they were kept, and copies of databases when
    they were hashed, unless they changed since.
    """
    count = byte_counter(progress, "verify", writer.stored_bytes)
    verified = writer.kept | {
        path
        for path, mtime_ns in writer.adopted.items()
        if beneath.status(fresh / path).st_mtime_ns == mtime_ns
    }

    def is_new(entry: Entry) -> bool:
        return entry.path not in verified

    with contextlib.closing(DirectoryReader(descriptor)) as reader:
        for _entry, _content in reader.members(is_new, on_bytes=count):
            pass


def _exchange(fresh: Path, place: Path) -> None:
    """Exchange the names of the new and the previous mirror."""
    previous = place.with_name(_PREVIOUS)
    if not beneath.exists(place):
        beneath.rename(fresh, place)
    elif not beneath.exchange(fresh, place):
        try:
            beneath.rename(place, previous)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # In the lower layer of an overlay: it can be removed, but not renamed.
            beneath.rename(fresh, place.with_name(_NEXT))
            _complete_removal(place.parent)
            return
        try:
            beneath.rename(fresh, place)
        except OSError:
            beneath.rename(previous, place)
            raise
        beneath.rename(previous, fresh)
    beneath.sync_directory(place.parent)


def _rename_back(directory: Path) -> None:
    """Complete the exchange of a run that was killed between its renames."""
    previous, place = directory / _PREVIOUS, directory / TREE
    with translate_os_errors(place):
        _complete_removal(directory)
    if beneath.exists(previous):
        with translate_os_errors(previous):
            if beneath.exists(place):
                remove_tree(previous)
            else:
                beneath.rename(previous, place)
                beneath.sync_directory(directory)


def _complete_removal(directory: Path) -> None:
    """Replace a mirror that cannot be renamed by the new one, which is complete and verified."""
    following, place = directory / _NEXT, directory / TREE
    if beneath.exists(following):
        remove_tree(place)
        beneath.rename(following, place)
        beneath.sync_directory(directory)


def _discard(old: Path) -> None:
    """Remove the previous mirror, or leave it to the next run if it is being read."""
    remove_abandoned(old, without_locks=True)
