"""Create a snapshot: copy the databases, stream the archive, verify it, rename it.

There is no snapshot before the rename, and a verified one after it. The home is not changed.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sagewai_ops.archive.age import Decryption, Encryption, check_recipients, temporary_identity
from sagewai_ops.archive.digest import Written
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup.recipients import with_encryption
from sagewai_ops.backup.report import CUSTODIES, BackupOptions, BackupReport
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.backup.scanner import HomeScan, directories_above, inside_error
from sagewai_ops.backup.upload import require_encryption, upload_snapshot
from sagewai_ops.errors import UsageError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs.free_space import nearest_existing, require_free_bytes
from sagewai_ops.fs.os_errors import output_error, translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.fs.tempdirs import locked_directory
from sagewai_ops.home.paths import PARTS, Home, require_files
from sagewai_ops.process.signals import describe_interruption, uninterrupted
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.remote.path import has_trees, is_remote
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.reference import find_reference
from sagewai_ops.snapshots.scratch import work_parent
from sagewai_ops.snapshots.trust import next_sequence, previous_snapshot, trust_of
from sagewai_ops.swap import pending
from sagewai_ops.text import shell_word

# No archive of a home is known to be smaller than this share of its content; a larger share would
# refuse backups that fit.
_LEAST_ARCHIVE_SHARE = 0.2
_TAG_CHARACTERS = 100


def create_snapshot(
    home: Home, directory: Path, options: BackupOptions, *, progress: Progress | None = None
) -> BackupReport:
    """Create a snapshot of a home in a directory.

    Args:
        home: Sagewai may be using it.
        directory: Created with mode 0700 if missing.
        progress: Called with `copy` in pages, `pack` and `verify` in bytes.

    Raises:
        NotFoundError: The home does not exist.
        LockedError: Another run has the home locked.
        UsageError: The key would be in a plain archive; a recipient is invalid; a link that
            `--follow` matches overlaps with the home.
        KeyMissingError: The key is to be included and is not found.
        NoSpaceError: The disk is or would be full; nothing is left behind.
        DamagedError: The database cannot be read, or the archive differs from what was written.
        RemoteError: The remote place cannot be used.
    """
    if has_trees(directory):
        from sagewai_ops.backup.repository import store_snapshot

        mirror = options.mirror or home.snapshots
        return store_snapshot(home, directory, mirror, options, progress=progress)
    with lock_home(home, directory, options) as swept:
        if is_remote(directory):
            work = work_directory(home, directory, options)
            return upload_snapshot(home, directory, work, options, progress=progress)
        trust = trust_of(home, directory, options.key_environment)
        options = with_encryption(home, directory, options)
        run = BackupRun.start(
            home,
            options,
            next_sequence(directory, trust),
            directory,
            previous=previous_snapshot(directory, trust),
            reference=find_reference(home, directory, trust),
        )
        name = catalog.archive_name(run.id, is_encrypted=options.encryption is not None)
        partial = catalog.partial_path(directory, name)
        with contextlib.ExitStack() as last_steps:
            work = work_directory(home, directory, options)
            with staging_in(work, run.id) as staging:
                check_space(directory, work, run.scan)
                with create_partial(partial) as stream:
                    encryption, decryption = _add_own_key(options.encryption)
                    written = run.write(stream, partial, encryption, staging, progress)
                    with _sync_while(stream, partial, staging):
                        _verify(partial, decryption, written, progress)
                    report = run.report(directory / name, swept)
                    last_steps.enter_context(_finish_despite_signals(directory / name, run.id))
                    with translate_os_errors(directory / name):
                        beneath.rename(partial, directory / name)
                        beneath.sync_directory(directory)
            cards.write_card(directory / name, run.card(report), run.key)
            run.mark(directory)
    return report


def stream_snapshot(
    home: Home, stream: BinaryIO, options: BackupOptions, *, progress: Progress | None = None
) -> BackupReport:
    """Write a snapshot into a pipe, without a metadata file.

    A pipe cannot be read back; but every frame is decompressed and compared before it is sent.

    Raises:
        As `create_snapshot`.
    """
    require_files(home)
    check_options(options)
    pending.require_settled(home.root)
    directory = work_parent(home.root, options.work_dir, snapshots=home.snapshots)
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        with locks.sweep_guard(directory):
            swept = catalog.sweep(directory)
        run = BackupRun.start(home, options, 0, directory, is_stored=False)
        with staging_in(directory, run.id) as staging:
            require_free_bytes(staging, run.scan.database_bytes, option="--work-dir DIR")
            try:
                run.write(stream, None, options.encryption, staging, progress)
                stream.flush()
            except OSError as error:
                if error.filename is not None or isinstance(error, BrokenPipeError):
                    raise
                raise output_error(error) from error
    return run.report(None, swept)


def plan_snapshot(home: Home, directory: Path, options: BackupOptions) -> HomeScan:
    """Return what a snapshot would contain; nothing is written.

    Raises:
        As `create_snapshot`, before it writes.
    """
    require_files(home)
    check_options(options)
    check_directory(home, directory)
    pending.require_settled(home.root)
    if has_trees(directory):
        mirror = options.mirror or home.snapshots
        check_directory(home, mirror)
        return BackupRun.start(home, options, 0, mirror).scan
    options = with_encryption(home, directory, options)
    if is_remote(directory):
        require_encryption(directory, options)
        work = work_directory(home, directory, options)
        return BackupRun.start(home, options, 0, work, is_stored=False).scan
    scan = BackupRun.start(home, options, 0, directory).scan
    check_space(directory, work_directory(home, directory, options), scan)
    return scan


@contextlib.contextmanager
def lock_home(home: Home, directory: Path, options: BackupOptions) -> Iterator[tuple[str, ...]]:
    """Check the arguments of a backup, lock the home and sweep the snapshot directory.

    Returns:
        The leftovers of killed runs that were removed.

    Raises:
        NotFoundError, LockedError, UsageError: As for `create_snapshot`.
    """
    require_files(home)
    check_options(options)
    check_directory(home, directory)
    pending.require_settled(home.root)
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        if not is_remote(directory):
            atomic.make_directory(directory)
        left_by_restores = pending.sweep(home.root)
        swept: list[str] = []
        # Where copies are made, whichever recipients the run finds.
        work = work_parent(home.root, options.work_dir, snapshots=directory)
        for path in dict.fromkeys((work if is_remote(directory) else directory, work)):
            with locks.sweep_guard(path):
                swept += catalog.sweep(path)
        yield (*swept, *left_by_restores)


def check_directory(home: Home, directory: Path) -> None:
    """Check that snapshots can be stored in a directory.

    Raises:
        UsageError: It is inside the home, or not a directory.
    """
    if is_remote(directory):
        return
    # Resolved, as the home is: a link may lead into it.
    if Path(os.path.realpath(directory)).is_relative_to(home.root):
        raise UsageError(
            f"snapshot directory {directory}: inside the home {home.root}; snapshots must be "
            "stored outside the home",
            hint="sagewai-ops backup --snapshots DIR",
        )
    above = directories_above(directory)
    for part in ("", *PARTS):  # a part may be a link to another disk; the scan finds mounts
        with contextlib.suppress(OSError):
            status = os.stat(home.root / part)
            if (status.st_dev, status.st_ino) in above:
                raise inside_error(directory, home.root / part, home)
    if beneath.exists(directory) and not beneath.is_directory(directory):
        raise UsageError(
            f"snapshot directory {directory}: not a directory",
            hint=f"ls -ld {shell_word(directory)}",
        )


def check_options(options: BackupOptions) -> None:
    """Check the options of a backup.

    Raises:
        UsageError: The key would be in a plain archive; a recipient or a tag is invalid.
    """
    if options.custody not in CUSTODIES:
        raise UsageError(
            f"--key {options.custody}: not one of {', '.join(CUSTODIES)}",
            hint="sagewai-ops backup --key exclude",
        )
    if options.custody == "sealed" and options.encryption is None:
        raise UsageError(
            "--key sealed: the archive is not encrypted",
            hint="sagewai-ops backup --key sealed --recipient age1...",
        )
    if options.encryption:
        check_recipients(options.encryption.recipients)
    for tag in options.tags:
        if not 0 < len(tag) <= _TAG_CHARACTERS or not tag.isprintable() or tag != tag.strip():
            raise UsageError(
                f"--tag {tag!r:.120}: not 1 to {_TAG_CHARACTERS} printable characters",
            )


def _add_own_key(encryption: Encryption | None) -> tuple[Encryption | None, Decryption | None]:
    """Add a recipient of this run, which reads its archive back."""
    if encryption is None:
        return None, None
    if encryption.passphrase:
        return encryption, Decryption(passphrase=encryption.passphrase)
    recipient, identity = temporary_identity()
    return Encryption(recipients=(*encryption.recipients, recipient)), Decryption(
        identities=(identity,)
    )


@contextlib.contextmanager
def _sync_while(stream: BinaryIO, partial: Path, staging: Path) -> Iterator[None]:
    """Flush the archive to the disk and remove the copies while the block runs."""

    def sync() -> None:
        beneath.sync(stream.fileno())
        with contextlib.suppress(OSError):  # the staging directory is removed in any case
            for copy in staging.iterdir():
                copy.unlink()

    with ThreadPool(1, thread_name_prefix="sync") as pool:
        synced = pool.submit(sync)
        yield
        with translate_os_errors(partial):
            synced.result()


@contextlib.contextmanager
def _finish_despite_signals(path: Path, snapshot_id: str) -> Iterator[None]:
    """Delay signals until the snapshot and its metadata file are complete, and report that."""
    with uninterrupted():
        try:
            yield
        finally:
            if beneath.exists(path):
                describe_interruption(f"snapshot {snapshot_id} is complete")


def _verify(
    partial: Path, decryption: Decryption | None, written: Written, progress: Progress | None
) -> None:
    with open_archive(partial, decryption) as reader:
        count = byte_counter(progress, "verify", reader.archive_bytes)
        reader.verify_written(written, on_bytes=count)


def work_directory(home: Home, directory: Path, options: BackupOptions) -> Path:
    """Return the directory for the copies of databases.

    Nothing in clear is written next to encrypted snapshots, or through root's process.
    """
    is_routed = is_remote(directory) or beneath.is_routed(directory)
    if options.encryption or options.work_dir or is_routed:
        return work_parent(home.root, options.work_dir, snapshots=directory)
    return directory


def check_space(directory: Path, work: Path, scan: HomeScan) -> None:
    """Check that the copy of the database and the smallest likely archive fit on the disks.

    Args:
        work: Where the copy is made.

    Raises:
        NoSpaceError: They do not.
    """
    needed = int(scan.content_bytes * _LEAST_ARCHIVE_SHARE)
    if work == directory or _device(work) == _device(directory):
        needed += scan.database_bytes
    else:
        require_free_bytes(work, scan.database_bytes, option="--work-dir DIR")
    require_free_bytes(directory, needed, option="--snapshots DIR")


def _device(path: Path) -> int:
    return beneath.status(nearest_existing(path)).st_dev


@contextlib.contextmanager
def staging_in(directory: Path, snapshot_id: str) -> Iterator[Path]:
    """Create a private directory that is locked during this run and removed in any case."""
    path = catalog.staging_path(directory, snapshot_id)
    with locked_directory(path):
        yield path


@contextlib.contextmanager
def create_partial(path: Path) -> Iterator[BinaryIO]:
    """Create the archive's file, locked during this run and removed unless it was renamed."""
    with contextlib.ExitStack() as stack:
        with uninterrupted(), translate_os_errors(path), locks.sweep_guard(path.parent):
            descriptor = beneath.create_file(path, atomic.PRIVATE_FILE)
            stack.callback(remove_tree, path)
            stream = stack.enter_context(open(descriptor, "wb", 0))
            locks.mark_alive(descriptor)
        yield stream
