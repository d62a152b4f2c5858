"""Create a snapshot in a remote place: stream the archive, read it back, then write its card.

The card (metadata file) is the commit: an archive without one does not exist for lists. Before the
upload a small object names the home, so that a later run of the same home removes what a killed one
left.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from sagewai_ops.backup.recipients import with_encryption
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.errors import (
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs.free_space import require_free_bytes
from sagewai_ops.fs.tempdirs import locked_directory
from sagewai_ops.process.signals import describe_interruption, uninterrupted
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.remote.read_back import BlockHashes, ReadBack, read_back
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.cards import card_path, encode_card
from sagewai_ops.snapshots.mark import record_copy
from sagewai_ops.snapshots.ownership import home_ids
from sagewai_ops.snapshots.reference import find_reference
from sagewai_ops.snapshots.trust import Trust, next_sequence, previous_snapshot, trust_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagewai_ops.backup.report import BackupOptions, BackupReport
    from sagewai_ops.home.paths import Home
    from sagewai_ops.remote.path import RemotePath
    from sagewai_ops.remote.store import ObjectFacts, Upload

_KILLED_AFTER = timedelta(days=1)  # far longer than an upload takes
_MOST_STARTED_BYTES = 4096


def upload_snapshot(
    home: Home,
    place: RemotePath,
    work: Path,
    options: BackupOptions,
    *,
    progress: Progress | None = None,
) -> BackupReport:
    """Create a snapshot of a locked home in a remote place.

    Args:
        work: Where the databases are copied.
        progress: Called with `copy` in pages, `pack` and `verify` in bytes.

    Raises:
        UsageError: It would not be encrypted.
        NotFoundError: The place does not exist, or is not one of ours.
        RemoteError, PermissionDeniedError: The place cannot be used; nothing is left in it, or what
            a later run removes.
        DamagedError: The store returns other bytes than were sent; the archive is removed.
    """
    with place.place.listed_once():
        trust = trust_of(home, place, options.key_environment)
        with _write_only(options):
            options = with_encryption(home, place, options)
        require_encryption(place, options)
        run = BackupRun.start(
            home,
            options,
            _next_sequence(place, trust, options),
            work,
            previous=_previous(place, trust, options),
            reference=None if options.read_back.is_none else find_reference(home, place, trust),
            is_stored=False,
        )
    name = catalog.archive_name(run.id, is_encrypted=options.encryption is not None)
    path = place / name
    staging = catalog.staging_path(work, run.id)
    with locked_directory(staging):
        require_free_bytes(staging, run.scan.database_bytes, option="--work-dir DIR")
        with announced(path, home):
            removed = sweep_uploads(place, home) if not options.read_back.is_none else []
            sent = BlockHashes()
            with place.store.upload(name, run.scan.content_bytes) as upload:
                stream = cast("BinaryIO", _HashedUpload(upload, sent))
                run.write(stream, None, options.encryption, staging, progress)
                upload.finish()
            report = run.report(path, removed)
            read_bytes = read_back(
                path, sent, options.read_back, byte_counter(progress, "verify", sent.size_bytes)
            )
            card = {**run.card(report), "read_back": {"bytes": read_bytes}}
            if read_bytes < sent.size_bytes:
                card.pop("verified_at")
            with finish_despite_signals(run.id):
                content = encode_card(card, run.key)
                if not place.store.put(card_path(path).member, content):
                    raise TargetBusyError(f"{card_path(path)}: exists, and another run wrote it")
                require_object(path, options.read_back)
                run.mark(place)
                record_copy(home, place, run.id, read_bytes)
    return replace(report, read_back_bytes=read_bytes)


def require_encryption(place: RemotePath, options: BackupOptions) -> None:
    """Check that no plain archive is written to a remote place by accident.

    Raises:
        UsageError: It would be.
    """
    if options.encryption is None and not options.allow_clear:
        raise UsageError(
            f"{place}: the archive would not be encrypted, and others can read a remote place",
            hint="sagewai-ops backup --recipient age1...  # or --allow-clear",
        )


def require_object(path: RemotePath, amount: ReadBack) -> None:
    """Check that an archive still exists after its card was written.

    Raises:
        RemoteError: It does not; its card is removed.
        PermissionDeniedError: That is not allowed, though the archive was read.
    """
    try:
        if path.store.facts(path.name) is not None:
            return
    except PermissionDeniedError:
        if amount.is_none:
            return  # rights to write only
        raise
    path.store.delete(card_path(path).name)
    raise RemoteError(f"{path}: removed by another run or user during the upload")


def sweep_uploads(place: RemotePath, home: Home) -> list[str]:
    """Remove archives without a card that killed runs of this home left; return their names.

    The clock is that of the store: what it lists of our own run is the newest.

    Raises:
        RemoteError, PermissionDeniedError: The place cannot be read, or an object not deleted.
    """
    known = {item.name: item for item in place.store.list()}
    now = max((item.modified_at for item in known.values()), default=None)
    removed = []
    for item in known.values():
        name = item.name.removesuffix(catalog.STARTED)
        if name == item.name or not catalog.is_archive_name(name) or now is None:
            continue
        is_finished = f"{name}.json" in known or f"{name}.json{catalog.REMOVED}" in known
        if not is_finished and now - item.modified_at < _KILLED_AFTER:
            continue
        if _home_of(place, item) not in home_ids(home):
            continue
        if not is_finished and name in known:
            place.store.delete(name)
            removed.append(name)
        place.store.delete(item.name)
    return removed


class _HashedUpload:
    """An upload as the file that a run writes."""

    def __init__(self, upload: Upload, sent: BlockHashes) -> None:
        self._upload = upload
        self._sent = sent

    def write(self, data: bytes) -> int:
        self._sent.update(data)
        self._upload.write(data)
        return len(data)


@contextlib.contextmanager
def announced(path: RemotePath, home: Home) -> Iterator[None]:
    """Write the home of an upload for the block; at an exception, remove the archive.

    Where that is not possible either, the object stays for `sweep_uploads`.
    """
    store, name = path.store, path.name + catalog.STARTED
    facts = {"home_id": home_ids(home)[0]}
    store.put(name, json.dumps(facts).encode(), replace=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OpsError):
            card = card_path(path).name
            if store.facts(card) is None and store.facts(card + catalog.REMOVED) is None:
                store.delete(path.name)
            store.delete(name)
        raise
    with contextlib.suppress(OpsError):
        store.delete(name)


def _home_of(place: RemotePath, item: ObjectFacts) -> str:
    if item.size_bytes > _MOST_STARTED_BYTES:
        return ""
    try:
        document = json.loads(place.store.read(item.name, 0, item.size_bytes))
    except (ValueError, RecursionError, NotFoundError):
        return ""
    home_id = document.get("home_id") if isinstance(document, dict) else None
    return home_id if isinstance(home_id, str) else ""


@contextlib.contextmanager
def finish_despite_signals(snapshot_id: str) -> Iterator[None]:
    """Delay signals until the card is stored, and report that."""
    with uninterrupted():
        yield
        describe_interruption(f"snapshot {snapshot_id} is complete")


@contextlib.contextmanager
def _write_only(options: BackupOptions) -> Iterator[None]:
    """Tolerate that nothing can be read, where nothing is to be read back."""
    try:
        yield
    except PermissionDeniedError:
        if not options.read_back.is_none:
            raise


def _next_sequence(place: RemotePath, trust: Trust, options: BackupOptions) -> int:
    with _write_only(options):
        return next_sequence(place, trust)
    return (trust.mark.sequence if trust.mark else 0) + 1


def _previous(place: RemotePath, trust: Trust, options: BackupOptions) -> dict[str, str] | None:
    with _write_only(options):
        return previous_snapshot(place, trust)
    return None
