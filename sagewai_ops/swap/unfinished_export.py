"""The part of an unfinished resumable export that is next to the home: its frozen copy and state.

Both are in one private directory, which gets its name when they are complete and loses it when the
export is committed or abandoned; until then it is a temporary directory as any other. The rows that
the server has are bound to it by `Unfinished.id` and the digest of the copy.
"""

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sagewai_ops.errors import DamagedError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.fs.trust import require_trusted_directory
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

COPY = "copy.db"
_STATE = "state.json"
TEMPORARY = f"{OWN_PREFIX}export-"  # begins the names of what a later run removes
_PREFIX = "sagewai-ops-incoming-"
_NAME = re.compile(re.escape(_PREFIX) + "[0-9a-f]{8}")
_KIND = "resumable export"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A resumable export that was begun.

    Attributes:
        id: Random; the server's schema has it too.
        home, target: Its path, and host, port and database of the URL.
        policy, learnings: Its options.
        program: Our version: another one may convert values otherwise.
        started_at: UTC, ISO 8601.
        copy_sha256: Of the frozen copy, with its repairs: `content_digest.digest_copy`.
        home_sha256: Of the home's database, the same without repairs.
        home_files: Of it, `content_digest.read_files`; empty if they do not show every change.
        plan: The tables to be sent, as `mapping.plan.as_job` describes them.
        base: The same before repairs; empty if there were none.
        left: By table, the columns that get their defaults.
        empty, notes: Of the plan.
        findings, plan_findings: As `Finding` has them.
        indexes: By table, the statements that create its indexes.
        foreign_keys: The statements that create the foreign keys.
        searched: By table, the columns that have an index.
    """

    id: str
    home: str
    target: str
    policy: str
    learnings: str
    program: str
    started_at: str
    copy_sha256: str
    home_sha256: str
    home_files: Sequence[Sequence[int]]
    plan: Sequence[Mapping[str, Any]]
    base: Sequence[Mapping[str, Any]]
    left: Mapping[str, Sequence[str]]
    empty: Sequence[str]
    notes: Sequence[str]
    findings: Sequence[Mapping[str, Any]]
    plan_findings: Sequence[Mapping[str, Any]]
    indexes: Mapping[str, Sequence[str]]
    foreign_keys: Sequence[str]
    searched: Mapping[str, Sequence[str]]

    @property
    def binding(self) -> str:
        """What the server's schema has to be bound to, as a text."""
        names = ("id", "home", "target", "policy", "learnings", "program", "copy_sha256")
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)


def directory_of(root: Path, parent: Path) -> Path:
    """Return the directory of a home's unfinished export.

    Args:
        parent: The directory for the home's exports, or one that was chosen.
    """
    return parent / f"{_PREFIX}{hashlib.sha256(bytes(root)).hexdigest()[:8]}"


def is_directory_name(path: str) -> bool:
    """Return whether a path is one of `directory_of`."""
    return path.startswith("/") and _NAME.fullmatch(Path(path).name) is not None


def write_state(directory: Path, state: Unfinished) -> None:
    """Write the state next to the copy, durably.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    document = {
        "format": fs_journal.FORMAT,
        "version": fs_journal.VERSION,
        "kind": _KIND,
        "content": asdict(state),
    }
    atomic.replace(directory / _STATE, json.dumps(document).encode("ascii"))


def keep(temporary: Path, directory: Path) -> None:
    """Rename the temporary directory with copy and state, durably.

    Raises:
        PermissionDeniedError: Another user can put a directory there.
        OpsError: The system refused.
    """
    require_trusted_directory(directory.parent)
    with translate_os_errors(directory):
        beneath.rename(temporary, directory)
        beneath.sync_directory(directory.parent)


def exists(directory: Path) -> bool:
    """Return whether there is an unfinished export."""
    return beneath.exists(directory)


def read_state(directory: Path) -> Unfinished | None:
    """Return the unfinished export of a directory; None without one.

    Raises:
        DamagedError: Its state is unusable.
        PermissionDeniedError: Another user may have put it there.
        OpsError: It cannot be read.
    """
    if not exists(directory):
        return None
    require_trusted_directory(directory.parent)
    path = directory / _STATE
    try:
        with translate_os_errors(path):
            fs_journal.require_own_directory(directory)
        content = fs_journal.read(path, _KIND)
        return Unfinished(**content)
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"{path}: unusable, {error}", hint=f"rm -r {shell_word(directory)}  # and --abandon"
        ) from error


def remove(directory: Path) -> None:
    """Remove copy and state, if they exist; after a kill in between, the next run sweeps the rest.

    Raises:
        OpsError: The system refused.
    """
    with translate_os_errors(directory), contextlib.suppress(FileNotFoundError):
        temporary = directory.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")
        beneath.rename(directory, temporary)
        remove_tree(temporary)
