"""Where each member of an archive goes in a home.

Most go where their path says. What lived outside the home because of an override goes to the place
that Sagewai looks at without one, unless the home had a file there too; then it is kept aside,
under `external/`, and named.
"""

from collections.abc import Iterator

from sagewai_ops.archive.manifest import HEADER_NAME, Entry, Manifest
from sagewai_ops.home.paths import ADMIN_STATE, CONNECTIONS, DATABASE, MASTER_KEY, Home

EXTERNAL = "external"  # what lives outside the home is carried below this name
# What stands in the home itself under a name that the archive needs for its own.
EXTERNAL_HOME = f"{EXTERNAL}/home"
EXTERNAL_KEY = f"{EXTERNAL}/master.key"  # a key that is not in the home's own key file

_STANDARD = {
    "SAGEWAI_ADMIN_STATE_FILE": ADMIN_STATE,
    "SAGEWAI_CONNECTIONS_FILE": CONNECTIONS,
    "SAGEWAI_SOPS_ROOT": "secrets/sops",
    "SAGEWAI_DATABASE_URL": DATABASE,
    "DATABASE_URL": DATABASE,
}


class MemberPaths:
    """The places of one archive's members.

    Attributes:
        aside: Member directory or file -> origin, for what has no place of its own.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._external: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self.unplaced: dict[str, str] = {}
        present = {entry.path for entry in manifest.entries}
        self._older_key = False
        if EXTERNAL_KEY in present:
            # The key that was in use; a file in its place held another, which is kept aside.
            self._external[EXTERNAL_KEY] = MASTER_KEY
            self._older_key = MASTER_KEY in present
        external = manifest.facts.get("external")
        for member, origin in external.items() if isinstance(external, dict) else ():
            variable = str(member).removeprefix(EXTERNAL + "/")
            standard = _STANDARD.get(variable)
            if member not in present:
                continue
            if standard and standard not in present and standard not in self._external.values():
                self._external[str(member)] = standard
                self._origins[variable] = str(origin)
            else:
                self.unplaced[str(member)] = str(origin)

    def path_of(self, entry: Entry) -> str | None:
        """Give the path in the home; None for what belongs to the archive alone."""
        path = entry.path
        if path == HEADER_NAME:
            return None
        if path == MASTER_KEY and self._older_key:
            return EXTERNAL_KEY
        if path != EXTERNAL and not path.startswith(EXTERNAL + "/"):
            return path
        if path.startswith(EXTERNAL_HOME + "/"):
            return path[len(EXTERNAL_HOME) + 1 :]
        for member, place in self._external.items():
            if path == member or path.startswith(member + "/"):
                return place + path[len(member) :]
        if any(path == member or path.startswith(member + "/") for member in self.unplaced):
            return path
        return None

    def warnings(self, target: Home) -> Iterator[str]:
        """Say what the person who restores must know about files that were outside the home."""
        if self._older_key:
            yield (
                f"{target.root / EXTERNAL_KEY}: was {MASTER_KEY}, while another key was in use, "
                "which is there now"
            )
        for member, origin in self.unplaced.items():
            yield f"{target.root / member}: was {origin}, the home had another file in its place"
        for variable, path in target.overrides.items():
            if variable in self._origins and variable in _STANDARD:
                yield (
                    f"{variable} is set: Sagewai will read {path}, not the restored "
                    f"{target.root / _STANDARD[variable]}"
                )
