"""The database of a server in a drill: the server that it is restored to, and its checks there.

It is a database of its own on the server of `--scratch-url`, else on a private server, if a
PostgreSQL is installed on this machine; never an existing database. The restore is that of
`restore --database-url`: it compares every row with the manifest.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sagewai_ops.database.postgres.private_server import (
    choose_installation,
    find_installations,
    start_private_server,
)
from sagewai_ops.database.postgres.scratch_database import (
    create_extensions,
    create_scratch_database,
)
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DifferenceError,
    ExtensionMissingError,
    OpsError,
    RemoteError,
    SchemaBehindError,
    UsageError,
)
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema import migrate_postgres
from sagewai_ops.schema.check_postgres import check_postgres
from sagewai_ops.schema.migrate_postgres import Migration
from sagewai_ops.snapshots.scratch import scratch_directory
from sagewai_ops.snapshots.server_database import ServerFacts
from sagewai_ops.text import printable

_NO_SERVER = "no server: no PostgreSQL is installed here, and no --scratch-url is given"
_PRIVATE = re.compile(r"postgresql://\w+@%2Fproc%2Fself%2Ffd%2F\d+:\d+/\w+")
# Of `db check`; what differs from the head otherwise is the user's own.
_BROKEN = ("index", "sequence")


@dataclass(frozen=True, slots=True)
class DrillServer:
    """Where the database of a snapshot is restored.

    Attributes:
        url: An empty database; None if there is no server.
        reason: Of a missing server.
        is_failed: A server was found, but could not be used.
        is_older: Its major version is older than that of the snapshot's server.
    """

    url: PostgresUrl | None = None
    reason: str = ""
    is_failed: bool = False
    is_private: bool = False
    is_older: bool = False

    def is_cause(self, error: OpsError) -> bool:
        """Return whether this server, not the snapshot, is the cause of a failed restore."""
        if isinstance(error, ExtensionMissingError):
            return True
        if not self.is_private:
            return False
        # A statement that an older server does not know.
        is_refused = error.__cause__ is not None and isinstance(
            error, (DifferenceError, UsageError)
        )
        return isinstance(error, RemoteError) or (self.is_older and is_refused)


@dataclass(frozen=True, slots=True)
class ServerDrillResult:
    """The database of a server, as it was restored to the server of the drill.

    Attributes:
        version: Of the drill's server.
        private: Whether this run started it.
        before, after: The revisions.
    """

    version: str
    private: bool
    tables: int
    rows: int
    sequences: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    ran: tuple[str, ...]


def describe_server_drill(
    facts: ServerFacts, version: str, migration: Migration | None, *, is_private: bool
) -> ServerDrillResult:
    """Return the result of a drill on a server.

    Args:
        migration: The upgrade to the head; None if it was created without revisions.
    """
    return ServerDrillResult(
        version=version,
        private=is_private,
        tables=len(facts.tables),
        rows=facts.rows,
        sequences=len(facts.sequences),
        before=migration.before if migration else facts.revision,
        after=migration.after if migration else facts.revision,
        ran=migration.ran if migration else (),
    )


def hide_private_url(message: str) -> str:
    """Return a message without the URL of a private server, which no longer exists."""
    return _PRIVATE.sub("private server", message)


@contextlib.contextmanager
def open_drill_server(
    facts: ServerFacts,
    scratch_url: PostgresUrl | None,
    directory: Path,
    link_directory: Path | None,
    on_kept: Callable[[str], None],
) -> Iterator[DrillServer]:
    """Create an empty database for the block.

    Args:
        facts: What will be restored.
        scratch_url: The server to use; None for a private one.
        directory: Where the directory of a private server is created.
        link_directory: As for `scratch_directory`.
        on_kept: As for `create_scratch_database`.

    Raises:
        RemoteError, PermissionDeniedError, NotFoundError, UsageError: The server of `scratch_url`
            cannot be used.
        NoSpaceError: The private server has no space.
    """
    wanted = _major(facts.version)
    with contextlib.ExitStack() as stack:
        if scratch_url:
            url = stack.enter_context(create_scratch_database(scratch_url, on_kept))
            server = DrillServer(url)
        else:
            installation = choose_installation(find_installations(), wanted)
            if installation is None:
                yield DrillServer(reason=_NO_SERVER)
                return
            place = stack.enter_context(scratch_directory(directory, link_directory))
            try:
                url = stack.enter_context(
                    start_private_server(installation, place, facts.extensions)
                )
            except (RemoteError, OSError) as error:
                reason = error.message if isinstance(error, RemoteError) else f"server: {error}"
                yield DrillServer(reason=reason, is_failed=True)
                return
            server = DrillServer(url, is_private=True, is_older=installation.major < wanted)
        run_interruptibly(create_extensions, url, facts.extensions)
        yield server


def check_sequences(url: PostgresUrl, facts: ServerFacts) -> str:
    """Compare the sequences with those of the snapshot; return the server's version.

    Raises:
        DifferenceError: One has another value.
    """
    return run_interruptibly(_check_sequences, url, facts)


async def _check_sequences(url: PostgresUrl, facts: ServerFacts) -> str:
    from sagewai_ops.database.postgres.connection import open_transaction

    async with open_transaction(url, readonly=True) as connection:
        for sequence in facts.sequences:
            found = await connection.fetchrow(
                f"SELECT last_value, is_called FROM {quoted(sequence.name)}"  # noqa: S608 (quoted)
            )
            if tuple(found) != (sequence.last_value, sequence.is_called):
                raise DifferenceError(
                    f"sequence {printable(sequence.name)} differs from the snapshot,"
                    f" {found['last_value']} instead of {sequence.last_value}"
                )
        return str(await connection.fetchval("SHOW server_version"))


def upgrade_server(
    url: PostgresUrl, progress: Progress | None
) -> tuple[Migration | None, tuple[str, ...]]:
    """Upgrade the restored database to the head, and check it.

    Returns:
        (the upgrade, or None if the tables were created without revisions; the findings).

    Raises:
        DifferenceError, OpsError: The upgrade failed.
    """
    try:
        migration = run_interruptibly(migrate_postgres.upgrade, url, progress=progress)
    except SchemaBehindError as error:
        return None, (f"not upgraded, {error.message}",)
    checked = run_interruptibly(check_postgres, url)
    return migration, tuple(
        finding.shown for finding in checked.findings if finding.kind in _BROKEN
    )


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0
