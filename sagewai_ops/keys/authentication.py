"""The keys that authenticate the snapshots of a home, one for each of its master keys."""

from collections.abc import Iterable

from sagewai_ops.archive.authentication import AuthenticationKey, derive_key
from sagewai_ops.keys.candidates import Candidate, configured_key


def authentication_keys(candidates: Iterable[Candidate]) -> tuple[AuthenticationKey, ...]:
    """Return the keys that are derived from these master keys, each once, that in use first."""
    found = [*candidates]
    used = configured_key(found)
    found = [used, *found] if used else found
    values = {candidate.value: candidate.fingerprint for candidate in found if candidate.value}
    return tuple(derive_key(fingerprint, value) for value, fingerprint in values.items())
