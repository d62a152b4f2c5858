"""litestream in the plan of a restore: its directory in the target, the state of its replica."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import UsageError
from sagewai_ops.home.companions import removal_note
from sagewai_ops.home.paths import COMPANION, DATABASE
from sagewai_ops.snapshots.member_paths import is_within

if TYPE_CHECKING:
    from sagewai_ops.database.sqlite.litestream import Replica, ReplicaState


def companion_warnings(root: Path, replaced: tuple[str, ...] | None) -> Iterator[str]:
    """Yield the remark about litestream's directory, which is kept with what is replaced."""
    is_replaced = replaced is None or any(is_within(COMPANION, path) for path in replaced)
    if is_replaced and os.path.lexists(root / COMPANION):
        yield removal_note(str(root / COMPANION))


def plan_replica(
    reader: ArchiveReader, replica: "Replica | None", parts: tuple[str, ...]
) -> "ReplicaState | None":
    """Return the state of the replica that a restore takes the database from; None without one.

    Args:
        parts: Those to restore; empty for all.

    Raises:
        UsageError: The snapshot has no such database, or it is not restored.
        OpsError: As `litestream.read_state`.
    """
    if replica is None:
        return None
    if parts and not any(is_within(DATABASE, part) for part in parts):
        raise UsageError("--database-from: needs db/, which is not restored", hint="--only db,...")
    if not reader.manifest.facts.get("database") or reader.header.facts.get("engine") not in (
        None,
        "sqlite",
    ):
        raise UsageError(
            f"snapshot {reader.header.id}: has no SQLite database, which a replica could replace",
            hint="sagewai-ops restore ...  # without --database-from",
        )
    from sagewai_ops.database.sqlite.litestream import read_state

    return read_state(replica)
