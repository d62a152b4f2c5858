"""Undo the last restore, or finish an interrupted one."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.sessions import require_home_unused
from sagewai_ops.database.sqlite.companions import find_companions, remove_companions
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.companions import removal_note
from sagewai_ops.home.paths import DATABASE, Home
from sagewai_ops.home.server_record import resolve_database
from sagewai_ops.records import dataclass
from sagewai_ops.schema.postgres_replaced import has_schema, replaced_schema
from sagewai_ops.swap import pending, swap

if TYPE_CHECKING:
    from sagewai_ops.restore.server import ServerRestore


@dataclass(frozen=True, slots=True)
class UndoReport:
    """The undo of a restore.

    Attributes:
        restored_from: The kept directory that is the home again.
        previous: Where the replaced home is kept; None in a dry run.
        notes: Remarks, one line each.
    """

    restored_from: Path
    previous: Path | None
    notes: tuple[str, ...] = ()


def undo_restore(
    target: Home,
    environment: Mapping[str, str] | None = None,
    *,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> UndoReport:
    """Exchange the home with the one from before the last restore; a second undo reverts the first.

    Args:
        environment: Names the server of the home's tables.

    Raises:
        NotFoundError: No restore kept a previous home.
        TargetBusyError: The home is in use.
        LockedError: The home is locked by another run, or a restore was interrupted.
    """
    with contextlib.ExitStack() as stack:
        if target.root.is_dir():
            stack.enter_context(locks.exclusive(target.root, wait_seconds=wait_seconds))
        pending.require_settled(target.root)
        if not dry_run:
            pending.sweep(target.root)
        kept = swap.kept_before(target.root)
        if not kept:
            raise NotFoundError(
                f"home {target.root}: no previous home found next to it or in it",
                hint="sagewai-ops restore SNAPSHOT --replace",
            )
        require_home_unused(target, environment or {}, target.root / DATABASE)
        notes = tuple(removal_note(str(path)) for path in find_companions(kept[-1] / DATABASE))
        if dry_run:
            return UndoReport(kept[-1], None, notes)
        moment = swap.next_moment(target.root)
        server = _undo_server(stack, target, environment or {}, kept[-1], moment)
        with translate_os_errors(kept[-1]):
            remove_companions(kept[-1] / DATABASE)
        return UndoReport(*swap.undo(target.root, kept[-1], moment, server), notes)


def _undo_server(
    stack: contextlib.ExitStack,
    target: Home,
    environment: Mapping[str, str],
    kept: Path,
    moment: str,
) -> "ServerRestore | None":
    """Open the transaction that undoes the restore's part on the home's server; None without one.

    Raises:
        OpsError: As `open_server_restore`.
    """
    url = resolve_database(target, environment)
    replaced = replaced_schema(swap.moment_of(kept))
    if not isinstance(url, PostgresUrl) or not has_schema(url, replaced):
        return None
    from sagewai_ops.restore.server import open_server_restore

    session = stack.enter_context(open_server_restore(url, replaced_schema(moment), replace=True))
    session.exchange(replaced)
    return session
