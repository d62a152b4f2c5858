"""What a Sagewai home is: its root, the effective path of each document, the kind of every file.

The rules are those of Sagewai 1.0.1: `$SAGEWAI_HOME` (a leading `~` expanded, symlinks followed,
an empty value the same as none), else `~/.sagewai`; single files can be moved elsewhere by
variables of their own. This module reads no content and creates nothing.

Relative paths are `str` as `os.fsdecode` gives them: bytes that are not UTF-8 are surrogates.
"""

import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sagewai_ops.errors import NotFoundError

DATABASE = "db/sagewai.db"
ADMIN_STATE = "config/admin-state.json"
CONNECTIONS = "config/connections.json"
PROFILES = "secrets/profiles.json"
MASTER_KEY = "secrets/master.key"
LEGACY_MASTER_KEY = "master.key"
# The flat layout before 1.0: four files at the root, each with its place today.
LEGACY_PLACES = {
    "admin-state.json": ADMIN_STATE,
    "connections.json": CONNECTIONS,
    "master.key": MASTER_KEY,
    "profiles.json": PROFILES,
}
SIDECAR_SUFFIXES = ("-wal", "-shm", "-journal")
# Everything that this program leaves in a home for a while begins like this.
OWN_PREFIX = ".sagewai-ops-"
PARTS = ("config", "db", "data", "secrets")

# Temporary files of Sagewai's writers, left by a crash: `tempfile` puts 8 characters of its own
# alphabet where the ? stand.
_LEFTOVERS = (
    "tmp????????.tmp",
    ".connections.????????.tmp",
    ".profiles.????????.tmp",
)
_LEFTOVER_DIRECTORIES = ("", "config", "secrets")
_SQLITE_SCHEMES = ("sqlite", "sqlite+aiosqlite", "sqlite+pysqlite")


class Kind(str, Enum):
    """What a file of a home is, which decides how it is carried and with which mode."""

    DATABASE = "database"
    SIDECAR = "sidecar"  # the copy of its database has everything that it holds
    LOCK = "lock"
    LEFTOVER = "leftover"
    OWN = "own"  # staging and journals of this program
    KEY = "key"
    SECRET = "secret"  # noqa: S105 - a kind, not a password
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Home:
    """A home and where each of its documents really is.

    Attributes:
        root: Absolute and resolved; need not exist.
        overrides: Variable -> path, for each document that lives outside `root` because of it.
        server_url_variable: The variable that moves Sagewai's tables to a database server, or "".
        named: As it was asked for, absolute; leads to `root`, perhaps through links.
    """

    root: Path
    admin_state: Path
    connections: Path
    profiles: Path
    master_key: Path
    legacy_master_key: Path
    database: Path
    sops_root: Path
    cache_dir: Path
    overrides: Mapping[str, Path]
    server_url_variable: str
    named: Path

    @property
    def databases(self) -> tuple[Path, ...]:
        """The database that Sagewai uses, and the one in the home where that is another."""
        return tuple(dict.fromkeys((self.database, self.root / DATABASE)))

    @property
    def snapshots(self) -> Path:
        """The default snapshot directory: beside the home, so that losing one leaves the other."""
        return self.root.with_name(self.root.name + ".snapshots")


def locate(home: Path | None, environment: Mapping[str, str]) -> Home:
    """Find the home and the effective path of each document, as Sagewai would.

    Args:
        home: What the caller asked for, else None for the environment's.
        environment: Variables; the process's own is `os.environ`.

    Raises:
        NotFoundError: Neither a home, nor HOME to expand `~` with, is known.
    """
    chosen = str(home) if home is not None else environment.get("SAGEWAI_HOME") or "~/.sagewai"
    named = Path(_expanded(chosen, environment)).absolute()
    root = Path(os.path.realpath(named))
    overrides: dict[str, Path] = {}

    def effective(variable: str, standard: str, *, expand: bool) -> Path:
        value = environment.get(variable)
        if not value:
            return root / standard
        path = Path(os.path.abspath(_expanded(value, environment) if expand else value))
        if not path.is_relative_to(root):
            overrides[variable] = path
        return path

    admin_state = effective("SAGEWAI_ADMIN_STATE_FILE", ADMIN_STATE, expand=False)
    connections = effective("SAGEWAI_CONNECTIONS_FILE", CONNECTIONS, expand=True)
    sops_root = effective("SAGEWAI_SOPS_ROOT", "secrets/sops", expand=True)
    cache_dir = effective("SAGEWAI_CACHE_DIR", "data/blueprint_cache", expand=True)
    database, server_variable = root / DATABASE, ""
    for variable in ("SAGEWAI_DATABASE_URL", "DATABASE_URL"):
        if url := environment.get(variable):
            path = _sqlite_path(url)
            if path is None:
                server_variable = variable
            else:
                database = path
                if not path.is_relative_to(root):
                    overrides[variable] = path
            break
    return Home(
        root=root,
        admin_state=admin_state,
        connections=connections,
        profiles=root / PROFILES,
        master_key=root / MASTER_KEY,
        legacy_master_key=root / LEGACY_MASTER_KEY,
        database=database,
        sops_root=sops_root,
        cache_dir=cache_dir,
        overrides=overrides,
        server_url_variable=server_variable,
        named=named,
    )


def require(home: Home) -> None:
    """Make sure that the home is there.

    Raises:
        NotFoundError: It does not exist or is not a directory.
    """
    if not home.root.is_dir():
        state = "is not a directory" if home.root.exists() else "does not exist"
        raise NotFoundError(
            f"home {home.root}: {state}",
            hint="name it with --home DIR or SAGEWAI_HOME, or make one: sagewai-ops init",
        )


def kind_of(relative: str) -> Kind:
    """Tell what the file at a path relative to its home is, from its name alone."""
    directory, _, name = relative.rpartition("/")
    if relative.split("/", 1)[0].startswith(OWN_PREFIX):
        return Kind.OWN
    if relative == DATABASE:
        return Kind.DATABASE
    if relative in {DATABASE + suffix for suffix in SIDECAR_SUFFIXES}:
        return Kind.SIDECAR
    if relative in (MASTER_KEY, LEGACY_MASTER_KEY):
        return Kind.KEY
    if name == "admin-state.json.lock" and directory in ("", "config"):
        return Kind.LOCK
    if directory in _LEFTOVER_DIRECTORIES and any(
        fnmatch.fnmatchcase(name, pattern) for pattern in _LEFTOVERS
    ):
        return Kind.LEFTOVER
    return Kind.SECRET if _holds_secrets(directory, name) else Kind.OTHER


def layout_of(root: Path) -> str:
    """Name the layout: `canonical`, `flat` (four files at the root), `mixed` or `empty`."""
    flat = any(os.path.lexists(root / name) for name in LEGACY_PLACES)
    canonical = any(os.path.lexists(root / place) for place in LEGACY_PLACES.values())
    if flat and canonical:
        return "mixed"
    if flat:
        return "flat"
    return "canonical" if canonical or (root / "db").is_dir() else "empty"


def _holds_secrets(directory: str, name: str) -> bool:
    top = directory.split("/", 1)[0]
    if top == "secrets":
        return True
    if directory in ("config", "fleet"):
        return ".json" in name
    return directory == "" and any(
        name == legacy or name.startswith(legacy + ".bak-") for legacy in LEGACY_PLACES
    )


def _expanded(value: str, environment: Mapping[str, str]) -> str:
    if not re.match(r"~(/|$)", value):
        return os.path.expanduser(value)
    user_home = environment.get("HOME") or os.path.expanduser("~")
    if user_home.startswith("~"):
        raise NotFoundError(
            f"home {value}: cannot expand ~, HOME is not set",
            hint="name the home with --home DIR or SAGEWAI_HOME",
        )
    return user_home + value[1:]


def _sqlite_path(url: str) -> Path | None:
    """Give the file that a SQLAlchemy URL of SQLite names, or None for a server's URL."""
    scheme = url.partition("://")[0]
    if scheme not in _SQLITE_SCHEMES:
        return None
    # sqlite:///relative, sqlite:////absolute: the path begins after the third slash.
    path = unquote(urlsplit(url).path)[1:]
    return Path(os.path.abspath(path)) if path else None
