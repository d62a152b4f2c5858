"""The trash of a remote place: a removed snapshot has its metadata file under another name.

A store cannot rename, and an archive may be large, so it stays where it is; an archive without a
metadata file does not exist for lists. A crash between writing one name and deleting the other
leaves both, and the snapshot counts as not removed.
"""

from collections.abc import Iterable

from sagewai_ops.remote.path import RemotePath
from sagewai_ops.remote.store import Deletion
from sagewai_ops.snapshots.cards import card_path
from sagewai_ops.snapshots.catalog import Snapshot, id_of, list_remote

_SUFFIX = ".removed"  # after the name of a metadata file


def list_trash(place: RemotePath) -> list[Snapshot]:
    """Return the removed snapshots, oldest first.

    Raises:
        RemoteError, PermissionDeniedError: The place cannot be read.
    """
    return list_remote(place, suffix=_SUFFIX)


def move_to_trash(snapshots: Iterable[Snapshot]) -> tuple[str, ...]:
    """Remove snapshots from the list of their place.

    Returns:
        The ids of those whose metadata file the store keeps, hidden.

    Raises:
        RemoteError, PermissionDeniedError: A metadata file cannot be written or deleted.
    """
    return tuple(
        snapshot.id for snapshot in snapshots if _rename(snapshot, "", _SUFFIX) is Deletion.HIDDEN
    )


def undelete(snapshots: Iterable[Snapshot]) -> None:
    """Return removed snapshots to the list of their place.

    Raises:
        RemoteError, PermissionDeniedError: A metadata file cannot be written or deleted.
    """
    for snapshot in snapshots:
        _rename(snapshot, _SUFFIX, "")


def purge(place: RemotePath, snapshots: Iterable[Snapshot]) -> tuple[str, ...]:
    """Delete removed snapshots, and the metadata files that a crash left of earlier ones.

    Returns:
        The ids of those that the store keeps, hidden.

    Raises:
        RemoteError, PermissionDeniedError: An object cannot be deleted.
    """
    store = place.store
    hidden = tuple(item.id for item in snapshots if store.delete(item.path.name) is Deletion.HIDDEN)
    names = {item.name for item in store.list()}
    for name in names:
        archive = name.removesuffix(f".json{_SUFFIX}")
        if archive != name and id_of(archive) and archive not in names:
            store.delete(name)
    return hidden


def _rename(snapshot: Snapshot, old: str, new: str) -> Deletion:
    """Write a metadata file under its new name, then delete the old one."""
    card = card_path(snapshot.path)
    assert isinstance(card, RemotePath)
    facts = card.store.facts(card.name + old)
    if facts is None:
        return Deletion.DELETED  # by another run
    content = card.store.read(card.name + old, 0, facts.size_bytes)
    card.store.put(card.name + new, content, replace=True)
    return card.store.delete(card.name + old)
