"""The origin of a snapshot: written by this home, unknown, or forged.

Only a snapshot of format 2 has an HMAC, and only a master key of the home can check it. A sealed
archive has its own key in it, which proves nothing: a forger chooses one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import PLAIN_FORMAT_VERSION, Header
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import NotAuthenticError
from sagewai_ops.fs import beneath
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots.cards import read_card
from sagewai_ops.snapshots.catalog import id_of
from sagewai_ops.snapshots.mark import Mark
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


def read_origin(
    reader: ArchiveReader,
    path: Path,
    keys: Sequence[AuthenticationKey],
    *,
    card: Mapping[str, Any] | None = None,
) -> Origin:
    """Return the origin of an open snapshot, if its content has the digest that it states.

    Args:
        path: Of the snapshot.
        keys: Of the home, never from the archive.
        card: Its metadata file; None to read it.
    """
    card = read_card(path) if card is None else card
    if contradiction := _find_contradiction(reader, path, card):
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
    reader: ArchiveReader, path: Path, keys: Sequence[AuthenticationKey], *, authentic: bool = False
) -> Origin:
    """Return the origin of an open snapshot that is not forged.

    Args:
        authentic: Refuse every snapshot that is not authentic.

    Raises:
        NotAuthenticError: It is forged, or not authentic; `open_archive` adds the path.
    """
    origin = read_origin(reader, path, keys)
    if origin.authenticity == FORGED or (authentic and origin.authenticity != AUTHENTIC):
        hint = "sagewai-ops snapshots list"
        if "metadata file" in origin.reason:
            hint = f"sagewai-ops snapshots list --rebuild --snapshots {shell_word(path.parent)}"
        raise NotAuthenticError(origin.words, hint=hint)
    return origin


def require_latest(
    header: Header, path: Path, origin: Origin, mark: Mark, keys: Sequence[AuthenticationKey]
) -> None:
    """Check that the newest good snapshot of a directory is not older than the high-water mark.

    Without the key of the mark nothing shows the origin, and only the number counts.

    Args:
        path: Of the snapshot.
        origin: Of the snapshot.
        mark: Of the home, for this directory.

    Raises:
        NotAuthenticError: It is older, or not authentic; `open_archive` adds the path.
    """
    sequence = header.facts.get("sequence", 0)
    created = f"snapshot {mark.good_id} with sequence {mark.good_sequence} was created here"
    is_known = any(key.fingerprint == mark.key for key in keys)
    if is_known and origin.authenticity != AUTHENTIC:
        problem = f"{origin.words}, and snapshot {mark.id} was created here and authenticated"
    elif sequence < mark.good_sequence:
        problem = (
            f"sequence {sequence}, but {created}: it was removed, or the directory rolled back"
        )
    elif sequence == mark.good_sequence and header.id != mark.good_id:
        problem = f"sequence {sequence}, but {created}: it was replaced"
    else:
        return
    raise NotAuthenticError(f"newest snapshot: {problem}", hint=_hint(mark, path))


def _hint(mark: Mark, path: Path) -> str:
    directory = f"--snapshots {shell_word(path.parent)}"
    good = mark.good_id or mark.id
    if is_remote(path):
        is_there = any(id_of(item.name) == good for item in path.store.list())
    else:
        is_there = any(id_of(name) == good for name in beneath.list_directory(path.parent))
    if is_there:
        return f"the last authentic one: {good}  # name it in the place of `latest`"
    return (
        f"sagewai-ops snapshots verify --chain {directory}  # shows what is missing\n"
        "accept it: --allow-rollback"
    )


def _find_contradiction(reader: ArchiveReader, path: Path, card: Mapping[str, Any]) -> str:
    """Return how an archive contradicts its name or its metadata file; "" if it does not."""
    header = reader.header
    named = id_of(path.name)
    if not named:
        return ""  # a mirror, or a file that was renamed
    if named != header.id:
        return f"its content is snapshot {header.id}"
    for name in ("sequence", "home_id"):
        if name in card and card[name] != header.facts.get(name):
            return f"{name} {header.facts.get(name)}, in its metadata file {card[name]}"
    return ""
