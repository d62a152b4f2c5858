"""Copy finished snapshots to another directory or remote place.

An archive is copied byte by byte; between archives and repositories of engines, snapshots are
converted (`conversion`). The bytes are hashed during the copy, compared with the hash in the
metadata file, and read back from the target. The metadata file is written last: before that, the
target has no new snapshot.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path

from sagewai_ops.archive.age import Decryption, Encryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.open import archive_digest, read_archive
from sagewai_ops.backup.conversion import SOURCE_HASH, convert_to_archive, convert_to_tree
from sagewai_ops.backup.create import check_directory, create_partial
from sagewai_ops.backup.repository import stored_tree
from sagewai_ops.backup.upload import announced, require_object, sweep_uploads
from sagewai_ops.errors import DamagedError, NotFoundError, OpsError, TargetBusyError, UsageError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs.free_space import require_free_bytes
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import Home
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import has_trees, is_remote, tree_store
from sagewai_ops.remote.read_back import BlockHashes, ReadBack, read_back
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.catalog import Snapshot, archive_name, list_snapshots, tree_name
from sagewai_ops.snapshots.chain import record_absent
from sagewai_ops.snapshots.mark import Mark, record_copy, write_mark
from sagewai_ops.snapshots.trash import list_trash
from sagewai_ops.snapshots.trust import Trust, confirm, ids_at_place, trust_of
from sagewai_ops.text import shell_word


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """The options of a copy.

    Attributes:
        newest: Copy so many of the newest snapshots of the home; None for all.
        allow_clear: Copy plain archives, or to a repository without encryption, to a remote place.
        amount: How much of each archive is read back from a remote place; from a directory, all.
        wait_seconds: For another run on a target directory.
        decryption: Of archives that are copied to a repository.
        encryption: Of archives that are made from snapshots of a repository; None for plain ones.
        init_repository: Create the target, a repository, if it does not exist.
    """

    newest: int | None = 1
    allow_clear: bool = False
    amount: ReadBack = field(default_factory=ReadBack)
    wait_seconds: float = 0.0
    decryption: Decryption | None = None
    encryption: Encryption | None = None
    init_repository: bool = False


@dataclass(frozen=True, slots=True)
class CopiedSnapshot:
    """A snapshot that was copied.

    Attributes:
        archive: In the target.
        read_back_bytes: How much of it was read back from there.
    """

    id: str
    archive: Path
    archive_bytes: int
    read_back_bytes: int


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy did.

    Attributes:
        source, target: Directories or remote places.
        present: Ids of the snapshots that the target had already.
        pruned: Ids of those in the trash of the target: they are not copied again.
        warnings: About the target.
    """

    source: Path
    target: Path
    copied: tuple[CopiedSnapshot, ...]
    present: tuple[str, ...]
    pruned: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def copy_snapshots(
    home: Home,
    source: Path,
    target: Path,
    options: CopyOptions,
    environment: Mapping[str, str],
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy the newest snapshots of a home to another place, oldest first.

    Args:
        source: A directory or remote place.
        target: Another one; a directory is created with mode 0700 if it is missing.
        environment: May contain a master key.
        progress: Called with `copy` and `verify` in bytes.

    Raises:
        NotFoundError: There is no such snapshot, or no such remote place.
        UsageError: Both are the same; a plain archive would be in a remote place, or in a remote
            repository without encryption.
        DamagedError: An archive differs from its hash; the target has no part of it.
        TargetBusyError: The target has another archive of this name.
        LockedError, NoSpaceError, PermissionDeniedError, RemoteError: It cannot be copied; the
            target has the snapshots that were copied before it.
    """
    if source == target:
        raise UsageError(f"{source}: source and target are the same")
    check_directory(home, target)
    warnings: tuple[str, ...] = ()
    if has_trees(target) and not dry_run:
        warnings = tree_store(target).prepare(
            create=options.init_repository, allow_clear=options.allow_clear
        )
    trust = trust_of(home, source, environment)
    known = list_snapshots(source)
    ids = ids_at_place(home, known, trust)
    own = [
        item
        for item in confirm(source, known, trust)
        if item.home_id in ids and not item.is_foreign and not item.doubt
    ]
    if not own:
        raise NotFoundError(
            f"snapshots of home {home.root}: none in {source}", hint="sagewai-ops backup"
        )
    chosen = own if options.newest is None else own[-options.newest :]
    wanted = {item.id for item in chosen}
    found = (item for item in list_snapshots(target) if item.id in wanted)
    confirmed = confirm(target, found, trust_of(home, target, environment))
    there = {item.id: item for item in confirmed}
    pruned = {item.id for item in list_trash(target)}
    missing = [item for item in chosen if item.id not in pruned and not _is_present(item, there)]
    for item in missing:
        _require_allowed(item, target, options)
        if item.id in there and not _lacks_card(item, there[item.id]):
            is_same = _has_same_archive(item, there[item.id])
            problem = "its metadata file is not authentic" if is_same else "exists and differs"
            raise TargetBusyError(
                f"{target / _name_in(item, target, options)}: {problem}; not overwritten",
                hint=f"sagewai-ops snapshots verify {item.id} --snapshots {shell_word(target)}",
            )
    copied = []
    for item in missing:
        path = target / _name_in(item, target, options)
        if dry_run:
            copied.append(CopiedSnapshot(item.id, path, item.size_bytes, item.size_bytes))
            continue
        with _in_form_of(target, item, options, trust, progress) as stored:
            count = _copy(home, stored, path, trust, options, progress)
        copied.append(CopiedSnapshot(item.id, path, stored.size_bytes, count))
        record_copy(home, target, item.id, count)
        _record(home, stored, target, {*there, *(entry.id for entry in copied)}, environment)
    present = tuple(item.id for item in chosen if item not in missing and item.id not in pruned)
    absent = tuple(item.id for item in chosen if item.id in pruned)
    return CopyReport(source, target, tuple(copied), present, absent, warnings)


def _is_present(item: Snapshot, there: dict[str, Snapshot]) -> bool:
    """Return whether the target has a snapshot: anyone can write a metadata file in a place."""
    other = there.get(item.id)
    if other is None or (item.is_confirmed and not other.is_confirmed and other.doubt):
        return False
    return _has_same_archive(item, other)


def _has_same_archive(item: Snapshot, other: Snapshot) -> bool:
    """Return whether size and hash are the same, as far as recorded."""
    if _is_tree(item) != _is_tree(other):
        return not other.is_truncated and bool(_hashes(item) & _hashes(other))
    return (
        not other.is_truncated
        and other.size_bytes == item.size_bytes
        and other.card.get("archive_sha256") == item.card.get("archive_sha256")
    )


def _lacks_card(item: Snapshot, other: Snapshot) -> bool:
    """Return whether a copy lacks only its metadata file, as after a full disk: it is copied again.

    Raises:
        OSError: The copy cannot be read.
    """
    if "archive_sha256" in other.card or other.size_bytes != item.size_bytes:
        return False
    if is_remote(other.path) or has_trees(other.path):
        return False
    return archive_digest(other.path) == item.card.get("archive_sha256")


def _is_tree(item: Snapshot) -> bool:
    return item.path.name == tree_name(item.id)


def _hashes(item: Snapshot) -> set[object]:
    """Return the hashes of a snapshot, and of the form that it was converted from."""
    return {item.card.get("archive_sha256"), item.card.get(SOURCE_HASH)} - {None}


def _name_in(item: Snapshot, target: Path, options: CopyOptions) -> str:
    """Return the name of a snapshot in a place."""
    if has_trees(target):
        return tree_name(item.id)
    if has_trees(item.path):
        return archive_name(item.id, is_encrypted=options.encryption is not None)
    return item.path.name


@contextlib.contextmanager
def _in_form_of(
    target: Path, item: Snapshot, options: CopyOptions, trust: Trust, progress: Progress | None
) -> Iterator[Snapshot]:
    """Return a snapshot as the target stores it: as it is, or converted for the block."""
    if has_trees(target):
        with convert_to_tree(item, target, options.decryption, trust, progress) as converted:
            yield converted
    elif has_trees(item.path):
        with convert_to_archive(item, options.encryption, trust, progress) as converted:
            yield converted
    else:
        yield item


def _require_allowed(item: Snapshot, target: Path, options: CopyOptions) -> None:
    if has_trees(target):
        return  # `prepare` has checked it
    is_plain = options.encryption is None if has_trees(item.path) else not item.is_encrypted
    if is_remote(target) and is_plain and not options.allow_clear:
        raise UsageError(
            f"snapshot {item.id}: not encrypted, and others can read a remote place",
            hint="sagewai-ops backup --recipient age1...  # or copy with --allow-clear",
        )


def _copy(
    home: Home,
    item: Snapshot,
    path: Path,
    trust: Trust,
    options: CopyOptions,
    progress: Progress | None,
) -> int:
    """Copy a snapshot and its metadata file; return how many bytes were read back."""
    if has_trees(path):
        with (
            stored_tree(
                *(path, item.path, item.size_bytes, options.amount),
                lambda read_bytes: _card(item, read_bytes, trust, path.name),
                progress,
                home_id=item.home_id,
            ) as (read_bytes, commit),
            uninterrupted(),
        ):
            commit()
        return read_bytes
    sent, digest = BlockHashes(), hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for piece in read_archive(item.path):
            sent.update(piece)
            digest.update(piece)
            if sent.size_bytes > item.size_bytes:
                break  # of a server that does not end
            if progress:
                progress("copy", sent.size_bytes, item.size_bytes)
            yield piece
        recorded = item.card.get("archive_sha256")
        if sent.size_bytes != item.size_bytes or recorded not in (None, digest.hexdigest()):
            raise DamagedError(
                f"{item.path}: hash differs from the recorded one; not copied",
                hint=f"sagewai-ops snapshots verify {item.id}"
                f" --snapshots {shell_word(item.path.parent)}",
            )

    count = byte_counter(progress, "verify", item.size_bytes)
    if is_remote(path):
        with announced(path, home):
            if not options.amount.is_none:
                sweep_uploads(path.parent, home)
            with path.store.upload(path.name, item.size_bytes) as upload:
                for piece in pieces():
                    upload.write(piece)
                upload.finish()
            done = read_back(path, sent, options.amount, count)
            with uninterrupted():
                path.store.put(cards.card_path(path).name, _card(item, done, trust), replace=True)
                require_object(path, options.amount)
        return done
    directory = path.parent
    atomic.make_directory(directory)
    with locks.sweep_guard(directory):
        catalog.sweep(directory)
    require_free_bytes(directory, item.size_bytes, option="TO")
    partial = catalog.partial_path(directory, path.name)
    with create_partial(partial) as stream:
        with translate_os_errors(partial):
            for piece in pieces():
                stream.write(piece)
            beneath.sync(stream.fileno())
        done = _compare(partial, sent, digest.digest(), count)
        with locks.exclusive(directory, wait_seconds=options.wait_seconds), uninterrupted():
            with translate_os_errors(path):
                beneath.rename(partial, path)
                beneath.sync_directory(directory)
            atomic.replace(cards.card_path(path), _card(item, None, trust))
    return done


def _compare(path: Path, sent: BlockHashes, expected: bytes, count: Callable[[int], None]) -> int:
    found = hashlib.sha256()
    for piece in read_archive(path):
        found.update(piece)
        count(len(piece))
    if found.digest() != expected:
        raise DamagedError(f"{path}: the disk returns other bytes than were written; removed")
    return sent.size_bytes


def _card(item: Snapshot, read_bytes: int | None, trust: Trust, name: str = "") -> bytes:
    """Return the metadata file of a copy: authenticated again, or unchanged without a key.

    Args:
        name: Of the copy; "" for that of the source.
    """
    named = {"archive": name} if name else {}
    card = {key: value for key, value in item.card.items() if key != "read_back"} | named
    if read_bytes is not None:
        card["read_back"] = {"bytes": read_bytes}
        if read_bytes < item.size_bytes:
            card.pop("verified_at", None)
    key: AuthenticationKey | None = trust.keys[0] if trust.keys else None
    if item.is_confirmed and key:
        return cards.encode_card(card, key)
    return cards.encode_unchanged({**item.card, **named})


def _record(
    home: Home, item: Snapshot, target: Path, there: Collection[str], environment: Mapping[str, str]
) -> None:
    """Record a copy: as the newest of its home there, and what it follows as not copied."""
    trust = trust_of(home, target, environment)
    previous = item.card.get("previous")
    before = previous.get("id") if isinstance(previous, dict) else None
    with contextlib.suppress(OpsError):  # the copy is complete without it
        # If the target had it, its absence is a finding, and not recorded.
        is_known = trust.mark and trust.mark.sequence >= item.sequence - 1
        if isinstance(before, str) and before not in there and item.sequence > 1 and not is_known:
            record_absent(target, {before: item.sequence - 1}, trust)
    mac, key = item.card.get("authentication"), item.card.get("key_fingerprint")
    if not (item.is_confirmed and isinstance(mac, str) and isinstance(key, str)):
        return
    if trust.mark and trust.mark.sequence >= item.sequence:
        return
    mark = Mark(item.sequence, item.id, mac, key, since=item.sequence)
    if item.is_good:
        mark = replace(mark, good_sequence=item.sequence, good_id=item.id)
    write_mark(home, target, mark, environment)
