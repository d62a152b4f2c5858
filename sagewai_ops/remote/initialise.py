"""`remote init` and `remote check`: probe a place, write its marker, compare with it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from sagewai_ops.errors import TargetBusyError
from sagewai_ops.records import dataclass
from sagewai_ops.remote.marker import (
    MARKER,
    Marker,
    already_initialised,
    new_marker,
    require_marker,
    write_marker,
)
from sagewai_ops.remote.policy import Advice, advise
from sagewai_ops.remote.probe import Capabilities, Finding, probe

if TYPE_CHECKING:
    from sagewai_ops.remote.address import Address
    from sagewai_ops.remote.store import Store

_UNTESTED = "gs"  # no server of this protocol is among those that the tests start


@dataclass(frozen=True, slots=True)
class PlaceResult:
    """The outcome of `remote init` and `remote check`.

    Attributes:
        place: The URL.
        place_id: Of the marker; None if none was written.
        created_at: Of the marker.
        capabilities: What the place can do; None if it was not probed.
        findings: What it does not do as it should.
        changed: The capabilities that differ from those in the marker.
        advice: The least rights, and the rule for parts of killed uploads.
        is_tested: Whether the tests of this program include a server of this kind.
    """

    place: str
    place_id: str | None
    created_at: datetime | None
    capabilities: Capabilities | None
    findings: tuple[Finding, ...]
    changed: tuple[str, ...]
    advice: Advice
    is_tested: bool


def require_uninitialised(store: Store) -> None:
    """Check that a place exists and has no marker.

    Raises:
        TargetBusyError: It has a marker.
        NotFoundError: The bucket or the directory does not exist.
        PermissionDeniedError, RemoteError: As for every method of a store.
    """
    if any(facts.name == MARKER for facts in store.list()):
        raise already_initialised(store)


def initialise(store: Store, address: Address) -> PlaceResult:
    """Probe a place, and write its marker if snapshots would be safe there.

    Returns:
        Without `place_id` if a finding is blocking: nothing was written.

    Raises:
        TargetBusyError, NotFoundError, PermissionDeniedError, RemoteError: As for
            `require_uninitialised`, and for `probe`.
    """
    require_uninitialised(store)
    capabilities, findings = probed = probe(store)
    if any(finding.is_blocking for finding in findings):
        return _result(store, address, probed, None)
    marker = new_marker(capabilities)
    write_marker(store, marker)
    found = require_marker(store)
    if found is not None and found.place_id != marker.place_id:
        raise TargetBusyError(f"{store.address}: initialised by another run at the same time")
    return _result(store, address, probed, marker)


def check_place(store: Store, address: Address) -> PlaceResult:
    """Probe a place again, and compare the results with its marker.

    Raises:
        NotFoundError: It does not exist, or has no marker.
        DamagedError, SchemaAheadError: The marker is malformed, or of a newer version.
        PermissionDeniedError, RemoteError: As for `probe`.
    """
    marker = require_marker(store)
    probed = probe(store)
    changed = marker.capabilities.differences(probed[0]) if marker else ()
    return _result(store, address, probed, marker, changed)


def _result(
    store: Store,
    address: Address,
    probed: tuple[Capabilities, tuple[Finding, ...]],
    marker: Marker | None,
    changed: tuple[str, ...] = (),
) -> PlaceResult:
    capabilities, findings = probed
    return PlaceResult(
        place=store.address,
        place_id=marker.place_id if marker else None,
        created_at=marker.created_at if marker else None,
        capabilities=capabilities,
        findings=findings,
        changed=changed,
        advice=advise(address),
        is_tested=address.scheme != _UNTESTED,
    )
