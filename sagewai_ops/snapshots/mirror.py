"""The mirror of a snapshot directory, as a list shows it; `backup.mirror` updates it."""

from pathlib import Path

from sagewai_ops.archive.directory_reader import read_mirror_header
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots.catalog import TREE


@dataclass(frozen=True, slots=True)
class Mirror:
    """The mirror of a snapshot directory.

    Attributes:
        created_at: UTC, as its header has it.
    """

    path: Path
    id: str
    created_at: str


def find_mirror(directory: Path) -> Mirror | None:
    """Read the header of the mirror in a snapshot directory; None if it is missing."""
    header = None if is_remote(directory) else read_mirror_header(directory / TREE)
    if header is None:
        return None
    return Mirror(directory / TREE, header.id, str(header.facts.get("created_at", "")))
