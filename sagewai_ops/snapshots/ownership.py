"""Which home a snapshot belongs to."""

import itertools
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from sagewai_ops.home.paths import Home
from sagewai_ops.home.state_files import identity_of
from sagewai_ops.snapshots.catalog import Snapshot


def home_ids(home: Home) -> tuple[str, ...]:
    """Give the ids that snapshots of this home may carry, the one of a new one first."""
    return identity_of(home, socket.gethostname())


NO_DATE = datetime.min.replace(tzinfo=timezone.utc)  # what the catalog makes of a name without one


@dataclass(frozen=True, slots=True)
class Owner:
    """The home whose snapshots may be removed.

    Attributes:
        ids: By which the home is known.
        home: Its path.
        host: The machine that it is on; "" where that does not tell homes apart.
        all_paths: Whether snapshots of another path or machine with such an id are its own too.
    """

    ids: frozenset[str]
    home: str
    host: str
    all_paths: bool = False


def reason_not_owned(snapshot: Snapshot, owner: Owner) -> str:
    """Say why a snapshot is none of the owner's, so that no rule may touch it; "" if it is."""
    if not snapshot.sequence or snapshot.created_at == NO_DATE:
        return "its card does not tell whose it is"
    return reason_foreign(snapshot.card, owner)


def reason_foreign(facts: Mapping[str, Any], owner: Owner) -> str:
    """Say whose home a snapshot with these facts is of, if it is none of the owner's; else ""."""
    if not facts.get("home_id"):
        return "its card does not tell whose it is"
    if facts["home_id"] not in owner.ids:
        return "of another home"
    if owner.all_paths:
        return ""
    if facts.get("home", owner.home) != owner.home:
        return f"of the home at {facts['home']}"
    if owner.host and facts.get("host", owner.host) != owner.host:
        return f"of the home on {facts['host']}"
    return ""


def owner_of(home: Home, *, all_paths: bool = False) -> Owner:
    """Tell whose snapshots may be removed when this home is at hand."""
    return Owner(frozenset(home_ids(home)), str(home.root), socket.gethostname(), all_paths)


def resolve_host(owner: Owner, snapshots: Iterable[Snapshot]) -> Owner:
    """Decide whether the machine's name tells whose a snapshot is.

    Containers get a new name each time, so another one alone means nothing. But where names take
    turns, one home was cloned onto several machines that share the directory, and each prunes its
    own.

    Returns:
        The owner, without a machine unless it counts.
    """
    anywhere = replace(owner, host="")
    own = [one for one in snapshots if one.sequence and not reason_foreign(one.card, anywhere)]
    names = [one.card.get("host", "") for one in sorted(own, key=lambda one: one.sequence)]
    turns = [name for name, _group in itertools.groupby(filter(None, names))]
    return owner if len(turns) > len(set(turns)) else anywhere
