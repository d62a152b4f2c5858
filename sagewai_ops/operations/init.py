"""Create a Sagewai home, or complete an existing one: directories, a master key, a database.

Existing files are kept and reported. A second run changes nothing.
"""

import base64
import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from sagewai_ops.database.sqlite.connect import open_regular
from sagewai_ops.database.sqlite.read_transaction import MAGIC, resolve_database
from sagewai_ops.errors import OpsError, UsageError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.home.paths import DATABASE, LEGACY_PLACES, PARTS, Home, layout_of
from sagewai_ops.keys.candidates import find_candidates, fingerprint
from sagewai_ops.process.signals import describe_interruption
from sagewai_ops.records import dataclass
from sagewai_ops.schema.create import create_database
from sagewai_ops.swap.pending import require_settled
from sagewai_ops.text import shell_word

# The directories of `data/` that Sagewai's documentation shows; Sagewai creates them when needed.
DATA_PARTS = ("data/artifacts", "data/blueprints", "data/scratch")
_SIDECARS = "(-wal|-shm|-journal)?"  # of a partial database


@dataclass(frozen=True, slots=True)
class InitReport:
    """The created and the kept paths.

    Attributes:
        made: Created paths, relative to the home; "." is the home itself.
        left: Kept paths, each with the reason.
        key_source: The location of the key in use, or "".
        swept: Removed temporary files of a killed run.
    """

    home: Path
    made: tuple[str, ...]
    left: Mapping[str, str]
    key_source: str
    key_fingerprint: str
    warnings: tuple[str, ...]
    swept: tuple[str, ...] = ()


def init_home(
    home: Home,
    environment: Mapping[str, str],
    *,
    with_key: bool = True,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> InitReport:
    """Create a home or complete an existing one.

    Args:
        environment: May contain a master key.
        with_key: Create a key if the home has none.
        dry_run: Create nothing, and report what a run would create.

    Raises:
        UsageError: A path of a directory is not a directory.
        LockedError: Another run has locked the home.
        NoSpaceError, PermissionDeniedError: Not completed; every created file is complete.
    """
    _require_directories(home.root, "", *PARTS)
    require_settled(home.root)
    made: list[str] = []
    make_directory = _make_nothing if dry_run else atomic.make_directory
    left: dict[str, str] = {}
    if not home.root.is_dir():
        make_directory(home.root.parent, mode=0o755)
        make_directory(home.root)
        made.append(".")
    with contextlib.ExitStack() as stack:
        if not dry_run:
            stack.enter_context(locks.exclusive(home.root, wait_seconds=wait_seconds))
            describe_interruption("created files are complete, and a second run creates the others")
        swept = () if dry_run else tuple(_sweep(home))
        for part in (*PARTS, *DATA_PARTS):
            if os.path.lexists(home.root / part):  # a link to a disk that is not mounted, perhaps
                left[part] = "exists"
            else:
                make_directory(home.root / part)
                made.append(part)
        source, key, warnings = _key(home, environment, made, with_key=with_key, dry_run=dry_run)
        # A database outside the home, by an override, is reported with its absolute path.
        database = DATABASE if home.database == home.root / DATABASE else str(home.database)
        if home.server_url_variable:
            left[DATABASE] = f"{home.server_url_variable} names a database server"
        elif os.path.lexists(home.database):
            left[database] = "exists"
            warnings.extend(_problems(home.database))
        else:
            make_directory(home.database.parent)
            if not dry_run:
                create_database(home.database)
            made.append(database)
    if layout_of(home.root) in ("flat", "mixed"):
        names = [name for name in LEGACY_PLACES if (home.root / name).exists()]
        warnings.append(
            f"{home.root}: {', '.join(names)} kept in the older layout; sagewai-ops migrate-layout"
        )
    return InitReport(
        home=home.root,
        made=tuple(made),
        left=left,
        key_source=source,
        key_fingerprint=fingerprint(key) if key else "",
        warnings=tuple(warnings),
        swept=swept,
    )


def _make_nothing(path: Path, *, mode: int = 0) -> None:
    """Replace the creation of a directory in a dry run."""


def _key(
    home: Home, environment: Mapping[str, str], made: list[str], *, with_key: bool, dry_run: bool
) -> tuple[str, bytes, list[str]]:
    """Find the key in use, or create one; never where a file may be a damaged key."""
    candidates = find_candidates(home, environment)
    warnings = [
        f"{candidate.path or candidate.source}: {candidate.problem}; Sagewai would overwrite it "
        "with a new key"
        for candidate in candidates
        if candidate.problem
    ]
    for candidate in candidates:
        if candidate.value:
            return candidate.source, candidate.value, warnings
    if candidates or not with_key or os.path.lexists(home.master_key):
        return "", b"", warnings
    if dry_run:
        made.append("secrets/master.key")
        return "secrets/master.key", b"", warnings
    key = base64.urlsafe_b64encode(secrets.token_bytes(32))
    atomic.replace(home.master_key, key)
    made.append("secrets/master.key")
    return "secrets/master.key", key, warnings


def _problems(database: Path) -> Iterator[str]:
    """Check the first bytes of the database; opening it with SQLite would create side files."""
    try:
        with (
            translate_os_errors(database),
            open(open_regular(resolve_database(database)), "rb") as stream,
        ):
            begin = stream.read(len(MAGIC))
    except OpsError as error:
        yield f"{error.message}; not changed"
    else:
        if begin not in (b"", MAGIC):
            yield f"database {database}: not a SQLite database; not changed"


def _sweep(home: Home) -> Iterator[str]:
    """Remove the partial keys and databases of killed runs; the caller has locked the home."""
    for path in (home.master_key, home.database):
        names = atomic.partial_names(re.escape(path.name)).pattern + _SIDECARS
        for name in sweep_leftovers(path.parent, re.compile(names)):
            yield os.path.relpath(path.parent / name, home.root)


def _require_directories(root: Path, *parts: str) -> None:
    for part in parts:
        path = root / part if part else root
        if os.path.lexists(path) and not path.is_dir():
            raise UsageError(f"{path}: not a directory", hint=f"ls -l {shell_word(path)}")
