"""Restore the database from litestream's replica, and everything else from a snapshot.

A replica is seconds old where a snapshot is a night old, but has neither files nor keys. The two
are combined if they belong together: the same schema, and encrypted values under the key of the
snapshot.
"""

import contextlib

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.sqlite.litestream import Replica, restore_replica
from sagewai_ops.errors import DamagedError, DifferenceError, UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.home.paths import OWN_PREFIX, SIDECAR_SUFFIXES, Home
from sagewai_ops.restore.key_check import check_database_key
from sagewai_ops.restore.plan import RestoreOptions
from sagewai_ops.snapshots.database_check import DatabaseReport, examine_database
from sagewai_ops.text import printable


def replace_database(
    reader: ArchiveReader, replica: Replica, target: Home, staged: Home, options: RestoreOptions
) -> DatabaseReport:
    """Put the database of a replica in the place of the one from the snapshot, in the staged home.

    Raises:
        DamagedError: It is damaged.
        DifferenceError: Its schema is not that of the snapshot.
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
    restore_replica(replica, fresh)
    report = examine_database(fresh)
    if report.integrity:
        raise DamagedError(
            f"{replica.shown}: database damaged, {report.integrity[0]:.200}",
            hint="sagewai-ops restore ...  # without --database-from",
        )
    _require_same_schema(reader, replica, report)
    check_database_key(reader, fresh, target, staged, options, replica.shown)
    with translate_os_errors(place):
        status = beneath.status(place)
        set_owner(fresh, status.st_uid, status.st_gid)
        for suffix in SIDECAR_SUFFIXES:
            for path in (place, fresh):
                with contextlib.suppress(FileNotFoundError):
                    beneath.unlink(path.with_name(path.name + suffix))
        beneath.rename(fresh, place)
    return report


def _require_same_schema(reader: ArchiveReader, replica: Replica, report: DatabaseReport) -> None:
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
