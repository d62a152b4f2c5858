"""The home that a snapshot belongs to: no home prunes the snapshots of another."""

import itertools
import socket
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from sagewai_ops.home.paths import Home
from sagewai_ops.home.state_files import identity_of
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.catalog import Snapshot

NO_DATE = datetime.min.replace(tzinfo=timezone.utc)  # of a snapshot whose name has no valid date
_UNKNOWN_HOME = "its metadata file does not name its home"


@dataclass(frozen=True, slots=True)
class Owner:
    """The home whose snapshots may be removed.

    Attributes:
        ids: All ids of the home.
        home: Its path.
        host: Its machine; "" if the machine does not matter.
        all_paths: Whether it owns snapshots with its id from other paths and machines.
    """

    ids: frozenset[str]
    home: str
    host: str
    all_paths: bool = False


def home_ids(home: Home) -> tuple[str, ...]:
    """Return the ids in the snapshots of a home, the one for new snapshots first."""
    return identity_of(home, socket.gethostname())


def owner_of(home: Home, *, all_paths: bool = False) -> Owner:
    """Return the owner of this home's snapshots."""
    return Owner(frozenset(home_ids(home)), str(home.root), socket.gethostname(), all_paths)


def reason_not_owned(snapshot: Snapshot, owner: Owner) -> str:
    """Return why the owner may not remove a snapshot; "" if it may."""
    if snapshot.doubt:
        return snapshot.doubt
    if not snapshot.sequence or snapshot.created_at == NO_DATE:
        return _UNKNOWN_HOME
    return reason_foreign(snapshot.card, owner)


def reason_foreign(facts: Mapping[str, Any], owner: Owner) -> str:
    """Return why a snapshot with these facts is not of the owner's home; "" if it is."""
    if not facts.get("home_id"):
        return _UNKNOWN_HOME
    if facts["home_id"] not in owner.ids:
        return "of another home"
    if owner.all_paths:
        return ""
    if facts.get("home", owner.home) != owner.home:
        return f"of the home at {facts['home']}"
    if owner.host and facts.get("host", owner.host) != owner.host:
        return f"of the home on {facts['host']}"
    return ""


def resolve_host(owner: Owner, snapshots: Iterable[Snapshot]) -> Owner:
    """Return the owner, without a host unless the host distinguishes homes.

    A container has a new host name at each start, so another name alone means nothing. Where names
    alternate, a home was cloned to several machines that share the directory, and each prunes its
    own snapshots.
    """
    any_host = replace(owner, host="")
    own = [
        item
        for item in snapshots
        if item.sequence and not item.doubt and not reason_foreign(item.card, any_host)
    ]
    hosts = [item.card.get("host", "") for item in sorted(own, key=lambda item: item.sequence)]
    changes = [host for host, _group in itertools.groupby(filter(None, hosts))]
    return owner if len(changes) > len(set(changes)) else any_host
