"""The `.trash/` of a snapshot directory: keeps removed snapshots until the next successful prune.

A snapshot is where its archive is: one rename takes it in or out. Its card follows on the way in
and goes ahead on the way out, so after a crash between the two the card stands in the directory
without its archive, and `settle` puts it to it. Nothing is ever overwritten.

Whoever calls these holds the directory (`locks.exclusive`).
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from sagewai_ops.errors import OpsError, TargetBusyError
from sagewai_ops.fs import atomic
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.snapshots.cards import card_path
from sagewai_ops.snapshots.catalog import Snapshot, is_archive_name, list_snapshots
from sagewai_ops.text import shell_word

TRASH = ".trash"
_CARD_SUFFIX = ".json"


def trash_path(directory: Path) -> Path:
    """Name the trash of a snapshot directory."""
    return directory / TRASH


def list_trash(directory: Path) -> list[Snapshot]:
    """List the snapshots that rest in the trash, oldest first; what is no directory has none."""
    return list_snapshots(trash_path(directory)) if _is_there(directory) else []


def repair_trash(directory: Path) -> None:
    """Finish what a run that died left: a card beside its archive, none without one in the trash.

    Raises:
        OpsError: What has the name of the trash is no directory; the system refused.
    """
    if not _is_there(directory):
        return
    trash = trash_path(directory)
    with translate_os_errors(trash):
        names = set(os.listdir(trash))
        for name in sorted(names):
            if is_archive_name(name):
                if not os.path.lexists(directory / name):
                    _move_card(directory / name, trash / name)
            elif _archive_of(name) and _archive_of(name) not in names:
                # Its archive was purged, or somebody moved that back by hand.
                if os.path.lexists(directory / _archive_of(name)):
                    _move_card(trash / _archive_of(name), directory / _archive_of(name))
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(trash / name)
        _sync(directory)


def move_to_trash(directory: Path, snapshots: Iterable[Snapshot]) -> None:
    """Move snapshots of a directory into its trash.

    Raises:
        TargetBusyError: Something of that name rests there already.
        OpsError: The system refused; each snapshot is in the one place or the other.
    """
    trash = trash_path(directory)
    _require_directory(directory)
    atomic.make_directory(trash)
    with translate_os_errors(trash):
        for snapshot in snapshots:
            _move(snapshot.path, trash / snapshot.path.name)
            _move_card(snapshot.path, trash / snapshot.path.name)
        _sync(directory)


def undelete(directory: Path, snapshots: Iterable[Snapshot]) -> None:
    """Move snapshots from the trash back into their directory.

    Args:
        snapshots: As `resting` gave them.

    Raises:
        TargetBusyError: Something of that name is in the directory.
        OpsError: The system refused; each snapshot is in the one place or the other.
    """
    with translate_os_errors(directory):
        for snapshot in snapshots:
            target = directory / snapshot.path.name
            if os.path.lexists(target):
                raise _taken(target)
            _move_card(snapshot.path, target)
            _move(snapshot.path, target)
        _sync(directory)


def purge(directory: Path, snapshots: Iterable[Snapshot]) -> None:
    """Remove snapshots that rest in the trash for ever.

    Raises:
        OpsError: The system refused.
    """
    with translate_os_errors(trash_path(directory)):
        for snapshot in snapshots:
            for path in (snapshot.path, card_path(snapshot.path)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        _sync(directory)


def _move(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise _taken(target)
    os.rename(source, target)


def _move_card(archive: Path, target: Path) -> None:
    """Move the card of an archive; one that is not there, or would overwrite one, is let be."""
    if not os.path.lexists(card_path(target)):
        with contextlib.suppress(FileNotFoundError):
            os.rename(card_path(archive), card_path(target))


def _archive_of(name: str) -> str:
    """Name the archive that a card is of; "" for what has not the name of a card."""
    archive = name.removesuffix(_CARD_SUFFIX)
    return archive if archive != name and is_archive_name(archive) else ""


def _is_there(directory: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(trash_path(directory)).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _require_directory(directory: Path) -> None:
    if os.path.lexists(trash_path(directory)) and not _is_there(directory):
        raise OpsError(
            f"{trash_path(directory)}: not a directory",
            hint=f"look: ls -la {shell_word(directory)}\nand move it away",
        )


def _sync(directory: Path) -> None:
    if _is_there(directory):
        atomic.sync_directory(trash_path(directory))
    atomic.sync_directory(directory)


def _taken(path: Path) -> TargetBusyError:
    return TargetBusyError(
        f"{path}: is there already", hint=f"compare the two: ls -la {shell_word(path)}"
    )
