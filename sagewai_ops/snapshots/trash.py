"""The `.trash/` of a snapshot directory keeps removed snapshots until the next successful prune.

A snapshot is where its archive is: one rename moves it in or out. Its metadata file is moved after
it on the way in and before it on the way out. A crash between the two leaves the metadata file in
the directory without its archive, and `repair_trash` reunites them. Nothing is ever overwritten.

Callers hold the lock of the directory (`locks.exclusive`).
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from sagewai_ops.errors import OpsError, TargetBusyError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots import remote_trash
from sagewai_ops.snapshots.cards import card_path
from sagewai_ops.snapshots.catalog import Snapshot, is_archive_name, list_snapshots
from sagewai_ops.snapshots.remote_trash import HiddenSnapshot
from sagewai_ops.text import shell_word

TRASH = ".trash"
_CARD_SUFFIX = ".json"


def trash_path(directory: Path) -> Path:
    """Return the path of the trash of a snapshot directory."""
    return directory / TRASH


def list_trash(directory: Path) -> list[Snapshot]:
    """Return the snapshots in the trash, oldest first."""
    if is_remote(directory):
        return remote_trash.list_trash(directory)
    return list_snapshots(trash_path(directory)) if _has_trash(directory) else []


def repair_trash(directory: Path) -> None:
    """Reunite archives and metadata files that a crash separated, and remove orphans in the trash.

    Raises:
        OpsError: The trash cannot be read or changed.
    """
    if is_remote(directory) or not _has_trash(directory):
        return
    trash = trash_path(directory)
    with translate_os_errors(trash):
        names = set(beneath.list_directory(trash))
        for name in sorted(names):
            if is_archive_name(name):
                if not beneath.exists(directory / name):
                    _move_card(directory / name, trash / name)
            elif _archive_of(name) and _archive_of(name) not in names:
                # Its archive was purged, or moved back by hand.
                if beneath.exists(directory / _archive_of(name)):
                    _move_card(trash / _archive_of(name), directory / _archive_of(name))
                with contextlib.suppress(FileNotFoundError):
                    beneath.unlink(trash / name)
        _sync(directory)


def move_to_trash(directory: Path, snapshots: Iterable[Snapshot]) -> tuple[HiddenSnapshot, ...]:
    """Move snapshots of a directory to its trash.

    Returns:
        Those that a remote store keeps, hidden, where they were.

    Raises:
        TargetBusyError: An entry of that name is in the trash already.
        OpsError: An entry cannot be moved; each snapshot is in the directory or in the trash.
    """
    if is_remote(directory):
        return remote_trash.move_to_trash(snapshots)
    trash = trash_path(directory)
    _require_directory(directory)
    atomic.make_directory(trash)
    with translate_os_errors(trash):
        for snapshot in snapshots:
            _move(snapshot.path, trash / snapshot.path.name)
            _move_card(snapshot.path, trash / snapshot.path.name)
        _sync(directory)
    return ()


def undelete(directory: Path, snapshots: Iterable[Snapshot]) -> None:
    """Move snapshots from the trash back to their directory.

    Args:
        snapshots: From `list_trash`.

    Raises:
        TargetBusyError: An entry of that name is in the directory.
        OpsError: An entry cannot be moved; each snapshot is in the directory or in the trash.
    """
    if is_remote(directory):
        remote_trash.undelete(snapshots)
        return
    with translate_os_errors(directory):
        for snapshot in snapshots:
            target = directory / snapshot.path.name
            _require_absent(target)
            _move_card(snapshot.path, target)
            _move(snapshot.path, target)
        _sync(directory)


def purge(directory: Path, snapshots: Iterable[Snapshot]) -> tuple[HiddenSnapshot, ...]:
    """Remove snapshots in the trash permanently.

    Returns:
        Those that a remote store keeps, hidden.

    Raises:
        OpsError: An entry cannot be removed.
    """
    if is_remote(directory):
        return remote_trash.purge(directory, snapshots)
    with translate_os_errors(trash_path(directory)):
        for snapshot in snapshots:
            for path in (snapshot.path, card_path(snapshot.path)):
                with contextlib.suppress(FileNotFoundError):
                    beneath.unlink(path)
        _sync(directory)
    return ()


def _move(source: Path, target: Path) -> None:
    _require_absent(target)
    beneath.rename(source, target)


def _move_card(archive: Path, target: Path) -> None:
    """Move the metadata file of an archive, if it exists and overwrites no other."""
    if not beneath.exists(card_path(target)):
        with contextlib.suppress(FileNotFoundError):
            beneath.rename(card_path(archive), card_path(target))


def _archive_of(name: str) -> str:
    """Return the name of the archive of a metadata file; "" for any other file name."""
    archive = name.removesuffix(_CARD_SUFFIX)
    return archive if archive != name and is_archive_name(archive) else ""


def _has_trash(directory: Path) -> bool:
    return beneath.is_directory(trash_path(directory))


def _require_directory(directory: Path) -> None:
    if beneath.exists(trash_path(directory)) and not _has_trash(directory):
        raise OpsError(
            f"{trash_path(directory)}: not a directory",
            hint=f"ls -la {shell_word(directory)}  # and move it away",
        )


def _sync(directory: Path) -> None:
    if _has_trash(directory):
        beneath.sync_directory(trash_path(directory))
    beneath.sync_directory(directory)


def _require_absent(path: Path) -> None:
    if beneath.exists(path):
        raise TargetBusyError(f"{path}: exists already", hint=f"ls -la {shell_word(path)}")
