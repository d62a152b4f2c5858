"""Find out what a remote place can do, by doing it with objects of its own.

Nothing that a server states about itself is believed: an object is written twice, read in parts,
replaced and deleted, and what is read is compared with what was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from sagewai_ops.errors import OpsError, PermissionDeniedError, RemoteError
from sagewai_ops.records import dataclass
from sagewai_ops.remote.store import Deletion, HasRetention

if TYPE_CHECKING:
    from sagewai_ops.remote.store import Store

PREFIX = "sagewai-ops-probe-"  # of the objects that are written
_LARGE_BYTES = 9 << 20  # more than one part
_MOST_SKEW_SECONDS = 300  # S3 refuses requests from 900 on
Deleting = Literal["deleted", "hidden", "denied"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a place does not do as it should.

    Attributes:
        kind: Stable.
        is_blocking: Whether snapshots there would not be safe.
    """

    kind: str
    message: str
    repair: str
    is_blocking: bool


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a place can do.

    Attributes:
        put_if_absent: An existing object is not replaced unless it is asked for.
        exact_ranges: Parts of an object are read exactly.
        multipart: An object of several parts has the content that was sent.
        consistent_list: What was written is listed at once, what was deleted is not.
        overwrite: An object can be replaced.
        deleting: `hidden` if the store keeps a version, `denied` without the rights.
        locked_seconds: For how long a new object cannot be deleted; None if it can, or unknown.
        clock_skew_seconds: Of the server's clock; positive if it is ahead.
    """

    put_if_absent: bool
    exact_ranges: bool
    multipart: bool
    consistent_list: bool
    overwrite: bool
    deleting: Deleting
    locked_seconds: int | None
    clock_skew_seconds: int

    @classmethod
    def from_document(cls, document: Any) -> Capabilities:
        """Read it from JSON values.

        Raises:
            ValueError, TypeError, KeyError: It is not one.
        """
        values = {field.name: document[field.name] for field in fields(cls)}
        truths = [values[name] for name in _TRUTHS]
        locked, skew = values["locked_seconds"], values["clock_skew_seconds"]
        if not all(isinstance(truth, bool) for truth in truths) or type(skew) is not int:
            raise ValueError
        if values["deleting"] not in ("deleted", "hidden", "denied"):
            raise ValueError
        if locked is not None and type(locked) is not int:
            raise ValueError
        return cls(**values)

    def differences(self, other: Capabilities) -> tuple[str, ...]:
        """Return the names of what changed since, without what changes by itself."""
        names = (*_TRUTHS, "deleting")
        changed = [name for name in names if getattr(self, name) != getattr(other, name)]
        if (self.locked_seconds is None) != (other.locked_seconds is None):
            changed.append("locked_seconds")
        return tuple(changed)


_TRUTHS = ("put_if_absent", "exact_ranges", "multipart", "consistent_list", "overwrite")


def probe(store: Store) -> tuple[Capabilities, tuple[Finding, ...]]:
    """Write, read, replace and delete objects of a place, and compare.

    Raises:
        NotFoundError: The bucket or the directory does not exist; it is not created.
        PermissionDeniedError: The rights to list, write or read are missing.
        RemoteError: The server or the network failed.
    """
    store.list()  # before anything is written: some servers create a bucket at the first object
    small, large = (f"{PREFIX}{secrets.token_hex(8)}" for _each in range(2))
    with _removed(store, small, large):
        before = datetime.now(timezone.utc)
        first, second, third = (secrets.token_bytes(1000) for _each in range(3))
        store.put(small, first)
        skew = _skew(store, small, before)
        put_if_absent = not store.put(small, second) and _content(store, small) == first
        exact_ranges = _has_exact_ranges(store, small, _content(store, small))
        with contextlib.suppress(PermissionDeniedError, RemoteError):
            store.put(small, third, replace=True)
        overwrite = _content(store, small) == third
        multipart = _has_multipart(store, large)
        listed = {facts.name for facts in store.list()}
        locked = _locked_seconds(store, small)
        deleting = _delete(store, small, large)
        remaining = {facts.name for facts in store.list()}
        consistent = {small, large} <= listed
        if deleting != "denied":
            consistent = consistent and not {small, large} & remaining
    found = Capabilities(
        put_if_absent, exact_ranges, multipart, consistent, overwrite, deleting, locked, skew
    )
    return found, tuple(_findings(found, store.address))


def _findings(found: Capabilities, place: str) -> Iterator[Finding]:
    gateway = "use another server or gateway for this place"
    for is_met, kind, problem in (
        (
            found.put_if_absent,
            "put-if-absent",
            "an existing object is replaced although the request forbids it",
        ),
        (found.exact_ranges, "ranges", "parts of an object are not read exactly"),
        (
            found.multipart,
            "multipart",
            "an object of several parts does not have the content that was sent",
        ),
        (found.consistent_list, "list", "a list is not current after a change"),
    ):
        if not is_met:
            yield Finding(kind, f"{place}: {problem}", gateway, is_blocking=True)
    if not found.overwrite:
        yield Finding(
            "overwrite",
            f"{place}: an object cannot be replaced, so results of drills are not recorded there",
            "grant the right to replace objects, or accept it",
            is_blocking=False,
        )
    if abs(found.clock_skew_seconds) > _MOST_SKEW_SECONDS:
        yield Finding(
            "clock",
            f"{place}: the clock of the server differs by {found.clock_skew_seconds} s",
            "timedatectl status",
            is_blocking=False,
        )


def _skew(store: Store, name: str, before: datetime) -> int:
    """Return how far the clock of the server is ahead, in seconds; times have whole seconds."""
    facts = store.facts(name)
    if facts is None:
        raise RemoteError(f"{store.address}: {name}: missing after it was written")
    after = datetime.now(timezone.utc)
    if facts.modified_at > after:
        return int((facts.modified_at - after).total_seconds())
    early = int((before - facts.modified_at).total_seconds())
    return -early if early > 0 else 0


def _content(store: Store, name: str) -> bytes:
    return b"".join(store.stream(name))


def _has_exact_ranges(store: Store, name: str, content: bytes) -> bool:
    parts = ((0, len(content)), (0, 1), (3, 500), (len(content) - 1, 1))
    try:
        exact = all(
            store.read(name, offset, count) == content[offset : offset + count]
            for offset, count in parts
        )
    except RemoteError:
        return False
    try:
        store.read(name, len(content) - 1, 2)
    except RemoteError:
        return exact
    return False


def _has_multipart(store: Store, name: str) -> bool:
    seed = secrets.token_bytes(32)
    # Parts that differ, so that one in the place of another is noticed.
    pieces = [hashlib.sha512(seed + bytes([number])).digest() * 16384 for number in range(9)]
    sent, received = hashlib.sha256(), hashlib.sha256()
    with store.upload(name, _LARGE_BYTES) as upload:
        for piece in pieces:
            upload.write(piece)
            sent.update(piece)
        try:
            upload.finish()
        except RemoteError:
            return False
    for piece in store.stream(name):
        received.update(piece)
    return sent.digest() == received.digest()


def _locked_seconds(store: Store, name: str) -> int | None:
    if not isinstance(store, HasRetention):
        return None
    until = store.retained_until(name)
    if until is None:
        return None
    return max(0, round((until - datetime.now(timezone.utc)).total_seconds()))


def _delete(store: Store, *names: str) -> Deleting:
    results = set()
    for name in names:
        try:
            results.add(store.delete(name))
            if store.facts(name) is not None:
                results.add(Deletion.HIDDEN)
        except PermissionDeniedError:
            return "denied"
    return "hidden" if Deletion.HIDDEN in results else "deleted"


@contextlib.contextmanager
def _removed(store: Store, *names: str) -> Iterator[None]:
    """Delete the objects at an error in the block, as far as the rights allow."""
    try:
        yield
    except BaseException:
        for name in names:
            with contextlib.suppress(OpsError):
                store.delete(name)
        raise
