"""The paths of a Sagewai home: its root, the paths of its documents, the kinds of its files.

The rules are those of Sagewai 1.0.1: `$SAGEWAI_HOME` (a leading `~` is expanded, symlinks are
followed, an empty value is ignored), else `~/.sagewai`; variables can move single files elsewhere.
This module reads no content and creates nothing.

Relative paths are `str` from `os.fsdecode`: bytes that are not UTF-8 are surrogates.
"""

import fnmatch
import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.home.companions import DISCARDED, companion_directory
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

DATABASE = "db/sagewai.db"
ADMIN_STATE = "config/admin-state.json"
CONNECTIONS = "config/connections.json"
PROFILES = "secrets/profiles.json"
MASTER_KEY = "secrets/master.key"
LEGACY_MASTER_KEY = "master.key"
# The flat layout before 1.0: four files at the root, with their current paths.
LEGACY_PLACES = {
    "admin-state.json": ADMIN_STATE,
    "connections.json": CONNECTIONS,
    "master.key": MASTER_KEY,
    "profiles.json": PROFILES,
}
SIDECAR_SUFFIXES = ("-wal", "-shm", "-journal")
COMPANION = companion_directory(DATABASE)  # litestream's directory
_DISCARDED = f"{DATABASE.partition('/')[0]}/{DISCARDED}"
# Any of them shows that a directory is a home; `db/server.json` is `server_record.PLACE`.
_OWN_PATHS = (
    *(DATABASE + suffix for suffix in ("", *SIDECAR_SUFFIXES)),
    *("db/server.json", "data/blueprint_cache", "data/workers", "secrets/sops"),
)
# Begins the names of everything that this program creates in a home.
OWN_PREFIX = ".sagewai-ops-"
PARTS = ("config", "db", "data", "secrets")

# Temporary files of Sagewai's writers, left by a crash: `tempfile` puts 8 random characters in
# place of the ?.
_LEFTOVERS = (
    "tmp????????.tmp",
    ".connections.????????.tmp",
    ".profiles.????????.tmp",
)
_LEFTOVER_DIRECTORIES = ("", "config", "secrets")
_SQLITE_SCHEMES = ("sqlite", "sqlite+aiosqlite", "sqlite+pysqlite")


class Kind(str, Enum):
    """The kind of a file of a home, which decides how it is backed up and with which mode."""

    DATABASE = "database"
    SIDECAR = "sidecar"  # included in the copy of its database
    LOCK = "lock"
    LEFTOVER = "leftover"
    OWN = "own"  # staging and journals of this program
    COMPANION = "companion"  # litestream's directory, also one that is being removed
    KEY = "key"
    SECRET = "secret"  # noqa: S105 - a kind, not a password
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Home:
    """A home and the effective paths of its documents.

    Attributes:
        root: Absolute and resolved; need not exist.
        overrides: Variable -> path, for each document that a variable moves out of `root`.
        server_url_variable: The variable that moves Sagewai's tables to a database server, or "".
        named: The path that the user named, absolute; resolves to `root`.
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
        """The default snapshot directory, next to the home and not in it."""
        return self.root.with_name(self.root.name + ".snapshots")


def locate(home: Path | None, environment: Mapping[str, str]) -> Home:
    """Return the home and the effective path of each document, by the rules of Sagewai.

    Args:
        home: None for that of the environment.
        environment: The variables, such as `os.environ`.

    Raises:
        NotFoundError: `~` cannot be expanded, because HOME is not set.
        UsageError: It is `/`.
    """
    chosen = str(home) if home is not None else environment.get("SAGEWAI_HOME") or "~/.sagewai"
    named = Path(_expand_user(chosen, environment)).absolute()
    root = Path(os.path.realpath(named))
    if root.parent == root:
        raise UsageError(f"home {root}: the root of all directories", hint="sagewai-ops --home DIR")
    overrides: dict[str, Path] = {}

    def effective(variable: str, standard: str, *, expand: bool) -> Path:
        value = environment.get(variable)
        if not value:
            return root / standard
        path = Path(os.path.abspath(_expand_user(value, environment) if expand else value))
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
    """Check that the home exists.

    Raises:
        NotFoundError: It does not exist or is not a directory.
    """
    if not home.root.is_dir():
        state = "not a directory" if home.root.exists() else "not found"
        raise NotFoundError(
            f"home {home.root}: {state}",
            hint=f"sagewai-ops --home {shell_word(home.root)} init  # or another home: --home DIR",
        )


def require_files(home: Home) -> None:
    """Check that the home exists, and that it is one: for a snapshot of it.

    Raises:
        NotFoundError: It does not exist, or is a directory without any of Sagewai's files.
    """
    require(home)
    if not is_home(home):
        raise NotFoundError(
            f"home {home.root}: contains none of Sagewai's files",
            hint=f"findmnt --target {shell_word(home.root)}  # is its file system mounted?\n"
            f"a new home: sagewai-ops --home {shell_word(home.root)} init",
        )


def is_home(home: Home) -> bool:
    """Return whether a directory contains one of Sagewai's files, or all of its directories.

    Directories alone could be those of another program; two are enough where nothing else is. One
    that cannot be read counts.
    """
    root = os.fspath(home.root)
    if any(os.path.lexists(os.path.join(root, path)) for path in _OWN_PATHS):
        return True
    try:
        return (
            any(
                name.startswith(tuple(LEGACY_PLACES))  # also their locks, copies and former keys
                for directory in ("", "config", "secrets")
                for name in _names(root, directory)
            )
            or any(name.endswith(".json") for name in _names(root, "fleet"))
            or _has_only_parts(root)
        )
    except PermissionError:
        return True


def _has_only_parts(root: str) -> bool:
    names = {name for name in _names(root, "") if not name.startswith(OWN_PREFIX)}
    parts = {name for name in names.intersection(PARTS) if os.path.isdir(os.path.join(root, name))}
    return len(parts) == len(PARTS) or (len(parts) > 1 and parts == names)


def _names(root: str, directory: str) -> list[str]:
    try:
        return os.listdir(os.path.join(root, directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def kind_of(relative: str) -> Kind:
    """Return the kind of the file at a path relative to its home."""
    directory, _, name = relative.rpartition("/")
    if relative.split("/", 1)[0].startswith(OWN_PREFIX):
        return Kind.OWN
    if relative.startswith((COMPANION, _DISCARDED)):
        top = "/".join(relative.split("/", 2)[:2])
        if top in (COMPANION, _DISCARDED):
            return Kind.COMPANION
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
    return Kind.SECRET if _has_secrets(directory, name) else Kind.OTHER


Layout: TypeAlias = Literal["canonical", "flat", "mixed", "empty"]


def layout_of(root: Path) -> Layout:
    """Return the layout; `flat` has its four files at the root, `mixed` has some of both."""
    flat = any(os.path.lexists(root / name) for name in LEGACY_PLACES)
    canonical = any(os.path.lexists(root / place) for place in LEGACY_PLACES.values())
    if flat and canonical:
        return "mixed"
    if flat:
        return "flat"
    return "canonical" if canonical or (root / "db").is_dir() else "empty"


def _has_secrets(directory: str, name: str) -> bool:
    top = directory.split("/", 1)[0]
    if top == "secrets":
        return True
    if directory in ("config", "fleet"):
        return ".json" in name
    return directory == "" and any(
        name == legacy or name.startswith(legacy + ".bak-") for legacy in LEGACY_PLACES
    )


def _expand_user(value: str, environment: Mapping[str, str]) -> str:
    if not re.match(r"~(/|$)", value):
        return os.path.expanduser(value)
    user_home = environment.get("HOME") or os.path.expanduser("~")
    if user_home.startswith("~"):
        raise NotFoundError(
            f"home {value}: cannot expand ~, HOME is not set",
            hint="sagewai-ops --home DIR",
        )
    return user_home + value[1:]


def _sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLAlchemy URL of SQLite, or None for the URL of a server."""
    scheme = url.partition("://")[0]
    if scheme not in _SQLITE_SCHEMES:
        return None
    # sqlite:///relative, sqlite:////absolute: the path begins after the third slash.
    path = unquote(urlsplit(url).path)[1:]
    return Path(os.path.abspath(path)) if path else None
