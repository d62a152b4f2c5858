"""The snapshots of a directory: their names, their cards, and which of them is meant.

A card is the clear JSON file beside an archive. It is advisory: everything in it can be read from
the archive again, and a missing or broken card never hides a snapshot.
"""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs import locks
from sagewai_ops.fs.removal import remove_tree, sweep_leftovers
from sagewai_ops.snapshots.cards import read_card

TREE = "tree"  # where a directory keeps the one that is no archive: `directory`
_NAME = re.compile(
    r"sagewai-(?P<id>(?P<moment>\d{8}T\d{6}Z)-[0-9a-f]{6})\.tar\.zst(?P<sealed>\.age)?"
)
_MOMENT = "%Y%m%dT%H%M%SZ"
_DIGITS = ((0, 4), (4, 6), (6, 8), (9, 11), (11, 13), (13, 15))  # year to second of a moment
# What a run puts into the directory while it works: hidden, locked by the run, swept when it is
# dead.
_PARTIAL = re.compile(
    r"\.sagewai-\d{8}T\d{6}Z-[0-9a-f]{6}"
    r"(\.staging|\.drill|\.tar\.zst(\.age)?(\.json\.[0-9a-f]{8})?\.partial)"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot in a directory.

    Attributes:
        id: `<UTC>-<6 hex>`, unique.
        path: Of the archive.
        created_at: UTC, from the name.
        card: What its card says; empty if there is none that can be read.
    """

    id: str
    path: Path
    created_at: datetime
    is_encrypted: bool
    size_bytes: int
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sequence(self) -> int:
        """Its number among the snapshots of the directory; 0 if the card does not tell."""
        number = self.card.get("sequence")
        return number if isinstance(number, int) else 0

    @property
    def created_text(self) -> str:
        """When it was taken, ISO UTC; year 1 where the digits of its name are no date."""
        return self.created_at.isoformat().replace("+00:00", "Z")

    @property
    def is_truncated(self) -> bool:
        """Whether the archive is not as long as its card says: damaged, or still being copied."""
        recorded = self.card.get("archive_bytes", self.size_bytes)
        return bool(recorded != self.size_bytes)

    @property
    def home_id(self) -> str:
        """Which home it is of; "" if the card does not tell."""
        value = self.card.get("home_id")
        return value if isinstance(value, str) else ""

    @property
    def proved_at(self) -> str:
        """When a drill last proved that it can be restored, ISO UTC; "" if none did."""
        value = self.card.get("proved_restorable_at")
        return value if isinstance(value, str) else ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The words that it bears."""
        value = self.card.get("tags")
        tags = value if isinstance(value, list) else ()
        return tuple(tag for tag in tags if isinstance(tag, str))

    @property
    def has_failed_drill(self) -> bool:
        """Whether the last drill of it failed."""
        drill = self.card.get("drill")
        return isinstance(drill, dict) and drill.get("outcome") == "failed"


def new_id(moment: datetime) -> str:
    """Make the id of a snapshot that is taken now."""
    return f"{moment.astimezone(timezone.utc):{_MOMENT}}-{secrets.token_hex(3)}"


def archive_name(snapshot_id: str, *, is_encrypted: bool) -> str:
    """Name the archive of a snapshot."""
    return f"sagewai-{snapshot_id}.tar.zst" + (".age" if is_encrypted else "")


def is_archive_name(name: str) -> bool:
    """Tell whether a file of this name is a snapshot, and so may have a card."""
    return _NAME.fullmatch(name) is not None


def partial_path(directory: Path, name: str) -> Path:
    """Name the file that an archive is written to until it is proved."""
    return directory / f".{name}.partial"


def scratch_path(directory: Path, moment: datetime) -> Path:
    """Name the directory that a run tries something in; two of one moment differ."""
    return directory / f".sagewai-{new_id(moment)}.drill"


def staging_path(directory: Path, snapshot_id: str) -> Path:
    """Name the directory that a run keeps its database copies in."""
    return directory / f".sagewai-{snapshot_id}.staging"


def list_snapshots(directory: Path) -> list[Snapshot]:
    """List the snapshots of a directory, oldest first; a directory that is not there has none.

    The order is that of the sequence numbers, then of the UTC in the names: a clock that went back
    does not reorder them, and no file time is looked at.
    """
    found = []
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = os.listdir(directory)
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        path = directory / name
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue  # somebody removes it meanwhile
        if stat.S_ISREG(status.st_mode):
            found.append(
                Snapshot(
                    id=match["id"],
                    path=path,
                    created_at=_moment(match["moment"]),
                    is_encrypted=match["sealed"] is not None,
                    size_bytes=status.st_size,
                    card=read_card(path),
                )
            )
    return _ordered(found)


def next_sequence(directory: Path) -> int:
    """Give the number of the snapshot that comes next in a directory."""
    return max((snapshot.sequence for snapshot in list_snapshots(directory)), default=0) + 1


def find_snapshot(directory: Path, name: str, home_ids: Iterable[str]) -> Path:
    """Find what `latest`, an id, the beginning of an id, `tree` or a path means.

    Args:
        home_ids: Of the home at hand: `latest` is the latest of these. Where no snapshot is of
            them (the home is gone, this is another machine) it is the latest of all, as long as
            all are of one home.

    Raises:
        NotFoundError: There is none.
        UsageError: The name means several, or a pipe or device.
    """
    if "/" in name or name.endswith((".zst", ".age")):
        path = Path(name).expanduser()
        beside = directory / name
        path = beside if not path.exists() and beside.exists() else path
        if path.exists() and not path.is_file() and not path.is_dir():
            # Its end is read first, and a pipe without a writer would be waited for, for ever.
            raise UsageError(
                f"snapshot {path}: is neither a file nor a directory",
                hint="put what comes through a pipe into a file first: cat > home.tar.zst",
            )
        return path
    if name == TREE and (directory / TREE).is_dir():
        return directory / TREE
    known = list_snapshots(directory)
    if name == "latest":
        return _latest(directory, known, set(home_ids)).path
    matching = [snapshot for snapshot in known if snapshot.id.startswith(name)]
    if len(matching) == 1:
        return matching[0].path
    if matching:
        raise UsageError(
            f"snapshot {name}: begins {len(matching)} ids, {matching[0].id} and {matching[1].id}",
            hint="sagewai-ops snapshots list",
        )
    raise NotFoundError(
        f"snapshot {name}: none of that id in {directory}", hint="sagewai-ops snapshots list"
    )


def sweep(directory: Path) -> list[str]:
    """Remove the leftovers of dead runs, also behind links of ours; return their names."""
    removed = []
    for name in sorted(os.listdir(directory)):
        link = directory / name
        if _PARTIAL.fullmatch(name) and link.is_symlink():
            with contextlib.suppress(PermissionError):  # of another user
                scratch = Path(os.readlink(link))
                if scratch.name == name and _is_dead(scratch):
                    remove_tree(scratch)
                    link.unlink()
                    removed.append(name)
    return sorted([*removed, *sweep_leftovers(directory, _PARTIAL)])


def _is_dead(scratch: Path) -> bool:
    """Tell whether a scratch directory that a link names is gone, or nobody's any more."""
    if not scratch.name.endswith(".drill"):
        return False
    return not os.path.lexists(scratch) or locks.is_abandoned(scratch)


def _latest(directory: Path, known: list[Snapshot], home_ids: set[str]) -> Snapshot:
    own = [snapshot for snapshot in known if snapshot.home_id in home_ids]
    if own:
        return own[-1]
    if not known:
        raise NotFoundError(
            f"snapshot latest: none in {directory}",
            hint="take one: sagewai-ops backup\nor name the directory: --snapshots DIR",
        )
    if len({snapshot.home_id for snapshot in known if snapshot.home_id}) > 1:
        raise UsageError(
            f"snapshot latest: {directory} holds those of several homes, and none of this one",
            hint="name one by its id: sagewai-ops snapshots list",
        )
    return known[-1]


def _moment(text: str) -> datetime:
    try:
        # Not strptime, which takes most of the time that a long list takes.
        year, month, day, hour, minute, second = (int(text[begin:end]) for begin, end in _DIGITS)
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        # Digits that are no date: still a snapshot, and older than any other.
        return datetime.min.replace(tzinfo=timezone.utc)


def _ordered(found: list[Snapshot]) -> list[Snapshot]:
    """Sort by sequence; one without a number stands where the UTC of its name puts it.

    Within its second that is before the numbered ones, so that none moves when another goes.
    """
    found.sort(key=lambda snapshot: (snapshot.created_at, snapshot.sequence, snapshot.id))
    numbered = iter(
        sorted((snapshot for snapshot in found if snapshot.sequence), key=lambda one: one.sequence)
    )
    return [next(numbered) if snapshot.sequence else snapshot for snapshot in found]
