"""Why a file of a home is not in a snapshot."""

from dataclasses import dataclass
from enum import Enum


class Reason(str, Enum):
    """Why something is not in a snapshot."""

    SIDECAR = "the copy of its database has everything that it holds"
    LOCK = "a lock file, empty"
    LEFTOVER = "left by a crashed writer"
    OWN = "of sagewai-ops itself"
    KEY = "the master key, kept out"
    HOLDS_KEY = "the master key is written in it"
    EXCLUDED = "excluded by --exclude"
    GONE = "gone before it was read"
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
    """Something that is not carried.

    Attributes:
        path: Relative to the home.
        detail: What more there is to say, such as where a link leads.
    """

    path: str
    reason: Reason
    detail: str = ""
