"""The paths in a home of the members of an archive.

Most members keep their path. A file from outside the home, read there because of an override, moves
to the path that Sagewai uses without the override. If the home has a file there too, the external
one stays under `external/` and a warning names it.
"""

from collections.abc import Collection, Iterator

from sagewai_ops.archive.manifest import HEADER_NAME, Entry, Manifest
from sagewai_ops.home.paths import ADMIN_STATE, CONNECTIONS, DATABASE, MASTER_KEY, Home

EXTERNAL = "external"  # files from outside the home are archived below this name
# Files of the home whose own path begins with a name that the archive reserves.
EXTERNAL_HOME = f"{EXTERNAL}/home"
SERVER_DIRECTORY = "postgres"  # the database of a server, if the snapshot contains one
EXTERNAL_KEY = f"{EXTERNAL}/master.key"  # a key that is not in the home's own key file

_STANDARD_PATHS = {
    "SAGEWAI_ADMIN_STATE_FILE": ADMIN_STATE,
    "SAGEWAI_CONNECTIONS_FILE": CONNECTIONS,
    "SAGEWAI_SOPS_ROOT": "secrets/sops",
    "SAGEWAI_DATABASE_URL": DATABASE,
    "DATABASE_URL": DATABASE,
}


def is_within(path: str, directory: str) -> bool:
    """Return whether a relative path is a directory or below it."""
    return path == directory or path.startswith(directory + "/")


class MemberPaths:
    """The paths of the members of one archive.

    Args:
        omitted: Paths in the home that are not restored.

    Attributes:
        unplaced: Member directory or file -> original path, for members that stay in `external/`.
    """

    def __init__(self, manifest: Manifest, *, omitted: Collection[str] = ()) -> None:
        self._omitted = omitted
        self._moved: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self.unplaced: dict[str, str] = {}
        self._has_server = bool(manifest.facts.get("postgres"))
        external = manifest.facts.get("external", {})
        searched = {EXTERNAL_KEY, MASTER_KEY, *external, *_STANDARD_PATHS.values()}
        present = {entry.path for entry in manifest.entries if entry.path in searched}
        self._has_unused_key = False
        if EXTERNAL_KEY in present:
            # The key in use; the one in the home's own key file is restored to `external/`.
            self._moved[EXTERNAL_KEY] = MASTER_KEY
            self._has_unused_key = MASTER_KEY in present
        for member, origin in external.items():
            variable = member.removeprefix(EXTERNAL + "/")
            standard = _STANDARD_PATHS.get(variable)
            if member not in present:
                continue
            if standard and standard not in present and standard not in self._moved.values():
                self._moved[member] = standard
                self._origins[variable] = origin
            else:
                self.unplaced[member] = origin

    def path_of(self, entry: Entry) -> str | None:
        """Return the path of a member in the home; None if it is not part of the home."""
        path = entry.path
        if path in self._omitted:
            return None
        if path == HEADER_NAME or (self._has_server and is_within(path, SERVER_DIRECTORY)):
            return None
        if path == MASTER_KEY and self._has_unused_key:
            return EXTERNAL_KEY
        if not is_within(path, EXTERNAL):
            return path
        if path.startswith(EXTERNAL_HOME + "/"):
            return path[len(EXTERNAL_HOME) + 1 :]
        for member, moved in self._moved.items():
            if is_within(path, member):
                return moved + path[len(member) :]
        return path if any(is_within(path, member) for member in self.unplaced) else None

    def warnings(self, target: Home) -> Iterator[str]:
        """Yield a line for each file from outside the home that needs attention."""
        if self._has_unused_key:
            yield (
                f"{target.root / EXTERNAL_KEY}: was {MASTER_KEY}, which now has the key that was "
                "in use"
            )
        for member, origin in self.unplaced.items():
            yield f"{target.root / member}: was {origin}, the home has another file at its path"
        for variable, path in target.overrides.items():
            if variable in self._origins and variable in _STANDARD_PATHS:
                yield (
                    f"{variable} is set: Sagewai will read {path}, not the restored "
                    f"{target.root / _STANDARD_PATHS[variable]}"
                )
