"""litestream in the plan of a restore: its directory in the target, the state of its replica."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DifferenceError, UsageError
from sagewai_ops.home.companions import removal_note
from sagewai_ops.home.paths import COMPANION, DATABASE
from sagewai_ops.snapshots.member_paths import is_within
from sagewai_ops.text import printable

if TYPE_CHECKING:
    from sagewai_ops.database.sqlite.litestream import Replica, ReplicaState
    from sagewai_ops.restore.plan import RestoreOptions

_WITHOUT = "sagewai-ops restore ...  # without --database-from"


def companion_warnings(
    root: Path, replaced: tuple[str, ...] | None, replica: "Replica | None" = None
) -> Iterator[str]:
    """Yield remarks about the replica, and the directory, kept with what is replaced."""
    if replica:
        yield f"the database is that of {replica.shown}, which nothing authenticates"
    is_replaced = replaced is None or any(is_within(COMPANION, path) for path in replaced)
    if is_replaced and os.path.lexists(root / COMPANION):
        yield removal_note(str(root / COMPANION))


def plan_replica(
    reader: ArchiveReader, options: "RestoreOptions", parts: tuple[str, ...]
) -> "ReplicaState | None":
    """Return the state of the replica that a restore takes the database from; None without one.

    Args:
        parts: Those to restore; empty for all.

    Raises:
        UsageError: The snapshot has no such database, it is not restored, or the options require
            that everything is authentic.
        DifferenceError: As `require_recent`.
        OpsError: As `litestream.read_state`.
    """
    replica = options.replica
    if replica is None:
        return None
    if options.require_authentic:
        raise UsageError(
            "--require-authentic: contradicts --database-from: a replica is not authenticated",
            hint=_WITHOUT,
        )
    if parts and not any(is_within(DATABASE, part) for part in parts):
        raise UsageError("--database-from: needs db/, which is not restored", hint="--only db,...")
    if not reader.manifest.facts.get("database") or reader.header.facts.get("engine") not in (
        None,
        "sqlite",
    ):
        raise UsageError(
            f"snapshot {reader.header.id}: has no SQLite database, which a replica could replace",
            hint=_WITHOUT,
        )
    from sagewai_ops.database.sqlite.litestream import read_state

    state = read_state(replica)
    require_recent(reader, replica, state)
    return state


def require_recent(reader: ArchiveReader, replica: "Replica", state: "ReplicaState") -> None:
    """Check that a replica is not older than what it replaces, unless its moment was named.

    Raises:
        DifferenceError: Its last change is before the snapshot, or long before the moment that was
            named, and it has none after it.
    """
    from sagewai_ops.database.sqlite.litestream import parse_moment

    if state.is_behind:
        raise DifferenceError(
            f"{replica.shown}: its last change is at {printable(state.at)}, it may not reach to"
            " that moment; nothing was changed",
            hint=f"name what it has: --database-from litestream:{state.next_moment}",
        )
    created = parse_moment(str(reader.header.facts.get("created_at", "")))
    if replica.moment or created is None or state.moment is None or state.moment >= created:
        return
    raise DifferenceError(
        f"{replica.shown}: its last change is at {printable(state.at)}, before snapshot"
        f" {reader.header.id}, whose database is newer; nothing was changed",
        hint=f"{_WITHOUT}\nor name the moment: --database-from litestream:{state.next_moment}",
    )
