"""The journal of an export, between its commit on the server and the record of it in the home.

Before an export commits, it writes here which transaction of which server moves the home's tables.
After a kill in between only the server knows the outcome: `recover`, and the next export, ask it.
Then the record (`home.server_record`) is written, or the journal removed. Each run has a journal of
its own.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from sagewai_ops.database.postgres.transaction import WAIT_SECONDS, ServerTransaction, is_committed
from sagewai_ops.database.url import VARIABLES, PostgresUrl
from sagewai_ops.errors import OpsError, RemoteError, UsageError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.fs.journal import Operation, Recovery
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.fs.trust import require_trusted_directory
from sagewai_ops.home.paths import OWN_PREFIX, Home
from sagewai_ops.home.server_record import ServerRecord, resolve_database, write_server_record
from sagewai_ops.process.signals import incomplete_step, mark_completed
from sagewai_ops.records import dataclass
from sagewai_ops.swap import unfinished_export
from sagewai_ops.text import shell_word

NAME: Operation = "export"
_PREFIX = f"{OWN_PREFIX}export-"
_JOURNALS = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{8}\.json")
_DRAFT = ".draft"
_DRAFTS = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{8}" + re.escape(_DRAFT))
_PARTIALS = atomic.partial_names(_DRAFTS.pattern)
_NOT_COMMITTED = "not committed on the server"


@dataclass(frozen=True, slots=True)
class Journal:
    """An export that is about to commit.

    Attributes:
        record: What the home gets if it was committed.
        unfinished: The directory of a resumable export, which is then removed; "" for none.
    """

    transaction: ServerTransaction
    record: ServerRecord
    unfinished: str = ""


class Recording:
    """The journal of this run; use `recording`.

    Attributes:
        journal: None before it is written.
    """

    def __init__(self, home: Home, *, is_rehearsal: bool) -> None:
        self.journal: Journal | None = None
        self._home = home
        self._path = home.root / f"{_PREFIX}{os.urandom(4).hex()}.json"
        self._is_rehearsal = is_rehearsal
        self._is_left = is_rehearsal
        self._stack = contextlib.ExitStack()

    def write(self, journal: Journal) -> None:
        """Write the journal, durable, right before the commit.

        Raises:
            NoSpaceError, PermissionDeniedError, OpsError: The system refused.
        """
        self.journal = journal
        if not self._is_rehearsal:
            draft = self._path.with_suffix(_DRAFT)
            self._stack.enter_context(fs_journal.recording(self._path, NAME, draft=draft))(
                asdict(journal)
            )

    def complete(self) -> None:
        """Record the server in the home after the commit, and remove the journal.

        Raises:
            NoSpaceError, PermissionDeniedError, OpsError: The system refused, and `recover` can go
                on.
        """
        assert self.journal
        if not self._is_rehearsal:
            self.leave()
            write_server_record(self._home, self.journal.record)
            self._is_left = False

    def leave(self) -> None:
        """Leave the journal to `recover`."""
        self._is_left = True

    def close(self) -> None:
        """Remove the journal, unless it is left, and unlock it."""
        if self.journal and not self._is_left:
            with contextlib.suppress(OSError):  # `recover` removes it
                fs_journal.remove(self._path)
        self._stack.close()


@contextlib.contextmanager
def recording(home: Home, *, is_rehearsal: bool) -> Iterator[Recording]:
    """Yield the journal of this run, which is written later; a rehearsal has none.

    Raises:
        PermissionDeniedError: Nothing can be written to the home, or another user can.
    """
    if not is_rehearsal:
        atomic.require_writable([home.root])
        require_trusted_directory(home.root)
    with contextlib.closing(Recording(home, is_rehearsal=is_rehearsal)) as opened:
        yield opened


def journals(root: Path) -> list[Path]:
    """Return the journals of exports of a home, of live and of dead runs."""
    with contextlib.suppress(OSError):
        return fs_journal.trusted(
            root / name
            for name in sorted(beneath.list_directory(root))
            if _JOURNALS.fullmatch(name)
        )
    return []


def is_pending(path: Path) -> bool:
    """Return whether a journal is that of a dead run; only the server knows its outcome."""
    return not fs_journal.is_live(path)


def sweep(root: Path) -> list[str]:
    """Remove the partial files of dead runs; return their names."""
    return [*sweep_leftovers(root, _PARTIALS), *sweep_leftovers(root, _DRAFTS)]


def recover(home: Home, environment: Mapping[str, str], wait_seconds: float) -> Recovery:
    """Complete the record of a committed export, or remove the journal of one that was not.

    Args:
        environment: Names the server.
        wait_seconds: For the end of the transaction.

    Raises:
        UsageError: It names no server, or another one.
        RemoteError: The server cannot be asked.
        OpsError: As `is_committed`, or the system refused.
    """
    found = _pending(home.root)
    if not found:
        return Recovery()
    url = resolve_database(home, environment)
    if not isinstance(url, PostgresUrl):
        record = _read(found[0]).record
        raise UsageError(
            f"home {home.root}: the pending export is to {record.display}, but neither"
            f" {' nor '.join(VARIABLES)} is set",
            hint=f"export {VARIABLES[0]}=postgresql://USER@HOST/DATABASE  # or --url-file FILE",
        )
    return _recover(home, found[0], url, wait_seconds)


def settle(home: Home, url: PostgresUrl) -> None:
    """Recover what earlier exports of a home left, before another one begins.

    Raises:
        LockedError: Another run has locked the home.
        OpsError: As `recover`.
    """
    sweep(home.root)
    if _pending(home.root):
        with incomplete_step(), locks.exclusive(home.root):
            for path in _pending(home.root):
                _recover(home, path, url, WAIT_SECONDS)


def _recover(home: Home, path: Path, url: PostgresUrl, wait_seconds: float) -> Recovery:
    journal = _read(path)
    try:
        committed = is_committed(url, journal.transaction, wait_seconds)
    except UsageError as error:
        raise UsageError(
            f"home {home.root}: the pending export is to {journal.record.display}; {error.message}",
            hint=error.hint or f"export {VARIABLES[0]}=...  # as then; or --url-file FILE",
        ) from error
    except RemoteError as error:
        raise RemoteError(
            f"home {home.root}: export pending, {error.message}",
            hint=f"{error.next_step}\n"
            f"rm {shell_word(path)}  # if that server no longer exists: the home is unchanged",
        ) from error
    if committed is None:
        raise OpsError(
            f"home {home.root}: export pending, too long ago for {url.display} to know its outcome",
            hint=f"sagewai-ops --home {shell_word(home.root)} export-to-postgres --verify-only\n"
            f"rm {shell_word(path)}  # then sagewai-ops db upgrade if the rows are there",
        )
    mark_completed()
    with translate_os_errors(path):
        if committed:
            write_server_record(home, journal.record)
            if journal.unfinished:
                unfinished_export.remove(Path(journal.unfinished))
        fs_journal.remove(path)
    if committed:
        return Recovery(NAME, "completed")
    return Recovery(NAME, "rolled back", _NOT_COMMITTED)


def _pending(root: Path) -> list[Path]:
    return fs_journal.pending(journals(root), is_pending)


def _read(path: Path) -> Journal:
    content = fs_journal.read(path, NAME)
    try:
        journal = Journal(
            ServerTransaction(**content["transaction"]),
            ServerRecord(**content["record"]),
            content.get("unfinished", ""),
        )
        _require_text(journal)
    except (ValueError, TypeError, KeyError) as error:
        raise fs_journal.unusable(path, NAME, error) from error
    return journal


def _require_text(journal: Journal) -> None:
    transaction, record = asdict(journal.transaction), asdict(journal.record)
    if not all(isinstance(value, str) for value in (*transaction.values(), *record.values())):
        raise ValueError("a field is not a text")
    if journal.unfinished and not unfinished_export.is_directory_name(journal.unfinished):
        raise ValueError("not the directory of an export")
    if not all(transaction[name].isdecimal() for name in ("database", "number")):
        raise ValueError("a number is not in digits")
