"""Put a restored folder in the place of a home, so that a crash leaves one or the other.

Two ways. *Whole*: the folder was built beside the home and the two names are exchanged in one
step; where the system has no such step, two renames under a marker. *Entries*: the home is a mount
point, or its parent is not ours, or only parts are replaced; entries move one by one under a
journal inside the home.

The marker and the journal say what was meant, so `recover` can finish after a crash. What was
there before is kept: beside the home as `<home>.before-restore-<UTC>`, or inside it.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops import atomic, locks
from sagewai_ops.errors import LockedError, OpsError, TargetBusyError
from sagewai_ops.home.paths import OWN_PREFIX

MARKER = f"{OWN_PREFIX}restore.json"
_BEFORE = "before-restore-"
_MOMENT = "%Y%m%dT%H%M%S%fZ"
_WORK = f"{OWN_PREFIX}swap-"
_JOURNAL = f"{OWN_PREFIX}journal.json"  # no file of a home is called so
_READY, _FILLING = "ready", "filling"


@dataclass(frozen=True, slots=True)
class Staged:
    """A folder of this run, to be filled and then put in place.

    Attributes:
        content: What is to be filled.
        target: The home it is for.
        before: Where what is there goes; None if there is nothing.
        paths: Relative paths to exchange, in entries mode; None exchanges the whole.
    """

    content: Path
    target: Path
    before: Path | None
    paths: tuple[str, ...] | None


@contextlib.contextmanager
def staged(target: Path, paths: Sequence[str] | None) -> Iterator[Staged]:
    """Make a private folder on the target's file system, removed in any case.

    Args:
        target: The home to be replaced; need not exist.
        paths: Only these parts of it; None for all.
    """
    in_entries = target.is_dir() and (paths is not None or not can_swap_whole(target))
    moment = f"{datetime.now(timezone.utc):{_MOMENT}}"
    is_there = target.is_dir() and bool(os.listdir(target))
    if in_entries:
        work = target / f"{_WORK}{moment}"
        content = work / "new"
        before = target / f"{OWN_PREFIX}{_BEFORE}{moment}"
    else:
        atomic.make_folder(target.parent, mode=0o755)
        work = content = _beside(target, f"restore-{moment}")
        before = target.with_name(f"{target.name}.{_BEFORE}{moment}")
    atomic.make_folder(work)
    with locks.exclusive(work):
        try:
            if not in_entries:
                _write_marker(work, _FILLING, None)
            atomic.make_folder(content)
            yield Staged(
                content=content,
                target=target,
                before=before if is_there else None,
                paths=tuple(paths or ()) if in_entries else None,
            )
        finally:
            _discard(work)


def swap(stage: Staged) -> None:
    """Put what was staged in place.

    Raises:
        TargetBusyError: A part of the home is a file system of its own and cannot be moved.
        OpsError: The system refused; the home is as it was.
    """
    with atomic.naming(stage.target):
        atomic.sync_tree(stage.content)
        if stage.paths is not None:
            _swap_entries(stage)
            return
        _write_marker(stage.content, _READY, stage.before)
        atomic.sync_folder(stage.content)
        _swap_whole(stage.content, stage.target, stage.before)
        _remove_marker(stage.target)


def can_swap_whole(target: Path) -> bool:
    """Tell whether a home can be exchanged by its name: it is no mount, and its parent is ours."""
    return os.access(target.parent, os.W_OK | os.X_OK) and not _is_mount(target)


def entries_of(target: Path) -> set[str]:
    """List the names in a home that a restore of all of it exchanges."""
    return {
        name
        for name in os.listdir(target)
        if not name.startswith(OWN_PREFIX) and name != "lost+found"
    }


def unfinished(target: Path) -> Path | None:
    """Find the folder of a restore that died after its first move; None if there is none."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(target)):
            path = target / name
            if name.startswith(_WORK) and (path / _JOURNAL).exists() and locks.is_abandoned(path):
                return path
    if (marker := _read_marker(target)) and marker[0] == _READY and locks.is_abandoned(target):
        return target
    if not target.exists():
        for path in [*_leftovers(target), *kept_before(target)]:
            marker = _read_marker(path)
            if marker and marker[0] == _READY and marker[1] and marker[1].exists():
                return path
    return None


def require_settled(target: Path) -> None:
    """Refuse to go on with a home that an interrupted restore left between old and new.

    Raises:
        LockedError: There is such a restore, and its run is dead.
    """
    if unfinished(target) is not None:
        raise LockedError(
            f"home {target}: a restore was interrupted before it ended",
            hint=f"sagewai-ops --home {target} restore --recover",
        )


def recover(target: Path, found: Path | None) -> str:
    """Finish a restore that was interrupted, and remove what dead runs left.

    Args:
        found: What `unfinished` gave, asked before this run locked the home.

    Returns:
        `finished`, `rolled back` or `nothing to do`.

    Raises:
        OpsError: The system refused; run it again once that is mended.
    """
    answer = "nothing to do"
    with atomic.naming(target):
        if found is not None and found.name.startswith(_WORK):
            answer = _recover_entries(target, found)
        elif found is not None:
            _recover_whole(target, found)
            answer = "finished"
    sweep(target)
    return answer


def undo(target: Path, last: Path) -> tuple[Path, Path | None]:
    """Exchange the home and what an earlier restore put aside.

    Args:
        last: One of `kept_before`.

    Returns:
        (what was brought back, where what was there went).
    """
    moment = f"{datetime.now(timezone.utc):{_MOMENT}}"
    with atomic.naming(last):
        if last.parent == target:
            return last, _undo_entries(target, last, moment)
        away = None
        if target.is_dir():
            away = target.with_name(f"{target.name}.{_BEFORE}{moment}")
        _write_marker(last, _READY, away)
        _swap_whole(last, target, away)
        _remove_marker(target)
    return last, away


def kept_before(target: Path) -> list[Path]:
    """List what earlier restores put aside, oldest first."""
    beside = re.compile(re.escape(target.name) + rf"\.{_BEFORE}(\d{{8}}T\d+Z)")
    inside = re.compile(re.escape(OWN_PREFIX + _BEFORE) + r"(\d{8}T\d+Z)")
    found: list[tuple[str, Path]] = []
    for folder, pattern in ((target.parent, beside), (target, inside)):
        with contextlib.suppress(OSError):
            found += [
                (match[1], folder / match[0])
                for match in map(pattern.fullmatch, os.listdir(folder))
                if match
            ]
    return [path for _moment, path in sorted(found)]


def sweep(target: Path) -> list[str]:
    """Remove what restores that died before their swap left; give the names.

    Only folders that nobody holds are touched, and of those beside the home only such as bear our
    marker: what bears none may be somebody's home.
    """
    removed = []
    for path in _leftovers(target):
        if not locks.is_abandoned(path):
            continue
        is_ours = (
            path.name.startswith((_WORK, f".{target.name}.discard-"))
            or (path / MARKER).exists()
            or not os.listdir(path)
        )
        if is_ours and not (path / _JOURNAL).exists():
            _discard(path)
            removed.append(path.name)
    return removed


def _is_mount(path: Path) -> bool:
    if os.path.ismount(path):
        return True
    # A bind mount of the same file system has the device of its parent; only Linux tells.
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    wanted = os.fspath(path)
    return any(
        re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) == wanted
        for line in lines
    )


def _beside(target: Path, rest: str) -> Path:
    return target.with_name(f".{target.name}.{rest}")


def _write_marker(folder: Path, state: str, before: Path | None) -> None:
    content = {"state": state, "before": os.fspath(before) if before else None}
    atomic.replace(folder / MARKER, json.dumps(content).encode())


def _read_marker(folder: Path) -> tuple[str, Path | None] | None:
    try:
        content = json.loads((folder / MARKER).read_bytes())
        before = content["before"]
        return content["state"], Path(before) if before else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remove_marker(folder: Path) -> None:
    times = os.stat(folder)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / MARKER)
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    atomic.sync_folder(folder)


def _swap_whole(content: Path, target: Path, before: Path | None) -> None:
    if before is None:
        try:
            os.rename(content, target)
        except OSError as error:
            if not target.is_dir() or not os.listdir(target):
                raise
            raise TargetBusyError(
                f"{target}: something was put there meanwhile", hint="look, then run it again"
            ) from error
    elif atomic.exchange(content, target):
        os.rename(content, before)
    else:
        os.rename(target, before)
        try:
            os.rename(content, target)
        except BaseException:
            os.rename(before, target)
            raise
    atomic.sync_folder(target.parent)


def _recover_whole(target: Path, found: Path) -> None:
    marker = _read_marker(found)
    before = marker[1] if marker else None
    if found != target:
        os.rename(found, target)
    elif before is not None and not before.exists():
        # The names were exchanged; what was the home still has the name of the staging.
        for path in _leftovers(target):
            if path.is_dir() and not (path / MARKER).exists() and os.listdir(path):
                os.rename(path, before)
    _remove_marker(target)
    atomic.sync_folder(target.parent)


def _leftovers(target: Path) -> list[Path]:
    beside = (f".{target.name}.restore-", f".{target.name}.discard-")
    found = []
    for folder, prefixes in ((target.parent, beside), (target, (_WORK,))):
        with contextlib.suppress(OSError):
            found += [folder / name for name in os.listdir(folder) if name.startswith(prefixes)]
    return sorted(found)


def _discard(path: Path) -> None:
    """Remove a folder of ours; renamed first, so that a kill leaves a name that says what it is."""
    if not path.exists() or (path / _JOURNAL).exists():
        return
    doomed = path
    if not path.name.startswith(_WORK) and ".discard-" not in path.name:
        if (path / MARKER).exists() or not os.listdir(path):
            doomed = path.with_name(path.name.replace(".restore-", ".discard-"))
            os.rename(path, doomed)
        else:
            return  # the names were exchanged: this is the home that was
    atomic.remove_tree(doomed)


def _swap_entries(stage: Staged) -> None:
    assert stage.paths is not None
    work = stage.content.parent
    for path in stage.paths:
        if _is_mount(stage.target / path):
            raise TargetBusyError(
                f"{stage.target / path}: a file system of its own, it cannot be exchanged",
                hint="restore to another folder with --to DIR and copy from there",
            )
    before = stage.before or stage.target / f"{OWN_PREFIX}{_BEFORE}{work.name[len(_WORK) :]}"
    fresh = [path for path in stage.paths if os.path.lexists(stage.content / path)]
    journal = {"paths": list(stage.paths), "new": fresh, "before": before.name}
    atomic.make_folder(work / "old")
    atomic.replace(work / _JOURNAL, json.dumps(journal).encode())
    try:
        _move_forward(stage.target, work)
    except OSError:
        _move_back(stage.target, work)
        raise


def _recover_entries(target: Path, work: Path) -> str:
    try:
        _move_forward(target, work)
    except OSError:
        _move_back(target, work)
        return "rolled back"
    return "finished"


def _move_forward(target: Path, work: Path) -> None:
    """Do what the journal says; every step can be done twice."""
    journal = json.loads((work / _JOURNAL).read_bytes())
    before = target / journal["before"]
    if "from" in journal and (target / journal["from"]).exists():
        os.rename(target / journal["from"], work / "new")
    for path in journal["paths"]:
        new, old, place = work / "new" / path, work / "old" / path, target / path
        is_waiting = os.path.lexists(new)
        if os.path.lexists(place) and (is_waiting or path not in journal["new"]):
            atomic.make_folder(old.parent)
            os.rename(place, old)
        if is_waiting:
            os.rename(new, place)
    if (work / "old").exists():
        atomic.replace(work / "old" / _JOURNAL, (work / _JOURNAL).read_bytes())
        os.rename(work / "old", before)
    atomic.sync_tree(target)
    os.unlink(work / _JOURNAL)
    _discard(work)
    atomic.sync_folder(target)


def _move_back(target: Path, work: Path) -> None:
    journal = json.loads((work / _JOURNAL).read_bytes())
    for path in reversed(journal["paths"]):
        new, old, place = work / "new" / path, work / "old" / path, target / path
        if path in journal["new"] and not os.path.lexists(new) and os.path.lexists(place):
            os.rename(place, new)
        if os.path.lexists(old):
            os.rename(old, place)
    if "from" in journal and (work / "new").exists():
        os.rename(work / "new", target / journal["from"])
    os.unlink(work / _JOURNAL)
    atomic.sync_tree(target)
    _discard(work)


def _undo_entries(target: Path, last: Path, moment: str) -> Path:
    try:
        paths = json.loads((last / _JOURNAL).read_bytes())["paths"]
    except (OSError, ValueError, KeyError) as error:
        raise OpsError(
            f"{last}: its journal cannot be read", hint=f"ls -la {last}  # and move it by hand"
        ) from error
    work = target / f"{_WORK}{moment}"
    away = target / f"{OWN_PREFIX}{_BEFORE}{moment}"
    atomic.make_folder(work)
    with locks.exclusive(work):
        fresh = [path for path in paths if os.path.lexists(last / path)]
        journal = {"paths": paths, "new": fresh, "before": away.name, "from": last.name}
        atomic.make_folder(work / "old")
        atomic.replace(work / _JOURNAL, json.dumps(journal).encode())
        _move_forward(target, work)
    return away
