"""Confirm the facts of metadata files: those are advisory, archives are authoritative.

A metadata file is confirmed by its HMAC, or else by the header of an archive that is not encrypted.
Without a key of the home only its owner counts: a file of this user in a directory that no other
user can write. What is not confirmed is never counted, removed or reported as proved.
"""

import contextlib
import functools
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import Header
from sagewai_ops.archive.open import read_summary
from sagewai_ops.archive.validation import is_mac
from sagewai_ops.errors import OpsError
from sagewai_ops.fs.trust import is_trusted_directory
from sagewai_ops.home.paths import Home
from sagewai_ops.keys.authentication import authentication_keys
from sagewai_ops.keys.candidates import all_candidates
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots.cards import (
    REMOVED_BEGINNING,
    REMOVED_KIND,
    RESULTS,
    is_authentic,
    parse_card,
    parse_record,
)
from sagewai_ops.snapshots.catalog import Snapshot, list_snapshots, ordered
from sagewai_ops.snapshots.mark import Mark, former_keys, read_mark
from sagewai_ops.snapshots.ownership import home_ids

_MOST_SEQUENCE = 1 << 48  # the format allows 2^63; a larger claim is not one of a backup
UNCONFIRMED = "not confirmed: its metadata file is not authenticated"


@dataclass(frozen=True, slots=True)
class Trust:
    """What confirms the snapshots of a home.

    Attributes:
        keys: That authenticate them; empty if the home has no master key.
        home_ids: Of the home.
        home_id: The one of them for new snapshots.
        mark: The high-water mark of the home for the directory; None without one.
        since: The first sequence number that is authenticated; 0 if unknown.
    """

    keys: tuple[AuthenticationKey, ...] = ()
    home_ids: frozenset[str] = frozenset()
    home_id: str = ""
    mark: Mark | None = None
    since: int = 0


def trust_of(
    home: Home, directory: Path, environment: Mapping[str, str], *, key_file: Path | None = None
) -> Trust:
    """Return what confirms the snapshots of a home in a directory.

    Args:
        environment: May contain a master key; names the user's state directory.
        key_file: A key file of the caller.

    Raises:
        NotFoundError, PermissionDeniedError, KeyMissingError: About `key_file` only.
    """
    mark = read_mark(home, directory, environment)
    ids = home_ids(home)
    return Trust(
        keys=keys_of(home, environment, key_file=key_file),
        home_ids=frozenset(ids),
        home_id=ids[0],
        mark=mark,
        since=mark.since if mark else 0,
    )


def keys_of(
    home: Home, environment: Mapping[str, str], *, key_file: Path | None = None
) -> tuple[AuthenticationKey, ...]:
    """Return the keys that authenticate the snapshots of a home, that in use first.

    Raises:
        NotFoundError, PermissionDeniedError, KeyMissingError: About `key_file` only.
    """
    keys = authentication_keys(all_candidates(home, environment, key_file=key_file))
    known = {key.fingerprint for key in keys}
    former = (key for key in former_keys(home, keys) if key.fingerprint not in known)
    return (*keys, *former)


def find_genuine(
    home: Home, environment: Mapping[str, str], key_file: Path | None = None
) -> Callable[[str, bytes], bool]:
    """Return a function for name and content of a metadata file or record: whether it is authentic.

    The keys of the home are read at the first call.

    Args:
        environment, key_file: As for `trust_of`; a key file that cannot be read is left out.
    """

    @functools.cache
    def known() -> tuple[AuthenticationKey, ...]:
        with contextlib.suppress(OpsError):
            return keys_of(home, environment, key_file=key_file)
        return keys_of(home, environment)

    def is_genuine(name: str, content: bytes) -> bool:
        if name.startswith(REMOVED_BEGINNING):
            return is_authentic(parse_record(content), known(), REMOVED_KIND)
        return is_authentic(parse_card(content, name.partition(".json")[0]), known())

    return is_genuine


def ids_at_place(home: Home, snapshots: Iterable[Snapshot], trust: Trust) -> frozenset[str]:
    """Return the ids of a home, and without an administrator those that it had at this place.

    A home whose admin state is missing or damaged has no other id, and must still find the
    snapshots that contain that state. Others could claim the place: opening shows who wrote one.
    """
    if len(trust.home_ids) > 1:
        return trust.home_ids
    place = (str(home.root), socket.gethostname())
    found = {
        item.home_id
        for item in snapshots
        if item.home_id and item.is_own and (item.card.get("home"), item.card.get("host")) == place
    }
    return trust.home_ids | found


def next_sequence(directory: Path, trust: Trust) -> int:
    """Return the sequence number of the next snapshot in a directory."""
    newest = trust.mark.sequence if trust.mark else 0
    claims = sorted(
        (item for item in list_snapshots(directory) if item.sequence < _MOST_SEQUENCE),
        key=lambda item: -item.sequence,
    )
    # Usually the first is confirmed: no other is examined.
    for item in claims:
        if item.sequence <= newest:
            break
        (confirmed,) = confirm(directory, [item], trust)
        if not confirmed.doubt and _is_counted(directory, confirmed, trust):
            newest = max(newest, confirmed.sequence)
    return newest + 1


def _is_counted(directory: Path, snapshot: Snapshot, trust: Trust) -> bool:
    """Return whether the number of a snapshot counts: in a remote place, anyone may write one."""
    if not is_remote(directory):
        return snapshot.sequence < _MOST_SEQUENCE
    is_own = snapshot.home_id in trust.home_ids and snapshot.sequence < _MOST_SEQUENCE
    return is_own and (snapshot.is_confirmed or not trust.keys)


def previous_snapshot(directory: Path, trust: Trust) -> dict[str, str] | None:
    """Return `id` and `mac` of the newest snapshot of the home; None if unknown."""
    if trust.mark:
        return {"id": trust.mark.id, "mac": trust.mark.mac}
    for item in sorted(list_snapshots(directory), key=lambda item: -item.sequence):
        if item.home_id in trust.home_ids:
            (confirmed,) = confirm(directory, [item], trust)
            mac = confirmed.card.get("authentication")
            if confirmed.is_confirmed and isinstance(mac, str) and is_mac(mac):
                return {"id": item.id, "mac": mac}
    return None


def confirm(
    directory: Path, snapshots: Iterable[Snapshot], trust: Trust, *, reads_archives: bool = True
) -> list[Snapshot]:
    """Return the snapshots of a directory with confirmed facts, oldest first.

    A `doubt` is the reason why a snapshot is not confirmed. It keeps the facts that it claims,
    unless another user owns it.

    Args:
        reads_archives: Confirm by headers what no HMAC confirms.
    """
    is_private = not is_remote(directory) and is_trusted_directory(directory)
    known = [
        (item, item.card.get("id") == item.id and is_authentic(item.card, trust.keys))
        for item in snapshots
    ]
    since = trust.since
    if not since:
        numbers = (item.sequence for item, is_confirmed in known if is_confirmed)
        since = min(filter(None, numbers), default=0)
    trust = replace(trust, since=since)
    return ordered(
        [
            replace(item, is_confirmed=True)
            if is_confirmed
            else _confirm_otherwise(item, trust, is_private=is_private, reads=reads_archives)
            for item, is_confirmed in known
        ]
    )


def _confirm_otherwise(
    snapshot: Snapshot, trust: Trust, *, is_private: bool, reads: bool
) -> Snapshot:
    """Confirm a snapshot whose metadata file has no valid HMAC."""
    if not snapshot.is_own:
        words = "owned by another user, and not authenticated"
        return replace(snapshot, card={}, doubt=words, is_foreign=True)
    card = snapshot.card
    is_card_trusted = is_private and snapshot.is_card_own
    if snapshot.is_encrypted or not reads:
        doubt = "" if is_card_trusted else "others can write its directory"
        if _should_be_authentic(card, trust):
            doubt = UNCONFIRMED
        return _with_facts(snapshot, card, doubt)
    try:
        summary = read_summary(snapshot.path)
    except Exception:  # noqa: BLE001 - an archive of anyone, which no list may stop at
        return replace(snapshot, doubt="its header is not readable")
    header = summary.header
    if header.id != snapshot.id:
        return replace(snapshot, card=_facts(header), doubt=f"its content is snapshot {header.id}")
    facts = {**card, **_facts(header)}
    is_authentic = bool(summary.mac) and any(map(summary.is_authentic, trust.keys))
    if is_authentic or not is_card_trusted or _should_be_authentic(facts, trust):
        for name in RESULTS:
            facts.pop(name, None)
    is_doubtful = not is_authentic and _should_be_authentic(facts, trust)
    return replace(snapshot, card=facts, doubt="not authenticated" if is_doubtful else "")


def _with_facts(snapshot: Snapshot, card: Mapping[str, Any], doubt: str) -> Snapshot:
    if not doubt:
        return snapshot
    kept = {name: value for name, value in card.items() if name not in RESULTS}
    return replace(snapshot, card=kept, doubt=doubt)


def _should_be_authentic(facts: Mapping[str, Any], trust: Trust) -> bool:
    """Return whether the home authenticated its snapshots when this one was created."""
    return bool(
        trust.keys
        and trust.since
        and facts.get("home_id") in trust.home_ids
        and facts.get("sequence", 0) >= trust.since
    )


def _facts(header: Header) -> dict[str, Any]:
    return {"id": header.id, **header.facts}
