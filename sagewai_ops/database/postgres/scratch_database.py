"""A database of this run alone on a server: created, used and dropped.

No existing database is changed. Its name has the time of its creation: what a killed run left is
dropped by the next one that uses the server an hour later.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from sagewai_ops.database.postgres.connection import keep_connection, open_transaction, pin_settings
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import OpsError, PermissionDeniedError
from sagewai_ops.process.signals import run_interruptibly, uninterrupted

_MOMENT = "%Y%m%dt%H%M%Sz"
_NAME = re.compile(r"sagewai_drill_(\d{8}t\d{6}z)_[0-9a-f]{6}")
_LIVE = timedelta(hours=1)  # a live run may have no session for moments, never for so long
_ABOUT = """
SELECT r.rolcreatedb OR r.rolsuper AS may_create,
  ARRAY(SELECT d.datname::text FROM pg_catalog.pg_database d WHERE d.datdba = r.oid
    AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity a WHERE a.datid = d.oid)) AS unused
FROM pg_catalog.pg_roles r WHERE r.rolname = current_user
"""
# Those that the owner of a database may create: their authors vouch that it gains no rights.
_TRUSTED = """
SELECT a.name::text FROM pg_catalog.pg_available_extensions a
JOIN pg_catalog.pg_available_extension_versions v
  ON v.name = a.name AND v.version = a.default_version
WHERE v.trusted AND a.installed_version IS NULL AND a.name = ANY ($1::name[])
"""


@contextlib.contextmanager
def create_scratch_database(
    url: PostgresUrl, on_kept: Callable[[str], None]
) -> Iterator[PostgresUrl]:
    """Create an empty database on a server for the block.

    Args:
        url: Any database of the server; it is only connected to.
        on_kept: Called at the end if the database could not be dropped, with the reason.

    Returns:
        The URL of the new database.

    Raises:
        PermissionDeniedError: The role may not create databases.
        RemoteError, NotFoundError, UsageError: The server cannot be used.
    """
    moment = f"{datetime.now(timezone.utc):{_MOMENT}}"
    name = f"sagewai_drill_{moment}_{secrets.token_hex(3)}"
    made = replace(url, database=name)
    try:
        run_interruptibly(_create, url, name)
        yield made
    finally:
        with uninterrupted():
            try:
                run_interruptibly(_drop, url, name)
            except OpsError as error:
                on_kept(f"database {name}: not dropped, {error.message}")


async def create_extensions(url: PostgresUrl, names: Iterable[str]) -> None:
    """Create the extensions of these names that an owner may create, and that the server has.

    Raises:
        OpsError: The server cannot be used.
    """
    import asyncpg

    async with open_transaction(url) as connection:
        found = await connection.fetch(_TRUSTED, list(names))
        for (name,) in found:
            with contextlib.suppress(asyncpg.PostgresError):  # then a table that needs it fails
                async with connection.transaction():
                    await connection.execute(f"CREATE EXTENSION {quoted(name)} CASCADE")


async def _create(url: PostgresUrl, name: str) -> None:
    import asyncpg

    async with keep_connection(url) as connection:
        async with connection.transaction(readonly=True):
            await pin_settings(url, connection)
            about = await connection.fetchrow(_ABOUT)
        if about is None or not about["may_create"]:
            raise PermissionDeniedError(
                f"{url.display}: the role may not create a database",
                hint='psql URL -c "ALTER ROLE NAME CREATEDB"  # as a superuser',
            )
        for leftover in filter(_is_leftover, about["unused"]):
            with contextlib.suppress(asyncpg.PostgresError):  # another run was faster
                await connection.execute(f"DROP DATABASE {quoted(leftover)}")
        await connection.execute(
            f"CREATE DATABASE {quoted(name)} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
        )


async def _drop(url: PostgresUrl, name: str) -> None:
    async with keep_connection(url) as connection:
        await connection.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


def _is_leftover(name: str) -> bool:
    match = _NAME.fullmatch(name)
    if not match:
        return False
    with contextlib.suppress(ValueError):
        created = datetime.strptime(match[1], _MOMENT).replace(tzinfo=timezone.utc)
        return datetime.now(timezone.utc) - created > _LIVE
    return False
