"""Try every key of a home on everything that is sealed in it, and look for what is not sealed.

Nothing is written, and it works while Sagewai runs: the documents are read within one moment, the
database within one read transaction. What a value opens to is dropped at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.home.paths import Home, require
from sagewai_ops.keys.candidates import Candidate, active_key, all_candidates, rejected_key
from sagewai_ops.keys.inventory import read_inventory
from sagewai_ops.keys.plaintext_secrets import Plaintext
from sagewai_ops.keys.trial_decryption import Opened, SealedReport, open_all
from sagewai_ops.progress import Progress
from sagewai_ops.swap.pending import require_settled


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What the keys at hand open, and what needs none.

    Args:
        candidates: Every key, in the order in which they were tried.
        key: The key that Sagewai would use; None if it would make a new one.
        report: What opened, by key, and what did not.
        opened: Each value that opened.
        plaintext: Secrets in the clear.
        unread: What could not be looked at: path to reason.
    """

    candidates: tuple[Candidate, ...]
    key: Candidate | None
    report: SealedReport
    opened: tuple[Opened, ...]
    plaintext: tuple[Plaintext, ...]
    unread: Mapping[str, str]

    @property
    def rejected(self) -> Candidate | None:
        """What makes Sagewai write a new key though something stands in a key's place."""
        return rejected_key(self.candidates)

    @property
    def lost_to_sagewai(self) -> tuple[Opened, ...]:
        """The values that open, though not with the key that Sagewai would use."""
        own = self.key.fingerprint if self.key else ""
        return tuple(one for one in self.opened if one.fingerprint != own)

    @property
    def has_findings(self) -> bool:
        """Whether there is anything to mend."""
        exposed = any(one.is_finding for one in self.plaintext)
        troubled = self.rejected or self.report.unopened or self.lost_to_sagewai
        return bool(troubled or exposed or self.unread)


def check_keys(
    home: Home,
    environment: Mapping[str, str],
    *,
    key_file: Path | None = None,
    progress: Progress | None = None,
) -> KeyCheck:
    """Open every sealed value of a home with every key at hand.

    Args:
        environment: Where a master key may come from.
        key_file: One more key to try.
        progress: Told `keys` in values.

    Raises:
        NotFoundError: No such home or key file.
        LockedError: An operation is pending.
        DamagedError, LockedError, PermissionDeniedError: The database cannot be read.
        KeyMissingError: `key_file` holds no key.
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
