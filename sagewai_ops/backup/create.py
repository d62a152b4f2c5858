"""Take a snapshot: freeze, stream, read back, and only then give it its name.

The order is that of docs/format.md and of the promise: until the last rename there is no snapshot,
afterwards there is a proved one. Nothing in the home is changed.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from sagewai_ops.archive.age import Decryption, Encryption, check_recipients, temporary_identity
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup.report import CUSTODIES, BackupOptions, BackupReport
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.backup.scanner import HomeScan
from sagewai_ops.errors import InterruptedRunError, UsageError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.free_space import require_free_bytes
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.fs.tempdirs import locked_directory
from sagewai_ops.home.paths import Home, require
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.progress import Progress
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.swap import swap
from sagewai_ops.text import shell_word

# Below this share of the content no archive of a home was ever seen; refusing earlier than that
# would refuse backups that fit.
_LEAST_ARCHIVE_SHARE = 0.2
_TAG_CHARACTERS = 100


def create_snapshot(
    home: Home, directory: Path, options: BackupOptions, *, progress: Progress | None = None
) -> BackupReport:
    """Take a snapshot of a home into a directory.

    Args:
        home: May be in use by Sagewai all the while.
        directory: Made with mode 0700 if it is not there.
        progress: Told `copy` in pages, `pack` and `verify` in bytes.

    Raises:
        NotFoundError: There is no such home.
        LockedError: Another run holds the home.
        UsageError: The key would go into a clear archive; a recipient is not one.
        KeyMissingError: The key is to be carried and there is none.
        NoSpaceError: The disk is full or would be; nothing is left behind.
        DamagedError: The database cannot be read, or the archive does not read back as written.
    """
    require(home)
    check_options(options)
    check_directory(home, directory)
    swap.require_settled(home.root)
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        atomic.make_directory(directory)
        left_by_restores = swap.sweep(home.root)
        with locks.sweep_guard(directory):
            swept = (*catalog.sweep(directory), *left_by_restores)
        run = BackupRun.begin(home, options, catalog.next_sequence(directory))
        name = catalog.archive_name(run.id, is_encrypted=options.encryption is not None)
        partial = catalog.partial_path(directory, name)
        with contextlib.ExitStack() as last_steps:
            with staging_in(directory, run.id) as staging:
                check_space(directory, run.scan)
                with _partial(partial) as stream:
                    encryption, decryption = _with_own_key(options.encryption)
                    run.write(stream, partial, encryption, staging, progress)
                    with _settling(stream, partial, staging):
                        _verify(partial, decryption, progress)
                    report = run.report(directory / name, swept)
                    last_steps.enter_context(_told(directory / name, run.id))
                    with translate_os_errors(directory / name):
                        os.rename(partial, directory / name)
                        atomic.sync_directory(directory)
            cards.write_card(directory / name, run.card(report))
    return report


def stream_snapshot(
    home: Home, stream: BinaryIO, options: BackupOptions, *, progress: Progress | None = None
) -> BackupReport:
    """Write a snapshot into a pipe; it is in no directory and has no card.

    It cannot be read back, so every frame is decompressed again and compared before it is sent.

    Raises:
        As `create_snapshot`.
    """
    require(home)
    check_options(options)
    swap.require_settled(home.root)
    directory = atomic.temporary_directory()
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        with locks.sweep_guard(directory):
            swept = catalog.sweep(directory)
        run = BackupRun.begin(home, options, sequence=0)
        with staging_in(directory, run.id) as staging:
            check_space(staging, run.scan, only_copy=True)
            try:
                run.write(stream, None, options.encryption, staging, progress)
                stream.flush()
            except OSError as error:
                if error.filename is not None or isinstance(error, BrokenPipeError):
                    raise
                raise from_os_error(error, "standard output") from error
    return run.report(None, swept)


def check_directory(home: Home, directory: Path) -> None:
    """Make sure that a directory can be one of snapshots.

    Raises:
        UsageError: It is inside the home, or no directory.
    """
    # Resolved, as the home is: a link may lead into it.
    if Path(os.path.realpath(directory)).is_relative_to(home.root):
        raise UsageError(
            f"snapshot directory {directory}: is inside the home {home.root}",
            hint="a lost home must not take its snapshots along: backup --snapshots DIR",
        )
    if os.path.lexists(directory) and not directory.is_dir():
        raise UsageError(
            f"snapshot directory {directory}: is not a directory",
            hint=f"ls -ld {shell_word(directory)}",
        )


def check_options(options: BackupOptions) -> None:
    """Refuse what contradicts itself, before anything is touched.

    Raises:
        UsageError: The key would go into a clear archive; a recipient or a tag is not one.
    """
    if options.custody not in CUSTODIES:
        raise UsageError(
            f"--key {options.custody}: not a custody", hint=f"use one of {', '.join(CUSTODIES)}"
        )
    if options.custody == "sealed" and options.encryption is None:
        raise UsageError(
            "--key sealed: the master key never goes into an archive that is not encrypted",
            hint="add --recipient age1... or --passphrase-file FILE",
        )
    if options.encryption:
        check_recipients(options.encryption.recipients)
    for tag in options.tags:
        if not 0 < len(tag) <= _TAG_CHARACTERS or not tag.isprintable() or tag != tag.strip():
            raise UsageError(
                f"--tag {tag!r:.120}: not a tag",
                hint=f"1 to {_TAG_CHARACTERS} printable characters",
            )


def _with_own_key(encryption: Encryption | None) -> tuple[Encryption | None, Decryption | None]:
    """Make sure that this run can read back what it encrypts."""
    if encryption is None:
        return None, None
    if encryption.passphrase:
        return encryption, Decryption(passphrase=encryption.passphrase)
    recipient, identity = temporary_identity()
    return Encryption(recipients=(*encryption.recipients, recipient)), Decryption(
        identities=(identity,)
    )


@contextlib.contextmanager
def _settling(stream: BinaryIO, partial: Path, staging: Path) -> Iterator[None]:
    """Let the disk take the archive, and let go of the copies, while the block runs."""

    def settle() -> None:
        os.fsync(stream.fileno())
        with contextlib.suppress(OSError):  # whoever made the directory removes it in any case
            for copy in staging.iterdir():
                copy.unlink()

    with ThreadPoolExecutor(1, thread_name_prefix="settle") as pool:
        settled = pool.submit(settle)
        yield
        with translate_os_errors(partial):
            settled.result()


@contextlib.contextmanager
def _told(path: Path, snapshot_id: str) -> Iterator[None]:
    """Let a signal wait until the snapshot has its name and its card; then say that it has."""
    try:
        with uninterrupted():
            yield
    except InterruptedRunError as error:
        if not path.exists():
            raise
        words = f"snapshot {snapshot_id} was taken before"
        raise InterruptedRunError(error.signal_number, words) from error


def _verify(partial: Path, decryption: Decryption | None, progress: Progress | None) -> None:
    with open_archive(partial, decryption) as reader:
        done = 0

        def count(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            if progress:
                progress("verify", done, reader.content_bytes)

        reader.verify(on_bytes=count)


def check_space(directory: Path, scan: HomeScan, *, only_copy: bool = False) -> None:
    """Refuse what would surely not fit.

    Raises:
        NoSpaceError: The disk has less room than the copy of the database and the archive need.
    """
    needed = scan.database_bytes
    if not only_copy:
        needed += int(scan.content_bytes * _LEAST_ARCHIVE_SHARE)
    require_free_bytes(directory, needed, option="--snapshots DIR")


@contextlib.contextmanager
def staging_in(directory: Path, snapshot_id: str) -> Iterator[Path]:
    """Make a private directory that is locked while this run lives, and removed in any case."""
    path = catalog.staging_path(directory, snapshot_id)
    with locked_directory(path):
        yield path


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[BinaryIO]:
    """Open the archive's file, locked while this run lives, and removed unless it was renamed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        with uninterrupted(), translate_os_errors(path), locks.sweep_guard(path.parent):
            descriptor = os.open(path, flags, atomic.PRIVATE_FILE)
            stack.callback(remove_tree, path)
            stream = stack.enter_context(open(descriptor, "wb", 0))
            locks.mark_alive(descriptor)
        os.fchmod(descriptor, atomic.PRIVATE_FILE)
        yield stream
