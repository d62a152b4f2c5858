"""Files of a home that a snapshot omits, and why."""

from enum import Enum

from sagewai_ops.records import dataclass


class Reason(str, Enum):
    """Why a file is omitted."""

    SIDECAR = "its content is in the copy of the database"
    LOCK = "a lock file, empty"
    LEFTOVER = "left by a crashed writer"
    OWN = "of sagewai-ops itself"
    COMPANION = "of litestream, which begins again without it"
    KEY = "the master key, excluded"
    HOLDS_KEY = "contains the master key"
    EXCLUDED = "excluded by --exclude"
    GONE = "removed before it was read"
    SPECIAL = "neither a file, a directory nor a link"
    LEAVES = "a link that leads out of the home"
    UNREADABLE = "could not be read"
    NAME = "its path is too long for a snapshot"

    @property
    def is_loss(self) -> bool:
        """Whether a backup without it is incomplete."""
        names = "SPECIAL", "LEAVES", "UNREADABLE", "NAME", "HOLDS_KEY"
        return self.name in names


@dataclass(frozen=True, slots=True)
class Omission:
    """A file that a snapshot does not contain.

    Attributes:
        path: Relative to the home.
        detail: Such as the target of a link, or "".
    """

    path: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OmittedEntry:
    """A file that the snapshot does not contain; a later version may have other reasons."""

    path: str
    reason: str
    detail: str
