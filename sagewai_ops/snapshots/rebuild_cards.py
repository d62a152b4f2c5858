"""Rebuild the metadata files of a directory from its archives.

Facts that only the metadata file has (drills, changed tags) are kept where it can be read. An
archive without one is verified first, so that `verified_at` is true. If an archive differs from its
recorded hash, it is reported and its metadata file does not change. In a remote place, an archive
without a metadata file becomes a snapshot only if all of it can be verified.
"""

import contextlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import EntryType
from sagewai_ops.archive.open import archive_digest, open_archive, size_of
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DamagedError, KeyMissingError, NotFoundError, SchemaAheadError
from sagewai_ops.fs import locks
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.authenticity import AUTHENTIC, FORGED, read_origin
from sagewai_ops.snapshots.catalog import Snapshot
from sagewai_ops.snapshots.omissions import Reason
from sagewai_ops.snapshots.quality import PROPERTIES
from sagewai_ops.snapshots.reference import content_of

_CARDS_OWN = ("drill", "proved_restorable_at", "tags")
_LOSSES = {reason.name.lower() for reason in Reason if reason.is_loss}


@dataclass(slots=True)
class RebuildReport:
    """The rebuilt metadata files.

    Attributes:
        written: Ids of archives whose metadata file is complete again.
        limited: Ids of archives that cannot be decrypted: theirs has only what the file shows.
        damaged: Id -> the damage of the archive, whose metadata file is unchanged.
    """

    written: list[str] = field(default_factory=list)
    limited: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)


def rebuild_cards(
    directory: Path,
    decryption: Decryption | None,
    *,
    keys: Sequence[AuthenticationKey] = (),
    wait_seconds: float = 0.0,
    progress: Progress | None = None,
) -> RebuildReport:
    """Rebuild the metadata file of every archive of a directory.

    Args:
        keys: Of the home; the first one authenticates the metadata files.
        progress: Reports `rebuild` in bytes of archives.

    Raises:
        LockedError: The directory is locked by another run.
        PermissionDeniedError, NoSpaceError, OpsError: A file cannot be read or written; each
            metadata file is old or new.
    """
    rebuilt = RebuildReport()
    known = rebuildable(directory)
    total = sum(snapshot.size_bytes for snapshot in known)
    before = 0

    def count(done: int) -> None:
        if progress:
            progress("rebuild", before + done, total)

    for snapshot in known:
        with contextlib.suppress(FileNotFoundError, NotFoundError):  # removed by another run
            _rebuild(snapshot, decryption, keys, wait_seconds, rebuilt, count)
        before += snapshot.size_bytes
    return rebuilt


def rebuildable(directory: Path) -> list[Snapshot]:
    """Return the archives whose metadata files can be rebuilt, oldest first.

    Raises:
        RemoteError, PermissionDeniedError: A remote place cannot be read.
    """
    if is_remote(directory):
        return catalog.list_remote(directory, without_card=True)
    return catalog.list_snapshots(directory)


def read_card_facts(reader: ArchiveReader, archive: Path) -> dict[str, Any]:
    """Return the facts of an open archive for its metadata file, without hash and results."""
    content = content_of(reader)
    sizes = array(
        "Q", (item.size_bytes for item in reader.manifest.entries if item.type is EntryType.FILE)
    )
    return {
        "archive": archive.name,
        "id": reader.header.id,
        **reader.header.facts,
        "archive_bytes": size_of(archive),
        "content_bytes": sum(sizes),
        "files": len(sizes) - 1,  # without snapshot.json
        "encrypted": archive.name.endswith(".age"),
        **recorded_properties(reader.manifest.facts),
        **recorded_check(reader.manifest.facts),
        "content": content.card_facts(is_encrypted=archive.name.endswith(".age")),
        **({"authentication": reader.mac.hex()} if reader.mac else {}),
    }


def recorded_check(found: Mapping[str, Any]) -> dict[str, str]:
    """Return when the database of the home was last checked whole, where a manifest records it."""
    at = (found.get("database") or {}).get("full_check_at")
    return {"full_check_at": at} if isinstance(at, str) and at else {}


def recorded_properties(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties that a manifest records, or those of a format without them."""
    if quality := found.get("quality"):
        return {
            **{name: quality[name] for name in PROPERTIES},
            **({"compared_with": quality["compared_with"]} if quality["compared_with"] else {}),
            **({"change_accepted": True} if quality["change_accepted"] else {}),
        }
    database = found.get("database")
    has_losses = any(item["reason"] in _LOSSES for item in found.get("left_out", ()))
    is_incomplete = has_losses or found.get("unstable") or found.get("keys", {}).get("unopened")
    is_sound = not database or (
        database["integrity"] == ["ok"] and not database["foreign_key_violations"]
    )
    return {"complete": not is_incomplete, "sound": is_sound}


def _rebuild(
    snapshot: Snapshot,
    decryption: Decryption | None,
    keys: Sequence[AuthenticationKey],
    wait_seconds: float,
    rebuilt: RebuildReport,
    count: Callable[[int], None],
) -> None:
    try:
        facts, is_limited, is_authentic = _facts_of_archive(snapshot, decryption, keys, count)
    except (DamagedError, SchemaAheadError) as error:
        rebuilt.damaged[snapshot.id] = error.message
        return
    if is_limited and is_remote(snapshot.path) and not snapshot.card:
        rebuilt.limited.append(snapshot.id)  # it may be a part of an upload
        return
    # Nothing confirms what an archive that cannot be decrypted seems to be.
    is_confirmed = not is_limited or cards.is_authentic(snapshot.card, keys)
    if is_remote(snapshot.path) and not is_limited:
        is_confirmed = is_authentic  # anyone may have written the archive
    _write(snapshot.path, facts, keys if is_confirmed else (), wait_seconds)
    (rebuilt.limited if is_limited else rebuilt.written).append(snapshot.id)


def _facts_of_archive(
    snapshot: Snapshot,
    decryption: Decryption | None,
    keys: Sequence[AuthenticationKey],
    count: Callable[[int], None],
) -> tuple[dict[str, Any], bool, bool]:
    """Return the facts of an archive, whether they are limited, and whether it is authentic.

    They are limited if it cannot be decrypted.

    Args:
        count: Receives the number of bytes read so far.
    """
    # What anyone may have written neither replaces the verification nor gets our HMAC.
    is_trusted = not keys or cards.is_authentic(snapshot.card, keys)
    card = snapshot.card if is_trusted else {}
    recorded, verified_at = (card.get(name) for name in ("archive_sha256", "verified_at"))
    needs_verification = recorded is None or verified_at is None
    # An archive that is hashed and verified is read twice.
    sha256 = archive_digest(
        snapshot.path, _summed(lambda done: count(done // 2 if needs_verification else done))
    )
    if recorded not in (None, sha256):
        raise DamagedError(f"{snapshot.path}: hash differs from the recorded one")
    try:
        with open_archive(snapshot.path, decryption) as reader:
            origin = read_origin(reader, snapshot.path, keys, card={})
            if origin.authenticity == FORGED:
                raise DamagedError(origin.words)
            facts = read_card_facts(reader, snapshot.path)
            if needs_verification:
                total = max(reader.content_bytes, 1)
                share = _summed(
                    lambda done: count(int(snapshot.size_bytes * (1 + done / total) / 2))
                )
                reader.verify(on_bytes=share)
                verified_at = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    except KeyMissingError:
        return {**_limited_facts(snapshot), "archive_sha256": sha256}, True, False
    is_authentic = origin.authenticity == AUTHENTIC
    return {**facts, "archive_sha256": sha256, "verified_at": verified_at}, False, is_authentic


def _write(
    archive: Path, facts: Mapping[str, Any], keys: Sequence[AuthenticationKey], wait_seconds: float
) -> None:
    with contextlib.ExitStack() as stack:
        if not is_remote(archive):
            stack.enter_context(locks.exclusive(archive.parent, wait_seconds=wait_seconds))
        size_of(archive)  # it may have been removed
        # Read it again: a drill may have written to it during the verification.
        old = cards.read_card(archive)
        if not keys and "mac" in old and _agrees(old, facts):
            return  # its HMAC is worth more than a new time
        is_kept = not keys or cards.is_authentic(old, keys)
        kept = {name: old[name] for name in _CARDS_OWN if name in old and is_kept}
        cards.write_card(archive, {**facts, **kept}, keys[0] if keys else None)


def _agrees(card: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return all(card.get(name) == facts[name] for name in facts.keys() - {"verified_at"})


def _limited_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return the facts of an archive that cannot be decrypted: recorded ones, or from its name."""
    return dict(snapshot.card) or {
        "archive": snapshot.path.name,
        "id": snapshot.id,
        "created_at": snapshot.created_text,
        "archive_bytes": snapshot.size_bytes,
        "encrypted": snapshot.is_encrypted,
    }


def _summed(report: Callable[[int], None]) -> Callable[[int], None]:
    """Return a callback that adds up bytes and reports their sum."""
    done = 0

    def add(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        report(done)

    return add
