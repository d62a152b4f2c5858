"""The origin of a snapshot: written by this home, unknown, or forged.

Only a snapshot of format 2 has an HMAC, and only a master key of the home can check it. A sealed
archive has its own key in it, which proves nothing: a forger chooses one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import PLAIN_FORMAT_VERSION
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DamagedError
from sagewai_ops.snapshots.cards import read_card
from sagewai_ops.snapshots.catalog import id_of
from sagewai_ops.text import shell_word

AUTHENTIC: Literal["authentic"] = "authentic"
NOT_AUTHENTICATED: Literal["not authenticated"] = "not authenticated"
FORGED: Literal["forged"] = "forged"
Authenticity: TypeAlias = Literal["authentic", "not authenticated", "forged"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of the origin of a snapshot.

    Attributes:
        reason: Why it is not authentic; "" if it is.
    """

    authenticity: Authenticity
    reason: str = ""

    @property
    def words(self) -> str:
        """The state, for people."""
        return f"{self.authenticity}, {self.reason}" if self.reason else self.authenticity


def read_origin(reader: ArchiveReader, path: Path, keys: Sequence[AuthenticationKey]) -> Origin:
    """Return the origin of an open snapshot, if its content has the digest that it states.

    Args:
        path: Of the snapshot.
        keys: Of the home, never from the archive.
    """
    if contradiction := find_contradiction(reader, path):
        return Origin(FORGED, contradiction)
    named = str(reader.header.facts.get("key_fingerprint") or "")
    if reader.header.format_version == PLAIN_FORMAT_VERSION:
        return Origin(NOT_AUTHENTICATED, "format 1 has no authentication")
    if not keys:
        return Origin(NOT_AUTHENTICATED, "no master key available")
    if reader.mac and any(map(reader.is_authentic, keys)):
        return Origin(AUTHENTIC)
    if named in {key.fingerprint for key in keys}:
        state = "does not match" if reader.mac else "is missing"
        return Origin(FORGED, f"the authentication with key {named} {state}")
    if not reader.mac:
        return Origin(NOT_AUTHENTICATED, "created without a key")
    return Origin(NOT_AUTHENTICATED, f"another key: {named or 'unknown'}")


def require_origin(
    reader: ArchiveReader,
    path: Path,
    keys: Sequence[AuthenticationKey],
    *,
    authentic: bool = False,
) -> Origin:
    """Return the origin of an open snapshot that is not forged.

    Args:
        authentic: Refuse every snapshot that is not authentic.

    Raises:
        DamagedError: It is forged, or not authentic; `open_archive` adds the path.
    """
    origin = read_origin(reader, path, keys)
    if origin.authenticity == FORGED or (authentic and origin.authenticity != AUTHENTIC):
        hint = "sagewai-ops snapshots list"
        if "metadata file" in origin.reason:
            hint = f"sagewai-ops snapshots list --rebuild --snapshots {shell_word(path.parent)}"
        raise DamagedError(origin.words, hint=hint)
    return origin


def find_contradiction(reader: ArchiveReader, path: Path) -> str:
    """Return how an archive contradicts its name or its metadata file; "" if it does not."""
    header = reader.header
    named = id_of(path.name)
    if not named:
        return ""  # a mirror, or a file that was renamed
    if named != header.id:
        return f"its content is snapshot {header.id}"
    card: Mapping[str, Any] = read_card(path)
    for name in ("sequence", "home_id"):
        if name in card and card[name] != header.facts.get(name):
            return f"{name} {header.facts.get(name)}, in its metadata file {card[name]}"
    return ""
