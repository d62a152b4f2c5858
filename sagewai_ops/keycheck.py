"""Try every key of a home on everything that is sealed in it, and look for what is not sealed.

Nothing is written, and it works while Sagewai runs: the documents are read within one moment, the
database within one read transaction. What a value opens to is dropped at once.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.database.copy import copy_database
from sagewai_ops.database.source import NeedsStagingError, database_uri, pinned, translate
from sagewai_ops.home.documents import document_name, parse_document, read_together
from sagewai_ops.home.paths import MASTER_KEY, Home, require
from sagewai_ops.keys.candidates import Candidate, accepted, find_candidates, given
from sagewai_ops.keys.places import SealedValue, in_database, in_documents
from sagewai_ops.keys.plaintext import Plaintext, plain_in_database, plain_in_documents
from sagewai_ops.keys.sealed import Opened, SealedReport, open_all

_READ_BYTES = 4096  # of what should be 44


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """What the keys at hand open, and what needs none.

    Args:
        candidates: Every key, in the order in which they were tried.
        key: The key that Sagewai would use; None if it would make a new one.
        report: What opened, by key, and what did not.
        opened: Each value that opened.
        plaintext: Secrets in the clear.
        unread: What could not be looked at: path to reason.
    """

    candidates: tuple[Candidate, ...]
    key: Candidate | None
    report: SealedReport
    opened: tuple[Opened, ...]
    plaintext: tuple[Plaintext, ...]
    unread: Mapping[str, str]

    @property
    def refused(self) -> tuple[Candidate, ...]:
        """The keys that Sagewai would not take, of which it may make the first one anew."""
        return tuple(one for one in self.candidates if one.problem)

    @property
    def would_replace(self) -> bool:
        """Whether Sagewai would make a new key though something stands in a key's place."""
        return self.key is None and bool(self.refused)

    @property
    def lost_to_sagewai(self) -> tuple[Opened, ...]:
        """The values that open, though not with the key that Sagewai would use."""
        own = self.key.fingerprint if self.key else ""
        return tuple(one for one in self.opened if one.fingerprint != own)

    @property
    def has_findings(self) -> bool:
        """Whether there is anything to mend."""
        exposed = any(one.is_finding for one in self.plaintext)
        troubled = self.would_replace or self.report.unopened or self.lost_to_sagewai
        return bool(troubled or exposed or self.unread)


def check_keys(
    home: Home, environment: Mapping[str, str], *, key_file: Path | None = None
) -> KeyCheck:
    """Open every sealed value of a home with every key at hand.

    Args:
        environment: Where a master key may come from.
        key_file: One more key to try.

    Raises:
        NotFoundError: No such home or key file.
        DamagedError, LockedError, PermissionDeniedError: The database cannot be read.
        KeyMissingError: `key_file` holds no key.
    """
    require(home)
    candidates = all_candidates(home, environment, key_file=key_file)
    documents = read_together(home)
    unread = _unread(home, documents)
    values: list[SealedValue] = [*in_documents(documents)]
    plaintext = [*plain_in_documents(documents)]
    if home.server_url_variable:
        unread[home.server_url_variable] = "the tables are on a server, which is not looked at"
    if os.path.lexists(home.database):
        with _frozen(home.database) as connection:
            try:
                values.extend(in_database(connection))
                plaintext.extend(plain_in_database(connection))
            except sqlite3.Error as error:
                raise translate(error, home.database) from error
    opened: list[Opened] = []
    report = open_all(values, candidates, on_open=opened.append)
    return KeyCheck(
        candidates=candidates,
        key=accepted(candidates),
        report=report,
        opened=tuple(opened),
        plaintext=tuple(plaintext),
        unread=unread,
    )


def all_candidates(
    home: Home, environment: Mapping[str, str], *, key_file: Path | None = None
) -> tuple[Candidate, ...]:
    """Collect the keys at hand, those that `migrate-layout` set aside included.

    Raises:
        NotFoundError, PermissionDeniedError, KeyMissingError: About `key_file` only.
    """
    found = [*find_candidates(home, environment, key_file=key_file)]
    for path in sorted(home.master_key.parent.glob(f"{home.master_key.name}.legacy-*")):
        if not path.is_file():  # a pipe would hold us for ever
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            name = MASTER_KEY.rpartition("/")[0] + "/" + path.name
            kept = given(name, file.read(_READ_BYTES))
            if kept.value:  # Sagewai never looks at it: what is no key is no problem
                found.append(kept)
    return tuple(found)


@contextlib.contextmanager
def _frozen(database: Path) -> Iterator[sqlite3.Connection]:
    """Give one moment of a database that may be live."""
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(pinned(database)).connection
        except NeedsStagingError:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sagewai-ops-keys-"))
            copy = copy_database(database, Path(folder) / "copy.db", durable=False).path
            uri = database_uri(copy, mode="ro", immutable="1")
            connection = sqlite3.connect(uri, uri=True)
            stack.enter_context(contextlib.closing(connection))
        yield connection


def _unread(home: Home, documents: Mapping[str, bytes]) -> dict[str, str]:
    """Name the documents that could not be read or understood, where a secret may hide."""
    unread = {}
    for member, content in documents.items():
        document = parse_document(document_name(member), content)
        if document.content is None:
            unread[member] = "; ".join(document.problems)
    for path in (home.admin_state, home.connections, home.profiles):
        if os.path.lexists(path) and not (path.is_file() and os.access(path, os.R_OK)):
            unread[str(path)] = "cannot be read"
    return unread
