"""Write the cards of a directory anew from its archives.

What only a card knows (drills, tags that were changed) is kept where the old one can be read. An
archive whose card is lost is read whole before it gets one, so a card always says what was proved;
one that is not what its card says is left as it is and named.
"""

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.manifest import EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DamagedError, KeyMissingError, NotFoundError, SchemaAheadError
from sagewai_ops.fs import locks
from sagewai_ops.progress import Progress
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.catalog import Snapshot
from sagewai_ops.snapshots.omissions import Reason

_BLOCK_BYTES = 1024 * 1024
_CARDS_OWN = ("drill", "proved_restorable_at", "tags")
_LOSSES = {reason.name.lower() for reason in Reason if reason.is_loss}


@dataclass(slots=True)
class RebuildReport:
    """What became of the cards.

    Attributes:
        written: Ids of archives whose card says all again.
        limited: Ids of those that nothing at hand decrypts: their card says what the file shows.
        damaged: Id -> what is wrong with the archive; its card was left as it is.
    """

    written: list[str] = field(default_factory=list)
    limited: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)


def rebuild_cards(
    directory: Path,
    decryption: Decryption | None,
    *,
    wait_seconds: float = 0.0,
    progress: Progress | None = None,
) -> RebuildReport:
    """Write the card of every archive of a directory anew.

    Args:
        decryption: Decrypts what is encrypted; None for nothing.
        progress: Told `rebuild` in bytes of archives.

    Raises:
        LockedError: Another run holds the directory.
        PermissionDeniedError, NoSpaceError, OpsError: The system refused; cards are old or new.
    """
    rebuilt = RebuildReport()
    known = catalog.list_snapshots(directory)
    total = sum(snapshot.size_bytes for snapshot in known)
    before = 0

    def count(done: int) -> None:
        if progress:
            progress("rebuild", before + done, total)

    for snapshot in known:
        with contextlib.suppress(FileNotFoundError, NotFoundError):  # removed meanwhile
            _rebuild(directory, snapshot, decryption, wait_seconds, rebuilt, count)
        before += snapshot.size_bytes
    return rebuilt


def read_card_facts(reader: ArchiveReader, archive: Path) -> dict[str, Any]:
    """Read what the card of an open archive says of it, but for its hash and what was proved."""
    found = reader.manifest.facts
    database = found.get("database")
    keys = found.get("keys")
    left_out = found.get("left_out")
    losses = [
        item
        for item in (left_out if isinstance(left_out, list) else ())
        if isinstance(item, dict) and item.get("reason") in _LOSSES
    ]
    unopened = keys.get("unopened") if isinstance(keys, dict) else ()
    is_sound = not isinstance(database, dict) or (
        database.get("integrity") == ["ok"] and not database.get("foreign_key_violations")
    )
    files = [entry for entry in reader.manifest.entries if entry.type is EntryType.FILE]
    return {
        "archive": archive.name,
        "id": reader.header.id,
        **reader.header.facts,
        "archive_bytes": archive.stat().st_size,
        "content_bytes": sum(entry.size_bytes for entry in files),
        "files": len(files) - 1,  # without snapshot.json
        "encrypted": archive.name.endswith(".age"),
        "complete": not (losses or found.get("unstable") or unopened),
        "sound": is_sound,
    }


def _rebuild(
    directory: Path,
    snapshot: Snapshot,
    decryption: Decryption | None,
    wait_seconds: float,
    rebuilt: RebuildReport,
    count: Callable[[int], None],
) -> None:
    try:
        facts, is_limited = _facts_of_archive(snapshot, decryption, count)
    except (DamagedError, SchemaAheadError) as error:
        rebuilt.damaged[snapshot.id] = error.message
        return
    _write(directory, snapshot.path, facts, wait_seconds)
    (rebuilt.limited if is_limited else rebuilt.written).append(snapshot.id)


def _facts_of_archive(
    snapshot: Snapshot, decryption: Decryption | None, count: Callable[[int], None]
) -> tuple[dict[str, Any], bool]:
    """Read what the card of an archive is to say, and whether that is all that can be known.

    Args:
        count: Told how many bytes of the archive are done.
    """
    recorded, proved = (snapshot.card.get(name) for name in ("archive_sha256", "verified_at"))
    is_read_again = recorded is None or proved is None
    # Of an archive that is read twice, each reading is half of the work.
    sha256 = _sha256(snapshot.path, lambda done: count(done // 2 if is_read_again else done))
    if recorded not in (None, sha256):
        raise DamagedError(f"{snapshot.path}: its checksum is not what its card says")
    try:
        with open_archive(snapshot.path, decryption) as reader:
            facts = read_card_facts(reader, snapshot.path)
            if is_read_again:
                _verify(reader, lambda share: count(int(snapshot.size_bytes * (1 + share) / 2)))
                proved = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    except KeyMissingError:
        return {**_facts_outside(snapshot), "archive_sha256": sha256}, True
    return {**facts, "archive_sha256": sha256, "verified_at": proved}, False


def _write(directory: Path, archive: Path, facts: Mapping[str, Any], wait_seconds: float) -> None:
    with locks.exclusive(directory, wait_seconds=wait_seconds):
        archive.stat()
        # Read again: a drill may have written to it meanwhile.
        old = cards.read_card(archive)
        kept = {name: old[name] for name in _CARDS_OWN if name in old}
        cards.write_card(archive, {**facts, **kept})


def _facts_outside(snapshot: Snapshot) -> dict[str, Any]:
    """Give what is known of an archive that stays shut: what its card says, else its name."""
    return dict(snapshot.card) or {
        "archive": snapshot.path.name,
        "id": snapshot.id,
        "created_at": snapshot.created_text,
        "archive_bytes": snapshot.size_bytes,
        "encrypted": snapshot.is_encrypted,
    }


def _verify(reader: ArchiveReader, count: Callable[[float], None]) -> None:
    """Compare every byte with the manifest; `count` is told the share of the content."""
    done = 0

    def read(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        count(done / max(reader.content_bytes, 1))

    reader.verify(on_bytes=read)


def _sha256(path: Path, count: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    done = 0
    with open(path, "rb", buffering=0) as stream:
        while piece := stream.read(_BLOCK_BYTES):
            digest.update(piece)
            done += len(piece)
            count(done)
    return digest.hexdigest()
