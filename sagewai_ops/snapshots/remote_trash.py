"""The trash of a remote place: a removed snapshot has its metadata file under another name.

A store cannot rename, and an archive may be large, so it stays where it is; an archive without a
metadata file does not exist for lists. A crash between writing one name and deleting the other
leaves both, and the snapshot counts as not removed.
"""

import contextlib
from collections.abc import Iterable
from datetime import timezone

from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import RemotePath, has_trees, tree_store
from sagewai_ops.remote.store import Deletion, HasRetention, Store
from sagewai_ops.snapshots.cards import card_path
from sagewai_ops.snapshots.catalog import REMOVED, Snapshot, id_of, list_remote


def list_trash(place: RemotePath) -> list[Snapshot]:
    """Return the removed snapshots, oldest first.

    Raises:
        RemoteError, PermissionDeniedError: The place cannot be read.
    """
    return list_remote(place, suffix=REMOVED)


@dataclass(frozen=True, slots=True)
class HiddenSnapshot:
    """A snapshot of which a store keeps what was deleted.

    Attributes:
        locked_until: When an object lock ends, ISO UTC; None without one, or if it is unknown.
    """

    id: str
    locked_until: str | None


def move_to_trash(snapshots: Iterable[Snapshot]) -> tuple[HiddenSnapshot, ...]:
    """Remove snapshots from the list of their place.

    Returns:
        Those whose metadata file the store keeps, hidden.

    Raises:
        RemoteError, PermissionDeniedError: A metadata file cannot be written or deleted.
    """
    return tuple(filter(None, (_rename(snapshot, "", REMOVED) for snapshot in snapshots)))


def undelete(snapshots: Iterable[Snapshot]) -> None:
    """Return removed snapshots to the list of their place.

    Raises:
        RemoteError, PermissionDeniedError: A metadata file cannot be written or deleted.
    """
    for snapshot in snapshots:
        _rename(snapshot, REMOVED, "")


def purge(place: RemotePath, snapshots: Iterable[Snapshot]) -> tuple[HiddenSnapshot, ...]:
    """Delete removed snapshots, and the metadata files that a crash left of earlier ones.

    Returns:
        Those that the store keeps, hidden.

    Raises:
        RemoteError, PermissionDeniedError: An object cannot be deleted.
    """
    store = place.store
    if has_trees(place):
        tree_store(place).refresh()
    # One may have been undeleted by another run since it was listed.
    still = (item for item in snapshots if store.facts(f"{item.path.name}.json") is None)
    if has_trees(place):
        chosen = [name for item in still for name in (item.path.name, _removed_name(item))]
        tree_store(place).forget_all(chosen)  # each run of an engine takes a second
        return ()
    hidden = tuple(filter(None, (_delete(store, item, item.path.name) for item in still)))
    names = {item.name for item in store.list()}
    for name in names:
        archive = name.removesuffix(f".json{REMOVED}")
        if archive != name and id_of(archive) and archive not in names:
            store.delete(name)
    return hidden


def _removed_name(snapshot: Snapshot) -> str:
    return f"{card_path(snapshot.path).name}{REMOVED}"


def _delete(store: Store, snapshot: Snapshot, name: str) -> HiddenSnapshot | None:
    """Delete an object of a snapshot; return the snapshot if that only hides it."""
    until = store.retained_until(name) if isinstance(store, HasRetention) else None
    if store.delete(name) is not Deletion.HIDDEN:
        return None
    text = None
    with contextlib.suppress(OverflowError):  # what a server states may be no date in UTC
        text = f"{until.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}" if until else None
    return HiddenSnapshot(snapshot.id, text)


def _rename(snapshot: Snapshot, old: str, new: str) -> HiddenSnapshot | None:
    """Write a metadata file under its new name, then delete the old one."""
    card = card_path(snapshot.path)
    assert isinstance(card, RemotePath)
    facts = card.store.facts(card.name + old)
    if facts is None:
        return None  # by another run
    content = card.store.read(card.name + old, 0, facts.size_bytes)
    card.store.put(card.name + new, content, replace=True)
    return _delete(card.store, snapshot, card.name + old)
