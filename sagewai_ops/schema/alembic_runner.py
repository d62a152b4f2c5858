"""Run Alembic on an open connection, or write its statements as SQL.

Nothing here begins, commits or locks: all revisions of a run are in the caller's transaction.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from contextlib import ExitStack
from importlib import resources
from typing import TYPE_CHECKING

from sagewai_ops.schema import revision_graph

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

_CREATE = "CREATE TABLE alembic_version"
Applied = Callable[[str], None]  # called with the id of each revision after it ran


async def migrate(
    connection: AsyncConnection, target: str, *, down: bool = False, applied: Applied | None = None
) -> None:
    """Run the revisions between the database's and the target, in the caller's transaction.

    Args:
        connection: To PostgreSQL; `alembic_version` is read in its current schema.
        target: A revision, or `base`.
        down: Revert revisions instead of applying them.
        applied: Called after each.
    """
    await connection.run_sync(_migrate, target, down=down, applied=applied)


def format_sql(start: Collection[str], target: str, *, down: bool = False) -> str:
    """Return the SQL from one revision to another, transaction included.

    Args:
        start: The database's revisions: none, one, or both 006.
        target: A revision, or `base`.
        down: The target is before the start.
    """
    from alembic import command

    lines, origin = io.StringIO(), tuple(start) or (revision_graph.BASE,)
    span = f"{origin[0]}:{target}"  # Alembic accepts one start; env.py passes both
    with ExitStack() as stack:
        config = _config(stack, lines)
        config.attributes["start"] = origin
        if down:
            command.downgrade(config, span, sql=True)
        else:
            command.upgrade(config, span, sql=True)
    # A downgrade to the base keeps the table, without rows.
    return lines.getvalue().replace(_CREATE, "CREATE TABLE IF NOT EXISTS alembic_version", 1)


def read_descriptions() -> dict[str, str]:
    """Return the first line of each revision's docstring, by its id."""
    from alembic.script import ScriptDirectory

    with ExitStack() as stack:
        scripts = ScriptDirectory.from_config(_config(stack, io.StringIO()))
        return {script.revision: script.doc.splitlines()[0] for script in scripts.walk_revisions()}


def _migrate(connection: Connection, target: str, *, down: bool, applied: Applied | None) -> None:
    from alembic import command

    def report(*, step: object, **_details: object) -> None:
        if applied:
            applied(str(getattr(step, "up_revision_id", "")))

    with ExitStack() as stack:
        config = _config(stack, io.StringIO())
        config.attributes["connection"] = connection
        config.attributes["on_version_apply"] = report
        if down:
            command.downgrade(config, target)
        else:
            command.upgrade(config, target)


def _config(stack: ExitStack, output: io.StringIO) -> Config:
    from alembic.config import Config

    directory = stack.enter_context(resources.as_file(resources.files("sagewai_ops.migrations")))
    config = Config(output_buffer=output, stdout=output)
    # Alembic's configuration interpolates: a single % in the path would be an error.
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    return config
