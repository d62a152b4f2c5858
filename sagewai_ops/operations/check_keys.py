"""Try every key of a home on all its sealed values, and find the secrets in plaintext.

Nothing is written, and it works while Sagewai runs: the documents are read at one moment, the
database within one read transaction. Plaintexts are dropped at once.
"""

from collections.abc import Mapping
from pathlib import Path

from sagewai_ops.home.paths import Home, require
from sagewai_ops.keys.candidates import (
    Candidate,
    KeyState,
    active_key,
    all_candidates,
    describe_keys,
    rejected_key,
)
from sagewai_ops.keys.inventory import read_inventory
from sagewai_ops.keys.plaintext_secrets import Plaintext
from sagewai_ops.keys.trial_decryption import Opened, SealedReport, open_all
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.swap.pending import require_settled


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What the available keys open, and the secrets in plaintext.

    Args:
        candidates: Every key, in the order in which they were tried.
        key: The key that Sagewai would use; None if it would make a new one.
        report: What opened, by key, and what did not.
        opened: Each value that opened.
        plaintext: Secrets in plaintext.
        unread: Path -> why it could not be read.
    """

    candidates: tuple[Candidate, ...]
    key: Candidate | None
    report: SealedReport
    opened: tuple[Opened, ...]
    plaintext: tuple[Plaintext, ...]
    unread: Mapping[str, str]

    @property
    def rejected(self) -> Candidate | None:
        """The first source, if Sagewai refuses it and so would write a new key."""
        return rejected_key(self.candidates)

    @property
    def lost_to_sagewai(self) -> tuple[Opened, ...]:
        """The values that open, though not with the key that Sagewai would use."""
        own = self.key.fingerprint if self.key else ""
        return tuple(value for value in self.opened if value.fingerprint != own)

    @property
    def has_findings(self) -> bool:
        """Whether anything should be fixed."""
        exposed = any(secret.finding for secret in self.plaintext)
        lost = self.rejected or self.report.unopened or self.lost_to_sagewai
        return bool(lost or exposed or self.unread)


@dataclass(frozen=True, slots=True)
class KeyCheckResult:
    """The result of `keys check`: a `KeyCheck` without keys.

    Attributes:
        keys: In the order in which they were tried.
        key_source: Of the key that Sagewai would use; "" if it would make a new one.
        values: Each value that opened.
        lost_to_sagewai: The values that open, though not with the key that Sagewai would use.
        unread: Path -> why it could not be read.
    """

    home: Path
    keys: tuple[KeyState, ...]
    key_source: str
    key_fingerprint: str
    sealed: SealedReport
    values: tuple[Opened, ...]
    lost_to_sagewai: int
    plaintext: tuple[Plaintext, ...]
    unread: Mapping[str, str]


def describe_check(home: Home, found: KeyCheck) -> KeyCheckResult:
    """Return a check without keys."""
    available = describe_keys(found.candidates)
    return KeyCheckResult(
        home=home.root,
        keys=available.keys,
        key_source=available.key_source,
        key_fingerprint=available.key_fingerprint,
        sealed=found.report,
        values=found.opened,
        lost_to_sagewai=len(found.lost_to_sagewai),
        plaintext=found.plaintext,
        unread=found.unread,
    )


def check_keys(
    home: Home,
    environment: Mapping[str, str],
    *,
    key_file: Path | None = None,
    progress: Progress | None = None,
) -> KeyCheck:
    """Open every sealed value of a home with every available key.

    Args:
        environment: Can contain a master key.
        key_file: An additional key.
        progress: Called with `keys` and values.

    Raises:
        NotFoundError: No such home or key file.
        LockedError: An operation is pending.
        DamagedError, LockedError, PermissionDeniedError: The database is not readable.
        KeyMissingError: `key_file` contains no key.
    """
    require(home)
    require_settled(home.root)
    candidates = all_candidates(home, environment, key_file=key_file)
    inventory = read_inventory(home, environment)
    opened: list[Opened] = []
    report = open_all(inventory.values, candidates, on_open=opened.append, progress=progress)
    return KeyCheck(
        candidates=candidates,
        key=active_key(candidates),
        report=report,
        opened=tuple(opened),
        plaintext=inventory.plaintext,
        unread=inventory.unread,
    )
