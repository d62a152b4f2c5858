"""Alembic, run from code: our scripts on a connection that is open, or as SQL on paper.

Nothing here begins, commits or locks: the caller's transaction holds all revisions of a run.
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
Applied = Callable[[str], None]  # told the id of each revision that was applied or taken back


async def migrate(
    connection: AsyncConnection, target: str, *, down: bool = False, applied: Applied | None = None
) -> None:
    """Run the revisions between where a database stands and the target, in one transaction.

    The transaction is the caller's when one is open on the connection.

    Args:
        connection: To PostgreSQL; `alembic_version` is looked for in its current schema.
        target: A revision, or `base`.
        down: Take revisions back instead of applying them.
        applied: Told after each.
    """
    await connection.run_sync(_migrate, target, down=down, applied=applied)


def format_sql(start: Collection[str], target: str, *, down: bool = False) -> str:
    """Spell the SQL that leads from one revision to another, transaction included.

    Args:
        start: Where the database stands: no revision, one, or both 006.
        target: A revision, or `base`.
        down: The target lies before the start.
    """
    from alembic import command

    lines, origin = io.StringIO(), tuple(start) or (revision_graph.BASE,)
    span = f"{origin[0]}:{target}"  # Alembic takes one start at most here; env.py tells it all
    with ExitStack() as stack:
        config = _config(stack, lines)
        config.attributes["start"] = origin
        if down:
            command.downgrade(config, span, sql=True)
        else:
            command.upgrade(config, span, sql=True)
    # A way back to the base leaves the table, without rows.
    return lines.getvalue().replace(_CREATE, "CREATE TABLE IF NOT EXISTS alembic_version", 1)


def read_descriptions() -> dict[str, str]:
    """Say what each revision does, in the first line of its script."""
    from alembic.script import ScriptDirectory

    with ExitStack() as stack:
        scripts = ScriptDirectory.from_config(_config(stack, io.StringIO()))
        return {script.revision: script.doc.splitlines()[0] for script in scripts.walk_revisions()}


def _migrate(connection: Connection, target: str, *, down: bool, applied: Applied | None) -> None:
    from alembic import command

    def told(*, step: object, **_details: object) -> None:
        if applied:
            applied(str(getattr(step, "up_revision_id", "")))

    with ExitStack() as stack:
        config = _config(stack, io.StringIO())
        config.attributes["connection"] = connection
        config.attributes["on_version_apply"] = told
        if down:
            command.downgrade(config, target)
        else:
            command.upgrade(config, target)


def _config(stack: ExitStack, output: io.StringIO) -> Config:
    from alembic.config import Config

    directory = stack.enter_context(resources.as_file(resources.files("sagewai_ops.migrations")))
    config = Config(output_buffer=output, stdout=output)
    # Alembic's configuration interpolates: a bare % in the path would be an error.
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    return config
