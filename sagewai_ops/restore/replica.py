"""Restore the database from litestream's replica, and everything else from a snapshot.

A replica is seconds old where a snapshot is a night old, but has neither files nor keys. The two
are combined if they belong together: the same schema, encrypted values under the key of the
snapshot, and no table that lost most of its rows: an empty database has no value that a key could
fail to open.
"""

import contextlib
from pathlib import Path

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.sqlite.litestream import Replica, ReplicaState, restore_replica
from sagewai_ops.database.sqlite.read_transaction import open_frozen
from sagewai_ops.database.sqlite.schema_objects import find_unexpected
from sagewai_ops.errors import DamagedError, DifferenceError, UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.home.paths import OWN_PREFIX, SIDECAR_SUFFIXES, Home
from sagewai_ops.keys.trial_decryption import try_keys
from sagewai_ops.restore.companions import require_recent
from sagewai_ops.restore.key_check import check_database_key
from sagewai_ops.restore.plan import RestoreOptions
from sagewai_ops.schema import sqlite_head
from sagewai_ops.snapshots.database_check import DatabaseFacts, examine_database
from sagewai_ops.snapshots.quality import Content, compare
from sagewai_ops.text import listed, printable

_SHOWN = 3  # tables that lost rows


def replace_database(
    reader: ArchiveReader, replica: Replica, target: Home, staged: Home, options: RestoreOptions
) -> tuple[DatabaseFacts, ReplicaState, tuple[str, ...]]:
    """Put the database of a replica in the place of the one from the snapshot, in the staged home.

    Returns:
        (its check; the state that was restored; warnings about its schema).

    Raises:
        DamagedError: It is damaged.
        DifferenceError: Its schema is not that of the snapshot, it lacks rows, or it is older.
        KeyMissingError: The key of the snapshot does not open its encrypted values.
        OpsError: As `litestream.restore_replica`.
    """
    place = staged.database
    if not beneath.is_file(place):
        raise UsageError(
            f"snapshot {reader.header.id}: its database is not at {place.name} of the home",
            hint="sagewai-ops restore ...  # without --database-from",
        )
    fresh = place.with_name(f"{OWN_PREFIX}replica")
    state = restore_replica(replica, fresh)
    require_recent(reader, replica, state)
    report = examine_database(fresh)
    if report.integrity:
        raise DamagedError(
            f"{replica.shown}: database damaged, {report.integrity[0]:.200}",
            hint="sagewai-ops restore ...  # without --database-from",
        )
    _require_same_schema(reader, replica, report)
    check_database_key(reader, fresh, target, staged, options, replica.shown)
    if not options.accept_change:
        _require_same_content(reader, replica, place, fresh, report)
    with open_frozen(fresh) as connection:
        warnings = [str(item) for item in find_unexpected(connection, sqlite_head.tables())]
    known = reader.manifest.facts["database"].get("unknown_tables", ())
    if new := sorted({*report.unknown_tables} - {*known}):
        warnings.append(f"tables that Sagewai and the snapshot do not have: {listed(new)}")
    with translate_os_errors(place):
        status = beneath.status(place)
        set_owner(fresh, status.st_uid, status.st_gid)
        for suffix in SIDECAR_SUFFIXES:
            for path in (place, fresh):
                with contextlib.suppress(FileNotFoundError):
                    beneath.unlink(path.with_name(path.name + suffix))
        beneath.rename(fresh, place)
    return report, state, tuple(f"{replica.shown}: {text}" for text in warnings)


def _require_same_content(
    reader: ArchiveReader, replica: Replica, place: Path, fresh: Path, report: DatabaseFacts
) -> None:
    """Refuse the database of another home, and one that was created again after a disaster."""
    recorded = reader.manifest.facts["database"].get("tables", {})
    changes = list(compare(Content(tables=recorded), Content(tables=report.tables)))
    if (sealed := try_keys({}, place, ()).total) and not try_keys({}, fresh, ()).total:
        changes.append(f"no encrypted value, had {sealed}")
    if changes:
        raise DifferenceError(
            f"{replica.shown}: compared with snapshot {reader.header.id}:"
            f" {listed(changes, _SHOWN)}; nothing was changed",
            hint="choose a moment before: --database-from litestream:TIMESTAMP\n"
            "or, if it is intended: --accept-change",
        )


def _require_same_schema(reader: ArchiveReader, replica: Replica, report: DatabaseFacts) -> None:
    recorded = reader.manifest.facts["database"]
    wanted = tuple(str(recorded.get(name, "")) for name in ("schema_level", "schema_state"))
    found = (report.schema_level, report.schema_state)
    if found != wanted:
        level, state = (printable(text) or "none" for text in wanted)
        raise DifferenceError(
            f"{replica.shown}: schema at {found[0] or 'no revision'} ({found[1]}), that of snapshot"
            f" {reader.header.id} at {level} ({state}): not combined, nothing was changed",
            hint="choose a moment before the change: --database-from litestream:TIMESTAMP",
        )
