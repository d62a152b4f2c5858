"""The content of a snapshot, as `snapshots show` reports it: from manifest and metadata file."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import Entry
from sagewai_ops.archive.open import open_archive
from sagewai_ops.errors import DamagedError
from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.authenticity import Authenticity, require_origin
from sagewai_ops.snapshots.cards import read_card
from sagewai_ops.snapshots.database_check import DatabaseFacts
from sagewai_ops.snapshots.omissions import OmittedEntry
from sagewai_ops.snapshots.quality import QualityFacts
from sagewai_ops.snapshots.results import DrillRecord, drill_record
from sagewai_ops.snapshots.server_database import SQLITE, Engine, ServerFacts
from sagewai_ops.text import shell_word


@dataclass(frozen=True, slots=True)
class SnapshotMember:
    """One member of an archive."""

    path: str
    type: str
    mode: str
    size: int
    sha256: str | None
    target: str | None


@dataclass(frozen=True, slots=True)
class SnapshotContent:
    """What an archive states about itself: header, manifest and metadata file.

    Attributes:
        quality: Why it is not good, and with which snapshot it was compared; None in an older one.
        authenticity: `authentic` if every byte is as written, which only a full read shows.
        authenticity_reason: Why it is not authentic; "" if it is.
        engine: Of the database that Sagewai used.
        without_database: It was on a server, and is not in the snapshot.
        postgres: The database of that server.
    """

    id: str
    format: int
    members: int
    content_bytes: int
    database: DatabaseFacts | None
    keys: SealedReport | None
    left_out: tuple[OmittedEntry, ...] | None
    quality: QualityFacts | None
    unstable: tuple[str, ...] | None
    external: Mapping[str, str] | None
    followed: Mapping[str, str] | None
    outside_links: Mapping[str, str]
    verified_at: str | None
    proved_restorable_at: str | None
    drill: DrillRecord | None
    authenticity: Authenticity
    authenticity_reason: str
    sequence: int | None = None
    created_at: str = ""
    home: str = ""
    home_id: str = ""
    host: str = ""
    tool_version: str = ""
    python_version: str = ""
    application_version: str = ""
    key_custody: str = ""
    key_fingerprint: str = ""
    schema_level: str = ""
    tags: tuple[str, ...] = ()
    engine: Engine = SQLITE
    without_database: bool = False
    postgres: ServerFacts | None = None
    files: tuple[SnapshotMember, ...] | None = None


def read_content(
    path: Path,
    decryption: Decryption | None,
    keys: Sequence[AuthenticationKey],
    *,
    with_members: bool = False,
) -> SnapshotContent:
    """Read the content of a snapshot; of the archive only its first and last member.

    Args:
        keys: Show the origin of the snapshot.

    Raises:
        NotFoundError, KeyMissingError, DamagedError, SchemaAheadError: It cannot be read.
    """
    import msgspec

    card = read_card(path)
    with open_archive(path, decryption) as reader:
        header, entries = reader.header, reader.manifest.entries
        origin = require_origin(reader, path, keys)
    size_bytes, outside_links = 0, {}
    for entry in entries:
        size_bytes += entry.size_bytes
        if entry.is_outside:
            outside_links[entry.path] = entry.target
    facts = {
        **header.facts,
        **{
            name: reader.manifest.facts.get(name)
            for name in (
                *("database", "postgres", "keys", "left_out", "quality"),
                *("unstable", "external", "followed"),
            )
        },
        "id": header.id,
        "format": header.format_version,
        "members": len(entries),
        "content_bytes": size_bytes,
        "outside_links": outside_links,
        "verified_at": card.get("verified_at"),
        "proved_restorable_at": card.get("proved_restorable_at"),
        "drill": None,
        "authenticity": origin.authenticity,
        "authenticity_reason": origin.reason,
    }
    known = {field.name for field in fields(SnapshotContent)}
    known_facts = {name: value for name, value in facts.items() if name in known}
    try:
        content = msgspec.convert(known_facts, SnapshotContent)
    except msgspec.ValidationError as error:
        raise DamagedError(
            f"snapshot {path}: header or manifest malformed, {error}",
            hint=f"sagewai-ops snapshots verify {shell_word(path)}",
        ) from error
    return replace(
        content,
        drill=drill_record(card),
        files=tuple(map(_member, entries)) if with_members else None,
    )


def _member(entry: Entry) -> SnapshotMember:
    return SnapshotMember(
        path=entry.path,
        type=entry.type.value,
        mode=f"{entry.mode:04o}",
        size=entry.size_bytes,
        sha256=entry.sha256.hex() or None,
        target=entry.target or None,
    )
