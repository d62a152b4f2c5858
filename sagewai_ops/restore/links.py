"""The symlinks of an archive, resolved as the kernel would resolve them once it is restored.

Name by name each may stay inside while together they lead out: `a/up` to `..`, and a link through
`a/up/up`. What leads out is refused, except the links that are stored as such. Where Sagewai has
its documents, key and database, and their directories, no link is restored at all: the next
program that writes there would write where the archive points.
"""

from collections.abc import Iterable, Mapping

from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.errors import DamagedError
from sagewai_ops.home.paths import (
    ADMIN_STATE,
    CONNECTIONS,
    DATABASE,
    MASTER_KEY,
    PARTS,
    PROFILES,
    SIDECAR_SUFFIXES,
)

NEVER_LINKS = frozenset((
    *(ADMIN_STATE, CONNECTIONS, PROFILES, MASTER_KEY),
    *PARTS,
    *(DATABASE + suffix for suffix in ("", *SIDECAR_SUFFIXES)),
))  # fmt: skip
_MOST_LINKS = 40  # path_resolution(7): the kernel follows no more
_OUTSIDE = ".."
_HINT = "use another snapshot: sagewai-ops snapshots list"


def check_links(members: Iterable[tuple[str, Entry]]) -> None:
    """Check the links among members that are written together.

    Args:
        members: The path of each in the home, and its entry.

    Raises:
        DamagedError: One is where none may be, or leads out of the home through others.
    """
    links = {path: entry for path, entry in members if entry.type is EntryType.LINK}
    resolved: dict[str, str | None] = {}
    for path, entry in links.items():
        if path in NEVER_LINKS:
            raise DamagedError(
                f"archive: member {path}: a symlink, not a file or directory",
                hint=_HINT,
            )
        if not entry.is_outside and _resolve(path, links, resolved, 0) == _OUTSIDE:
            raise DamagedError(
                f"archive: member {path[:200]}: a symlink out of the home, by way of others",
                hint=_HINT,
            )


def _resolve(
    path: str, links: Mapping[str, Entry], resolved: dict[str, str | None], depth: int
) -> str | None:
    """Return where a link leads: a path, "" for the home, `..` for outside; None for a loop."""
    if path in resolved:
        return resolved[path]
    entry = links[path]
    if depth > _MOST_LINKS:
        return None
    place: str | None = _OUTSIDE
    if not entry.is_outside:
        place = _walk(path, entry.target, links, resolved, depth)
    if place is not None:
        resolved[path] = place
    return place


def _walk(
    path: str,
    target: str,
    links: Mapping[str, Entry],
    resolved: dict[str, str | None],
    depth: int,
) -> str | None:
    place = path.rpartition("/")[0]
    for step in target.split("/"):
        if step in ("", "."):
            continue
        if step == "..":
            if not place:
                return _OUTSIDE
            place = place.rpartition("/")[0]
            continue
        place = f"{place}/{step}" if place else step
        if place in links:
            end = _resolve(place, links, resolved, depth + 1)
            if end is None or end == _OUTSIDE:
                return end
            place = end
    return place
