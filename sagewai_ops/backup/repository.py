"""Create a snapshot in a repository of restic or borg.

The mirror of the home is updated and verified, the engine stores it, and what the engine returns is
compared with it. The card (metadata file) is the commit: it is stored last, and a tree without one
does not exist for lists. All of it happens while the home is locked.

Each start of an engine costs more than what a usual night changes. So the repository is listed
while the databases are copied, and the run that stores the card starts before its content counts.
"""

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sagewai_ops.archive.directory_reader import open_mirror
from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.reader import ArchiveReader, name_damaged
from sagewai_ops.archive.repository_reader import open_repository
from sagewai_ops.backup.mirror import update_mirror
from sagewai_ops.backup.recipients import has_plain_history
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.backup.upload import finish_despite_signals
from sagewai_ops.errors import DamagedError, OpsError, UsageError
from sagewai_ops.home.paths import Home
from sagewai_ops.process.threads import ThreadPool
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

_MOST_SAMPLED = 100  # files: each is named to the engine
_KILLED_AFTER = timedelta(days=1)  # far longer than a tree takes
_SOON = timedelta(hours=12)  # half of that: until then, no run removes what this one stores


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
        self._prepared: Future[tuple[str, ...]] = Future()
        self._warnings: tuple[str, ...] = ()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Check that the repository can be used, and remove what killed runs left."""
        with ThreadPool(1, thread_name_prefix="repository") as pool:
            self._prepared = pool.submit(self._prepare)
            if self._options.init_repository:
                self._prepared.result()  # a failure of the copies must not end it half created
            yield

    def _prepare(self) -> tuple[str, ...]:
        """Return warnings."""
        allow_clear = self._options.allow_clear or (
            self._options.is_automatic
            and has_plain_history(self._home, self._place, self._options.key_environment)
        )
        warnings = tree_store(self._place).prepare(
            create=self._options.init_repository, allow_clear=allow_clear
        )
        sweep_repository(self._place, home_ids(self._home))
        return warnings

    def configure(self, run: BackupRun) -> None:
        """Set number, predecessor and reference of the snapshot."""
        self._warnings = self._prepared.result()
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

        def content(read_bytes: int) -> bytes:
            return encode_card({**card, "read_back": {"bytes": read_bytes}}, run.key)

        with (
            stored_tree(
                *(path, tree, run.archive_bytes, self._options.read_back, content, self._progress),
                home_id=home_ids(self._home)[0],
                previous=previous,
            ) as (count, commit),
            finish_despite_signals(run.id),
        ):
            commit()
            run.mark(self._place)
            record_copy(self._home, self._place, run.id, count)
        return replace(report, read_back_bytes=count)


@contextlib.contextmanager
def stored_tree(
    path: RemotePath,
    tree: Path,
    size_bytes: int,
    amount: ReadBack,
    card: Callable[[int], bytes],
    progress: Progress | None = None,
    *,
    home_id: str,
    previous: str = "",
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Store a mirror in a repository, and compare what the engine returns, for the block.

    Args:
        path: Of the new snapshot.
        tree: The mirror; its name is `tree`.
        size_bytes: Of its files.
        card: Returns the card for the number of bytes that were read back.
        home_id, previous: As for `TreeStore.store_tree`.

    Yields:
        The number of bytes that were read back, and a function that stores the card: without a
        call of it there is no snapshot. It raises DamagedError if the tree was removed.

    Raises:
        DamagedError: It returns other bytes; the tree is forgotten.
        OpsError: As `TreeStore`; nothing of it is listed.
    """
    assert tree.name == TREE
    store, is_begun = tree_store(path), False
    started_at, started = datetime.now(timezone.utc), _seconds()

    def commit() -> None:
        nonlocal is_begun
        is_begun = True
        put()
        # A leftover is removed after a day by the clocks of those who list it.
        newest = max(item.modified_at for item in path.store.list())
        elapsed = timedelta(seconds=_seconds() - started)
        if max(elapsed, newest - started_at) > _SOON:
            require_stored(path)

    with open_mirror(tree) as source:
        digest = source.sha256
        chosen = _choose(source, amount)
        is_full = len(chosen) == sum(map(_is_file, source.manifest.entries))
        total = sum(chosen.values())
        count = size_bytes if is_full else total
        try:
            with store.begun_put(card_path(path).name, card(count)) as put:
                store.store_tree(
                    *(path.name, tree.parent, size_bytes, digest.hex()),
                    home_id=home_id,
                    previous=previous,
                )
                with name_damaged(path), open_repository(path, chosen) as reader:
                    _require_equal(path, reader, digest)
                    on_bytes = byte_counter(progress, "verify", total)
                    for _member in reader.members(
                        lambda entry: entry.path in chosen, on_bytes=on_bytes
                    ):
                        pass
                yield count, commit
        except BaseException:
            if not is_begun:
                with contextlib.suppress(OpsError):
                    store.discard(path.name)
            raise


def _seconds() -> float:
    """Return the seconds of a clock that also runs while the computer is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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
    tree_store(place).forget_partial(ids, _now_in(place) - _KILLED_AFTER)
    return left


def _now_in(place: RemotePath) -> datetime:
    """Return the time here, or that of what was stored last, if this clock is fast."""
    newest = max((item.modified_at for item in place.store.list()), default=None)
    return min(filter(None, (datetime.now(timezone.utc), newest)))


def _left_in(place: RemotePath, ids: Collection[str]) -> list[str]:
    known = {item.name for item in place.store.list()}
    now = _now_in(place)
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
