"""`snapshots verify --chain`: each snapshot names the previous one, so a removed one leaves a gap.

A snapshot that retention removed is missing too, which is no finding: a prune records what it
removes in a file of the directory, with an HMAC. A writer of the directory who has no key can
neither remove a snapshot nor replace it by another without leaving a gap here.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey, previous_id, previous_mac
from sagewai_ops.archive.manifest import PLAIN_FORMAT_VERSION, Header
from sagewai_ops.archive.open import open_archive, read_summary
from sagewai_ops.errors import DamagedError, KeyMissingError, OpsError
from sagewai_ops.fs import beneath
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots import trash
from sagewai_ops.snapshots.cards import (
    REMOVED_BEGINNING,
    REMOVED_KIND,
    is_authentic,
    parse_record,
    write_record,
)
from sagewai_ops.snapshots.catalog import Snapshot, list_snapshots
from sagewai_ops.snapshots.trust import Trust, confirm

SOURCE_MAC = "source_authentication"  # of a metadata file: the HMAC of what was converted
_MOST_REMOVED = 1000
_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChainFinding:
    """A snapshot that is missing, replaced or not authentic."""

    snapshot: str
    problem: str


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """The chain of a home's snapshots in a directory.

    Attributes:
        authentic: Ids of the snapshots in the chain, oldest first.
        pruned: Ids that snapshots name as their previous one and that a prune removed.
        unknown: Ids of snapshots that cannot be decrypted, with a metadata file that is not
            authenticated.
        not_authenticated: Ids of snapshots without authentication, older than the chain.
    """

    folder: Path
    authentic: tuple[str, ...]
    pruned: tuple[str, ...]
    unknown: tuple[str, ...]
    not_authenticated: tuple[str, ...]
    findings: tuple[ChainFinding, ...]


@dataclass(frozen=True, slots=True)
class _Link:
    """A snapshot in the chain; the HMACs are in hex.

    Attributes:
        source_mac: That of the form that it was converted from; "" if it was not.
    """

    id: str
    sequence: int
    mac: str
    previous_id: str
    previous_mac: str
    source_mac: str = ""


def verify_chain(directory: Path, trust: Trust, decryption: Decryption | None) -> VerifiedChain:
    """Follow the chain of a home's snapshots, those in the trash included.

    An encrypted archive that cannot be decrypted is represented by its authenticated metadata file.

    Raises:
        KeyMissingError: The home has no key.
    """
    if not trust.keys:
        raise KeyMissingError(
            f"snapshots in {directory}: no master key available to authenticate them",
            hint="sagewai-ops snapshots verify --chain --extra-key FILE",
        )
    known = confirm(directory, list_snapshots(directory), trust)
    trashed = confirm(trash.trash_path(directory), trash.list_trash(directory), trust)
    own = [
        item
        for item in (*known, *trashed)
        if item.home_id in trust.home_ids and not item.is_foreign
    ]
    links: list[_Link] = []
    unknown: list[str] = []
    plain: list[Snapshot] = []
    findings: list[ChainFinding] = []
    for item in own:
        try:
            link = _read_link(item, trust.keys, decryption)
        except KeyMissingError:
            unknown.append(item.id)
        except OpsError as error:
            findings.append(ChainFinding(item.id, error.message))
        else:
            if link:
                links.append(link)
            else:
                plain.append(item)
    links.sort(key=lambda link: link.sequence)
    first = links[0].sequence if links else 0
    findings += (
        ChainFinding(item.id, "not authenticated, and newer than the first authenticated one")
        for item in plain
        if first and item.sequence > first
    )
    removed = read_removed(directory, trust)
    pruned: list[str] = []
    findings += _follow(links, {*removed}, {*unknown}, pruned)
    findings += _compare_mark(links, unknown, trust)
    return VerifiedChain(
        folder=directory,
        authentic=tuple(link.id for link in links),
        pruned=tuple(pruned),
        unknown=tuple(unknown),
        not_authenticated=tuple(item.id for item in plain if not first or item.sequence <= first),
        findings=tuple(findings),
    )


def record_removed(directory: Path, snapshots: Iterable[Snapshot], trust: Trust) -> None:
    """Record that a prune removes these snapshots; without a key there is no record.

    Raises:
        OpsError: It cannot be written.
    """
    record_absent(directory, {item.id: item.sequence for item in snapshots}, trust)


def record_absent(directory: Path, new: Mapping[str, int], trust: Trust) -> None:
    """Record that snapshots are not in a directory, by id with their sequence numbers.

    Raises:
        OpsError: It cannot be written.
    """
    if not trust.keys or not new:
        return
    removed = sorted({**read_removed(directory, trust), **new}.items())[-_MOST_REMOVED:]
    document = {"version": 1, "removed": dict(removed)}
    document["mac"] = trust.keys[0].record_mac(REMOVED_KIND, document)
    content = json.dumps(document, indent=1).encode() + b"\n"
    write_record(_record_path(directory, trust), content)


def read_removed(directory: Path, trust: Trust) -> Mapping[str, int]:
    """Return id and sequence of what prunes removed; {} if no key authenticates the record."""
    try:
        document = parse_record(_read_record(_record_path(directory, trust)))
    except OSError:
        return {}
    if not is_authentic(document, trust.keys, REMOVED_KIND):
        return {}
    removed: dict[str, int] = document["removed"]
    return removed


def _read_record(path: Path) -> bytes:
    if is_remote(path):
        facts = path.store.facts(path.member)
        size_bytes = min(facts.size_bytes, _MOST_BYTES) if facts else 0
        return path.store.read(path.member, 0, size_bytes) if size_bytes else b""
    with open(beneath.open_file(os.path.realpath(path)), "rb", buffering=0) as stream:
        return stream.read(_MOST_BYTES)


def _record_path(directory: Path, trust: Trust) -> Path:
    return directory / f"{REMOVED_BEGINNING}{trust.home_id}.json"


def _read_link(
    item: Snapshot, keys: Sequence[AuthenticationKey], decryption: Decryption | None
) -> _Link | None:
    """Return a snapshot as a link of the chain; None if its format has no authentication.

    Raises:
        KeyMissingError: Neither the archive nor its metadata file can be used.
        DamagedError, OpsError: It is forged or damaged.
    """
    if not item.is_encrypted:
        with _os_errors(item):
            summary = read_summary(item.path)
        return _link_of(
            item, summary.header, summary.mac, is_authentic=any(map(summary.is_authentic, keys))
        )
    try:
        with open_archive(item.path, decryption) as reader:
            is_authentic = any(map(reader.is_authentic, keys))
            return _link_of(item, reader.header, reader.mac, is_authentic=is_authentic)
    except KeyMissingError:
        if not item.is_confirmed:
            raise
    card, found = item.card, item.card.get("previous")
    previous = found if isinstance(found, dict) else {}
    return _Link(
        item.id,
        item.sequence,
        str(card.get("authentication", "")),
        str(previous.get("id", "")),
        str(previous.get("mac", "")),
        _source_mac(item),
    )


def _link_of(item: Snapshot, header: Header, mac: bytes, *, is_authentic: bool) -> _Link | None:
    if header.id != item.id:
        raise DamagedError(f"forged, its content is snapshot {header.id}")
    if header.format_version == PLAIN_FORMAT_VERSION:
        return None
    if not is_authentic:
        raise DamagedError("not authentic under any available key")
    previous = previous_id(header)
    sequence = header.facts.get("sequence", 0)
    previous_hex = previous_mac(header).hex() if previous else ""
    return _Link(header.id, sequence, mac.hex(), previous, previous_hex, _source_mac(item))


def _source_mac(item: Snapshot) -> str:
    return str(item.card.get(SOURCE_MAC, "")) if item.is_confirmed else ""


def _follow(
    links: Sequence[_Link], removed: set[str], unknown: set[str], pruned: list[str]
) -> Iterator[ChainFinding]:
    by_id = {link.id: link for link in links}
    for number, link in enumerate(links):
        before = by_id.get(link.previous_id)
        if before:
            if link.previous_mac not in (before.mac, before.source_mac):
                words = f"replaced: snapshot {link.id} followed another one of this id"
                yield ChainFinding(before.id, words)
        elif link.previous_id in removed:
            pruned.append(link.previous_id)
        elif link.previous_id and link.previous_id not in unknown:
            words = f"missing, and no prune removed it: snapshot {link.id} followed it"
            yield ChainFinding(link.previous_id, words)
        elif not link.previous_id and number:
            yield ChainFinding(link.id, "names no previous snapshot, though there is one")


def _compare_mark(
    links: Sequence[_Link], unknown: Sequence[str], trust: Trust
) -> Iterator[ChainFinding]:
    mark = trust.mark
    if mark is None or mark.id in unknown:
        return
    found = next((link for link in links if link.id == mark.id), None)
    if found is None:
        yield ChainFinding(mark.id, f"missing: sequence {mark.sequence} was the newest")
    elif found.mac != mark.mac:
        yield ChainFinding(mark.id, "replaced: it is not the one that was created")


@contextlib.contextmanager
def _os_errors(item: Snapshot) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OpsError(f"{item.path}: {error.strerror}") from error
