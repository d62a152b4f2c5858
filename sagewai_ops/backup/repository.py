"""Create a snapshot in a repository of restic or borg.

The mirror of the home is updated and verified, the engine stores it, and what the engine returns is
compared with it. The card (metadata file) is the commit: it is stored last, and a tree without one
does not exist for lists. All of it happens while the home is locked.
"""

import contextlib
import random
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sagewai_ops.archive.directory_reader import open_mirror
from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.open import name_damaged
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.archive.repository_reader import open_repository
from sagewai_ops.backup.mirror import update_mirror
from sagewai_ops.backup.recipients import has_plain_history
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.errors import DamagedError, OpsError, UsageError
from sagewai_ops.home.paths import Home
from sagewai_ops.process.signals import describe_interruption, uninterrupted
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.remote.path import RemotePath, has_trees, tree_store
from sagewai_ops.remote.read_back import ReadBack
from sagewai_ops.remote.store import TREE
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.cards import card_path, encode_card
from sagewai_ops.snapshots.catalog import REMOVED
from sagewai_ops.snapshots.mark import record_copy
from sagewai_ops.snapshots.ownership import home_ids
from sagewai_ops.snapshots.reference import find_reference
from sagewai_ops.snapshots.trust import next_sequence, previous_snapshot, trust_of

SAMPLE = ReadBack(size_bytes=16 * 1024 * 1024)  # a night reads what a night changes, about
_MOST_SAMPLED = 100  # files: each is named to the engine
_KILLED_AFTER = timedelta(days=1)  # far longer than a tree takes


def store_snapshot(
    home: Home,
    place: RemotePath,
    directory: Path,
    options: BackupOptions,
    *,
    all_paths: bool = False,
    progress: Progress | None = None,
) -> BackupReport:
    """Create a snapshot of a home in a repository.

    Args:
        directory: Of the mirror.
        all_paths: As for `update_mirror`.
        progress: As for `create_snapshot`.

    Raises:
        UsageError: An option for archives only; the repository is remote and not encrypted.
        NotFoundError: The engine is not installed, or the repository does not exist.
        KeyMissingError: The password is missing or wrong.
        LockedError: The home or the repository is locked.
        NoSpaceError, RemoteError, PermissionDeniedError: It cannot be stored.
        DamagedError: The repository is damaged, or returns other bytes than were stored: the
            snapshot is forgotten. Or as for `update_mirror`.
    """
    if has_trees(directory):
        raise UsageError(f"{directory}: not a directory, which the mirror of the home needs")
    if options.custody != "sealed":  # which a mirror refuses
        options = replace(options, encryption=None)  # the engine encrypts
    destination = _Repository(home, place, options, progress)
    return update_mirror(
        home,
        directory,
        options,
        all_paths=all_paths,
        destination=destination,
        progress=progress,
    )


class _Repository:
    """A repository as the destination of a mirror."""

    def __init__(
        self, home: Home, place: RemotePath, options: BackupOptions, progress: Progress | None
    ) -> None:
        self._home = home
        self._place = place
        self._options = options
        self._progress = progress
        self._warnings: tuple[str, ...] = ()

    def begin(self) -> None:
        """Check that the repository can be used, and remove what killed runs left."""
        allow_clear = self._options.allow_clear or (
            self._options.is_automatic
            and has_plain_history(self._home, self._place, self._options.key_environment)
        )
        self._warnings = tree_store(self._place).prepare(
            create=self._options.init_repository, allow_clear=allow_clear
        )
        sweep_repository(self._place, home_ids(self._home))

    def configure(self, run: BackupRun) -> None:
        """Set number, predecessor and reference of the snapshot."""
        trust = trust_of(self._home, self._place, self._options.key_environment)
        run.sequence = max(run.sequence, next_sequence(self._place, trust))
        run.previous = previous_snapshot(self._place, trust) if run.key else None
        run.reference = run.reference or find_reference(self._home, self._place, trust)

    def store(
        self, run: BackupRun, tree: Path, previous: str, report: BackupReport
    ) -> BackupReport:
        """Store the mirror, compare it, then store its card."""
        path = self._place / catalog.tree_name(run.id)
        report = replace(report, path=path, format="directory", warned=self._warnings)
        card = run.card(report)
        amount = self._options.read_back
        count = store_tree(
            *(path, tree, run.archive_bytes, amount, self._progress),
            home_id=home_ids(self._home)[0],
            previous=previous,
        )
        card["read_back"] = {"bytes": count}
        with _finish_despite_signals(run.id):
            self._place.store.put(card_path(path).name, encode_card(card, run.key))
            require_stored(path)
            run.mark(self._place)
            record_copy(self._home, self._place, run.id, count)
        return replace(report, read_back_bytes=count)


def store_tree(
    path: RemotePath,
    tree: Path,
    size_bytes: int,
    amount: ReadBack,
    progress: Progress | None = None,
    *,
    home_id: str,
    previous: str = "",
) -> int:
    """Store a mirror in a repository, and compare what the engine returns.

    Args:
        path: Of the new snapshot; its card is not stored.
        tree: The mirror; its name is `tree`.
        size_bytes: Of its files.
        home_id, previous: As for `TreeStore.store_tree`.

    Returns:
        The number of bytes that were read back.

    Raises:
        DamagedError: It returns other bytes; the tree is forgotten.
        OpsError: As `TreeStore`; nothing of it is listed.
    """
    assert tree.name == TREE
    with open_mirror(tree) as source:
        digest = source.sha256
        try:
            tree_store(path).store_tree(
                *(path.name, tree.parent, size_bytes, digest.hex()),
                home_id=home_id,
                previous=previous,
            )
            chosen = _choose(source, amount)
            with name_damaged(path), open_repository(path, chosen) as reader:
                _require_equal(path, reader, digest)
                total = sum(chosen.values())
                count = byte_counter(progress, "verify", total)
                for _member in reader.members(lambda entry: entry.path in chosen, on_bytes=count):
                    pass
                is_full = len(chosen) == sum(map(_is_file, reader.manifest.entries))
        except BaseException:
            with contextlib.suppress(OpsError):
                tree_store(path).discard(path.name)
            raise
    return size_bytes if is_full else total


def require_stored(path: RemotePath) -> None:
    """Check that a snapshot is there once its card is: another run may have removed its tree.

    Raises:
        DamagedError: It is not.
        OpsError: As `TreeStore`.
    """
    if not tree_store(path).has_stored((path.name, card_path(path).name)):
        raise DamagedError(
            f"{path}: removed from the repository while it was stored",
            hint="sagewai-ops backup  # again",
        )


def sweep_repository(place: RemotePath, ids: Collection[str]) -> list[str]:
    """Forget trees without a card that killed runs left; return their names.

    Args:
        ids: Of the home: trees of others may be those of runs that continue.

    Raises:
        OpsError: As `TreeStore`.
    """
    left = _left_in(place, ids)
    if left:
        tree_store(place).refresh()
        left = _left_in(place, ids)
        tree_store(place).forget_all(left, ids)
    return left


def _left_in(place: RemotePath, ids: Collection[str]) -> list[str]:
    listed = place.store.list()
    known = {item.name for item in listed}
    # The clock here, or that of what was stored last, if this one is fast.
    newest = max((item.modified_at for item in listed), default=None)
    now = min(filter(None, (datetime.now(timezone.utc), newest)))
    return [
        item.name
        for item in tree_store(place).trees_of(ids)
        if catalog.is_archive_name(item.name)
        and f"{item.name}.json" not in known
        and f"{item.name}.json{REMOVED}" not in known
        and now - item.modified_at > _KILLED_AFTER
    ]


def _require_equal(path: RemotePath, reader: ArchiveReader, digest: bytes) -> None:
    if reader.sha256 != digest:
        raise DamagedError(f"{path}: the engine returns another manifest than was stored")


def _choose(reader: ArchiveReader, amount: ReadBack) -> dict[str, int]:
    """Choose members to read back at random, and return their sizes by path."""
    files = {entry.path: entry.size_bytes for entry in reader.manifest.entries if _is_file(entry)}
    if amount == ReadBack() or amount.is_none:
        return {} if amount.is_none else files
    share = amount.share
    if amount.size_bytes is not None:
        share = min(1.0, amount.size_bytes / max(sum(files.values()), 1))
    if share == 1.0:
        return files
    # A file is read whole or not at all: a large one is read in some nights, small ones in each.
    source = random.SystemRandom()
    chosen = [path for path in files if source.random() < share] or [source.choice([*files])]
    if len(chosen) > _MOST_SAMPLED:
        chosen = source.sample(chosen, _MOST_SAMPLED)
    return {path: files[path] for path in chosen}


def _is_file(entry: Entry) -> bool:
    return entry.type is EntryType.FILE


@contextlib.contextmanager
def _finish_despite_signals(snapshot_id: str) -> Iterator[None]:
    """Delay signals until the card is stored, and report that."""
    with uninterrupted():
        yield
        describe_interruption(f"snapshot {snapshot_id} is complete")
