"""The snapshots of a directory: their names, their order, and how a command finds one.

The metadata file (card) next to an archive is plain JSON and advisory: all of it can be read from
the archive again, and a missing or damaged one never hides a snapshot.
"""

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timezone
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs import beneath, locks
from sagewai_ops.fs.removal import remove_tree, sweep_leftovers
from sagewai_ops.home.state_files import place_identity
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import RemotePath, is_remote
from sagewai_ops.snapshots.cards import checked, read_owned_card, read_remote_cards
from sagewai_ops.snapshots.quality import PROPERTIES, engine_of

STARTED = ".started"  # after the name of an archive: another object, while it is uploaded
REMOVED = ".removed"  # after the name of a metadata file: that of a removed snapshot
TREE = "tree"  # the snapshot that is a directory: `backup --format directory`
_NAME = re.compile(
    r"sagewai-(?P<id>(?P<moment>\d{8}T\d{6}Z)-[0-9a-f]{6})"
    r"\.(?:tar\.zst(?P<encrypted>\.age)?|tree)"
)
_MOMENT = "%Y%m%dT%H%M%SZ"
_DIGITS = ((0, 4), (4, 6), (6, 8), (9, 11), (11, 13), (13, 15))  # year to second
# Temporary entries of a run: hidden, locked by it, and removed by a later run after a crash.
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
        card: The facts of its metadata file; empty if that is missing or unreadable.
        is_own: Whether the archive is a file of this user, or of root.
        is_card_own: Whether its metadata file is, too.
        is_confirmed: Whether its metadata file is authenticated; see `trust.confirm`.
        doubt: Why its facts are not confirmed; "" if they are, or were not examined.
        is_foreign: Whether another user owns it, and no key shows that it is of this home.
    """

    id: str
    path: Path
    created_at: datetime
    is_encrypted: bool
    size_bytes: int
    card: Mapping[str, Any] = field(default_factory=dict)
    is_own: bool = True
    is_card_own: bool = True
    is_confirmed: bool = False
    doubt: str = ""
    is_foreign: bool = False

    @property
    def sequence(self) -> int:
        """Its number in the directory; 0 if unknown."""
        number = self.card.get("sequence")
        return number if isinstance(number, int) else 0

    @property
    def created_text(self) -> str:
        """The creation time, ISO UTC; year 1 if the digits in its name are not a date."""
        return self.created_at.isoformat().replace("+00:00", "Z")

    @property
    def is_truncated(self) -> bool:
        """Whether its size differs from the recorded one: damaged, or still being copied."""
        recorded = self.card.get("archive_bytes", self.size_bytes)
        return bool(recorded != self.size_bytes)

    @property
    def home_id(self) -> str:
        """The id of its home; "" if unknown."""
        value = self.card.get("home_id")
        return value if isinstance(value, str) else ""

    @property
    def proved_at(self) -> str:
        """When a drill last restored it successfully, ISO UTC; "" if never."""
        value = self.card.get("proved_restorable_at")
        return value if isinstance(value, str) else ""

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""
        value = self.card.get("tags")
        tags = value if isinstance(value, list) else ()
        return tuple(tag for tag in tags if isinstance(tag, str))

    @property
    def engine(self) -> str:
        """The engine of its database."""
        return engine_of(self.card)

    @property
    def faults(self) -> tuple[str, ...]:
        """The properties of a good snapshot that it does not have, as far as recorded."""
        return tuple(f"not {name}" for name in PROPERTIES if self.card.get(name) is False)

    @property
    def is_good(self) -> bool:
        """Whether nothing recorded shows that it is not complete, sound and plausible."""
        return not self.faults

    @property
    def has_failed_drill(self) -> bool:
        """Whether its last drill failed."""
        drill = self.card.get("drill")
        return isinstance(drill, dict) and drill.get("outcome") == "failed"


def new_id(moment: datetime) -> str:
    """Return a new, unique id."""
    return f"{moment.astimezone(timezone.utc):{_MOMENT}}-{os.urandom(3).hex()}"


def archive_name(snapshot_id: str, *, is_encrypted: bool) -> str:
    """Return the file name of an archive."""
    return f"sagewai-{snapshot_id}.tar.zst" + (".age" if is_encrypted else "")


def tree_name(snapshot_id: str) -> str:
    """Return the name of a snapshot in a repository of an engine."""
    return f"sagewai-{snapshot_id}.{TREE}"


def is_archive_name(name: str) -> bool:
    """Return whether a file of this name is a snapshot."""
    return _NAME.fullmatch(name) is not None


def id_of(name: str) -> str:
    """Return the id in the name of an archive; "" for any other file name."""
    match = _NAME.fullmatch(name)
    return match["id"] if match else ""


def partial_path(directory: Path, name: str) -> Path:
    """Return the path that an archive is written to before its verification."""
    return directory / f".{name}.partial"


def scratch_path(directory: Path, moment: datetime) -> Path:
    """Return a unique path for a scratch directory."""
    return directory / f".sagewai-{new_id(moment)}.drill"


def staging_path(directory: Path, snapshot_id: str) -> Path:
    """Return the path of the directory for a run's database copies."""
    return directory / f".sagewai-{snapshot_id}.staging"


def list_snapshots(directory: Path) -> list[Snapshot]:
    """Return the snapshots of a directory, oldest first; a missing directory has none.

    They are ordered by sequence number, then by the UTC in their names: a clock that was set back
    does not reorder them, and file times are ignored. In a remote place, an archive without a
    metadata file is no snapshot: it is written last.

    Raises:
        RemoteError, PermissionDeniedError: A remote place cannot be read.
    """
    if is_remote(directory):
        return list_remote(directory)
    found = []
    own = (os.geteuid(), 0)
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = beneath.list_directory(directory)
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None or name.endswith(f".{TREE}"):
            continue
        path = directory / name
        try:
            status = beneath.status(path)
        except FileNotFoundError:
            continue  # removed by another run
        if stat.S_ISREG(status.st_mode):
            card, card_uid = read_owned_card(path)
            found.append(
                Snapshot(
                    id=match["id"],
                    path=path,
                    created_at=_moment(match["moment"]),
                    is_encrypted=match["encrypted"] is not None,
                    size_bytes=status.st_size,
                    card=card,
                    is_own=status.st_uid in own,
                    is_card_own=card_uid in own,
                )
            )
    return ordered(found)


def list_remote(
    place: RemotePath, *, suffix: str = "", without_card: bool = False
) -> list[Snapshot]:
    """Return the snapshots of a remote place, oldest first.

    Args:
        suffix: Of the names of metadata files, after `.json`; an archive that also has one without
            it does not count.
        without_card: Whether archives that lost theirs count: no upload and no prune left them.
    """
    found = {item.name: item for item in place.place.list()}

    def counts(name: str) -> bool:
        if f"{name}.json{suffix}" in found:
            return not (suffix and f"{name}.json" in found)
        return without_card and not {name + STARTED, f"{name}.json{REMOVED}"} & found.keys()

    archives = {name: match for name in found if (match := _NAME.fullmatch(name)) and counts(name)}
    cards = {name: f"{name}.json{suffix}" for name in archives}
    files = {name: found[card] for name, card in cards.items() if card in found}
    documents = read_remote_cards(place, files)
    return ordered(
        [
            Snapshot(
                id=match["id"],
                path=place / name,
                created_at=_moment(match["moment"]),
                is_encrypted=match["encrypted"] is not None,
                size_bytes=found[name].size_bytes,
                card=checked(documents.get(name, {})),
            )
            for name, match in archives.items()
        ]
    )


Confirm: TypeAlias = Callable[[Sequence["Snapshot"]], list["Snapshot"]]


def find_snapshot(
    directory: Path,
    name: str,
    home_ids: Iterable[str],
    confirm: Confirm = list,
    *,
    report_skipped: Callable[[Sequence["Snapshot"]], None] | None = None,
    or_newest: bool = False,
) -> Path:
    """Return the path of `latest`, an id, a unique prefix of one, `tree` or a path.

    `latest` is the newest snapshot that is complete, sound and plausible, as far as recorded.

    Args:
        confirm: Confirms the facts of snapshots, as `trust.confirm`.
        home_ids: Of the current home: `latest` is its latest snapshot. If it has none (the home is
            lost, or on another machine), `latest` is the latest of all, if all are of one home.
            Those from before it had an administrator are, if they have its master key.
        report_skipped: Receives those that are not good: the newer ones, and the chosen one.
        or_newest: `latest` is the newest one of all where no one is good.

    Raises:
        NotFoundError: No such snapshot, or none for `latest` that is good.
        UsageError: The name is ambiguous, or a pipe or device.
    """
    if is_remote(directory):
        name = name.removeprefix(f"{directory}/")
    elif "/" in name or name.endswith((".zst", ".age")):
        path = Path(os.path.realpath(Path(name).expanduser()))
        in_directory = directory / name
        if not beneath.exists(path) and beneath.exists(in_directory):
            path = in_directory
        if beneath.exists(path) and not (beneath.is_file(path) or beneath.is_directory(path)):
            # The end of an archive is read first, which a pipe cannot do.
            raise UsageError(
                f"snapshot {path}: not a file or directory",
                hint="... | sagewai-ops restore - --to DIR  # reads an archive from a pipe",
            )
        return path
    if name == TREE and not is_remote(directory) and beneath.is_directory(directory / TREE):
        return directory / TREE
    known = list_snapshots(directory)
    if name == "latest":
        own = _own_snapshots(directory, confirm(known), set(home_ids))
        if not own:
            raise NotFoundError(
                f"snapshot latest: not found in {directory}",
                hint="sagewai-ops backup\nor name the directory: --snapshots DIR",
            )
        is_any_good = any(item.is_good for item in own)
        chosen = own[-1] if or_newest and not is_any_good else _good(own, directory)[-1]
        skipped = own[own.index(chosen) + 1 :]
        if report_skipped:
            report_skipped([item for item in [chosen, *skipped] if not item.is_good])
        return chosen.path
    return match_id(known, name, directory).path


def match_id(snapshots: Iterable[Snapshot], name: str, directory: Path) -> Snapshot:
    """Return the snapshot with an id, a unique prefix of one, or the name of its archive.

    Args:
        directory: Of the snapshots, for the message.

    Raises:
        NotFoundError: No such snapshot.
        UsageError: The prefix is ambiguous.
    """
    matching = [item for item in snapshots if item.id.startswith(name) or item.path.name == name]
    if len(matching) == 1:
        return matching[0]
    hint = "sagewai-ops snapshots list"
    if matching:
        ids = f"{matching[0].id}, {matching[1].id}"
        raise UsageError(f"snapshot {name}: ambiguous, {len(matching)} ids: {ids}", hint=hint)
    raise NotFoundError(f"snapshot {name}: not found in {directory}", hint=hint)


def latest_two(
    directory: Path, home_ids: Iterable[str], confirm: Confirm = list
) -> tuple[Path, Path]:
    """Return the paths of the last two good snapshots of a home, the older one first.

    Args:
        home_ids, confirm: As for `find_snapshot`.

    Raises:
        NotFoundError: There are fewer than two.
        UsageError: They are of several homes, and none of this one.
    """
    own = _own_snapshots(directory, confirm(list_snapshots(directory)), set(home_ids))
    own = _good(own, directory) if len(own) > 1 else own
    if len(own) < 2:
        count = len(own) or "no"
        raise NotFoundError(
            f"snapshots of this home in {directory}: {count} found, two needed",
            hint="sagewai-ops backup\nor name the directory: --snapshots DIR",
        )
    return own[-2].path, own[-1].path


def sweep(directory: Path) -> list[str]:
    """Remove what crashed runs left, including scratch directories elsewhere; return the names."""
    removed = []
    for name in sorted(beneath.list_directory(directory)):
        link = directory / name
        if _PARTIAL.fullmatch(name) and beneath.is_link(link):
            with contextlib.suppress(PermissionError):  # of another user
                scratch = Path(beneath.read_link(link))
                if scratch.name == name and _is_dead(scratch):
                    remove_tree(scratch)
                    beneath.unlink(link)
                    removed.append(name)
    return sorted([*removed, *sweep_leftovers(directory, _PARTIAL)])


def _is_dead(scratch: Path) -> bool:
    """Return whether the scratch directory that a link names is missing or abandoned."""
    if not scratch.name.endswith(".drill"):
        return False
    return not os.path.lexists(scratch) or locks.is_abandoned(scratch)


def _own_snapshots(directory: Path, known: list[Snapshot], home_ids: set[str]) -> list[Snapshot]:
    """Return the snapshots of a home, or all if it has none and they are of one home.

    Those of other users are left out. One that is not confirmed counts: who opens it learns that
    the newest snapshot is not what it claims, and does not silently get an older one.
    """
    known = [snapshot for snapshot in known if not snapshot.is_foreign]
    own = [snapshot for snapshot in known if snapshot.home_id in home_ids]
    if own or not known:
        return own
    if len(_homes_of(known)) > 1:
        raise _several_homes(directory, "none of this one")
    return known


def _homes_of(known: Iterable[Snapshot]) -> set[str]:
    """Return the ids of homes, without the former one that a home had from its place alone."""
    keys: dict[str, set[str]] = {}
    for item in known:
        keys.setdefault(item.home_id, set()).add(str(item.card.get("key_fingerprint") or ""))
    keys.pop("", None)
    placed = {
        item.home_id
        for item in known
        if item.home_id
        == place_identity(str(item.card.get("host") or ""), str(item.card.get("home") or ""))
    }
    permanent = keys.keys() - placed
    if len(permanent) != 1:
        return set(keys)
    (home,) = permanent
    return {home} | {former for former in placed if not keys[former] <= keys[home] - {""}}


def require_single_home(
    directory: Path, known: Iterable[Snapshot], home_ids: Container[str]
) -> None:
    """Refuse `latest` where several homes back up to a directory from the same path and host name.

    Containers can have the same host name. The snapshots of a home that replaced another follow
    those of the other one; where ids alternate, both homes are in use.

    Args:
        known: In their order.
        home_ids: Of this path and host name.

    Raises:
        UsageError: They alternate.
    """
    ids = [item.home_id for item in known if item.home_id in home_ids]
    changes = [home_id for home_id, _group in itertools.groupby(ids)]
    if len(changes) > len(set(changes)):
        raise _several_homes(directory, "all from this path and host name")


def _several_homes(directory: Path, which: str) -> UsageError:
    return UsageError(
        f"snapshot latest: {directory} has snapshots of several homes, {which}",
        hint="sagewai-ops snapshots list  # then name one by its id",
    )


def describe_skipped(snapshots: Iterable[Snapshot]) -> list[str]:
    """Return one line for each snapshot that `latest` does not name because it is not good."""
    return [f"snapshot {item.id}: {', '.join(item.faults)}; not `latest`" for item in snapshots]


def _good(own: list[Snapshot], directory: Path) -> list[Snapshot]:
    """Return the good ones of a home's snapshots.

    Raises:
        NotFoundError: No one is good; the newest is named.
    """
    good = [item for item in own if item.is_good]
    if not good:
        newest = own[-1]
        raise NotFoundError(
            f"snapshot latest: none of {len(own)} in {directory} is complete, sound and "
            f"plausible; the newest is {newest.id}, {', '.join(newest.faults)}",
            hint=f"sagewai-ops snapshots show {newest.id}  # the reason; or name it: {newest.id}",
        )
    return good


def _moment(text: str) -> datetime:
    try:
        # strptime would take most of the time of a long list.
        year, month, day, hour, minute, second = (int(text[begin:end]) for begin, end in _DIGITS)
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        # Not a date: still a snapshot, ordered before all others.
        return datetime.min.replace(tzinfo=timezone.utc)


def ordered(found: list[Snapshot]) -> list[Snapshot]:
    """Sort by sequence; snapshots without a number are placed by the UTC in their names.

    Within a second they precede the numbered ones, so that removing one reorders no other. A copy
    under another name precedes the snapshot that it is a copy of.
    """
    places = [(item.created_at, item.sequence, item.id, item) for item in found]
    places.sort(key=itemgetter(0, 1, 2))
    numbered = [(number, not item.doubt, item) for _, number, _, item in places if number]
    numbered.sort(key=itemgetter(0, 1))
    following = iter(numbered)
    return [next(following)[2] if number else item for _, number, _, item in places]
