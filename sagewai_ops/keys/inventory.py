"""Everything in a home that can contain a sealed value, read at one moment.

The documents are read together; a database within one transaction, on a copy where SQLite cannot
read it in place; the tables of a server as rows of a database in memory, by the same code. Nothing
in the home is changed, and nothing is decrypted here.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from sagewai_ops.database.sqlite.moment import open_moment
from sagewai_ops.database.sqlite.read_transaction import from_database_error
from sagewai_ops.database.url import PostgresUrl, resolve
from sagewai_ops.errors import OpsError, PermissionDeniedError
from sagewai_ops.fs import beneath
from sagewai_ops.home.paths import LEGACY_PLACES, Home, Kind, kind_of
from sagewai_ops.home.state_files import (
    DOCUMENT_NAMES,
    document_name,
    parse_document,
    read_documents,
)
from sagewai_ops.keys.locations import SealedValue, in_copy, in_database, in_documents
from sagewai_ops.keys.plaintext_secrets import (
    Plaintext,
    plain_in_copies,
    plain_in_database,
    plain_in_documents,
)
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

SERVER = "server:"  # begins `where` and the project of values on a database server
_LOCK_SUFFIX = ".lock"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The sealed values and the plaintext secrets of a home.

    Args:
        values: Sealed values, of documents, of the home's database and of a server.
        plaintext: Secrets in plaintext.
        unread: Path or variable -> why it could not be read or parsed.
        unreadable: Documents that exist and are not readable.
    """

    values: tuple[SealedValue, ...] = field(repr=False)
    plaintext: tuple[Plaintext, ...]
    unread: Mapping[str, str]
    unreadable: tuple[str, ...]


def read_inventory(
    home: Home, environment: Mapping[str, str], *, insists: bool = False, only_sealed: bool = False
) -> Inventory:
    """Read the inventory of a home, live or not.

    Args:
        environment: Names the server of the tables, if there is one.
        insists: A server that does not answer is an error; else it is in `unread`.
        only_sealed: Skip secrets in plaintext.

    Raises:
        DamagedError, LockedError, PermissionDeniedError: The home's database is not readable.
        OpsError: The server's is not, and `insists`.
    """
    documents = read_documents(home)
    unread = _not_understood(documents)
    unreadable = _unreadable(home)
    unread |= dict.fromkeys(unreadable, "cannot be read")
    values: list[SealedValue] = [*in_documents(documents)]
    plaintext = []
    if not only_sealed:
        plaintext += [*plain_in_documents(documents), *plain_in_copies(_contents(home))]
    if os.path.lexists(home.database):
        with open_moment(home.database) as moment:
            try:
                values.extend(in_database(moment.connection))
                if not only_sealed:
                    plaintext.extend(plain_in_database(moment.connection))
            except sqlite3.Error as error:
                raise from_database_error(error, home.database) from error
    if home.server_url_variable:
        try:
            from sagewai_ops.keys import postgres  # asyncio takes 15 ms to import

            url = database_server(home, environment)
            with contextlib.closing(postgres.read_tables(url)) as connection:
                values.extend(on_server(connection))
                clear = () if only_sealed else plain_in_database(connection)
                plaintext.extend(replace(secret, where=SERVER + secret.where) for secret in clear)
        except OpsError as error:
            if insists:
                raise
            unread[home.server_url_variable] = error.message
    return Inventory(
        values=tuple(values), plaintext=tuple(plaintext), unread=unread, unreadable=unreadable
    )


def sealed_values(home: Home, environment: Mapping[str, str]) -> tuple[SealedValue, ...]:
    """Return everything that may be sealed in a home, old copies included.

    Raises:
        PermissionDeniedError: A document or copy cannot be read.
        OpsError: A database cannot be read, or its server does not answer.
    """
    inventory = read_inventory(home, environment, insists=True, only_sealed=True)
    if inventory.unreadable:
        path = inventory.unreadable[0]
        raise PermissionDeniedError(
            f"{path}: not readable, so its values would stay under the old key",
            hint=f"ls -la {shell_word(path)}  # run as its owner",
        )
    return (*inventory.values, *copied_values(find_old_copies(home)))


def database_server(home: Home, environment: Mapping[str, str]) -> PostgresUrl:
    """Return the server of Sagewai's tables, which `home.server_url_variable` names.

    Raises:
        UsageError: The variable has no usable URL.
    """
    url = resolve(environment, home.database)
    assert isinstance(url, PostgresUrl)
    return url


def find_old_copies(home: Home) -> dict[str, Path]:
    """Return the copies of documents that Sagewai, its crashes and this program leave.

    Returns:
        Path relative to the home, or absolute outside it -> the file; regular files only.
    """
    found: dict[str, Path] = {}
    current = _document_paths(home)
    parents = (path.parent for path in current.values())
    for directory in dict.fromkeys((*parents, home.root / "config", home.root / "secrets")):
        # Outside the home, only a file with the name of the document is a copy of it.
        inside = directory.is_relative_to(home.root)
        own = [path.name for path in current.values() if path.parent == directory]
        names = [*DOCUMENT_NAMES, *own] if inside else own
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(directory)):
                path = directory / name
                place = relative(home, path)
                is_leftover = inside and kind_of(place) is Kind.LEFTOVER
                if not is_leftover and not any(fnmatchcase(name, f"{known}?*") for known in names):
                    continue
                if name.endswith(_LOCK_SUFFIX) or path in current.values():
                    continue
                if stat.S_ISREG(os.lstat(path).st_mode):
                    found[place] = path
    return found


def copied_values(copies: Mapping[str, Path]) -> Iterator[SealedValue]:
    """Yield what may be a sealed value in old copies: it counts only if a key opens it.

    Raises:
        OSError: One is not readable.
    """
    for place, path in copies.items():
        yield from in_copy(place, _read(path))


def _read(path: Path) -> bytes:
    with open(beneath.open_file(path), "rb") as stream:
        return stream.read()


def _contents(home: Home) -> dict[str, bytes]:
    """Return the contents of the old copies that are readable."""
    contents = {}
    for place, path in find_old_copies(home).items():
        with contextlib.suppress(OSError):
            contents[place] = _read(path)
    return contents


def document_files(home: Home) -> list[Path]:
    """Return the existing documents, links resolved."""
    paths = (Path(os.path.realpath(path)) for path in _document_paths(home).values())
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def relative(home: Home, path: Path) -> str:
    """Return a path relative to the home, if it is inside."""
    return os.path.relpath(path, home.root) if path.is_relative_to(home.root) else os.fspath(path)


def _document_paths(home: Home) -> dict[str, Path]:
    legacy = {name: home.root / name for name in LEGACY_PLACES if name in DOCUMENT_NAMES}
    current = (home.admin_state, home.connections, home.profiles)
    return {**legacy, **{os.fspath(path): path for path in current}}


def on_server(connection: sqlite3.Connection) -> Iterator[SealedValue]:
    """Yield the sealed values of a server, marked as not of the home's own database.

    Args:
        connection: From `postgres.load_tables`.
    """
    for value in in_database(connection):
        project = SERVER + value.project if value.project is not None else None
        yield replace(value, where=SERVER + value.where, project=project)


def _not_understood(documents: Mapping[str, bytes]) -> dict[str, str]:
    """Return the documents that are not JSON and may contain a secret, with the reasons."""
    unread = {}
    for member, content in documents.items():
        document = parse_document(document_name(member), content)
        if document.content is None:
            unread[member] = "; ".join(document.problems)
    return unread


def _unreadable(home: Home) -> tuple[str, ...]:
    return tuple(
        str(path)
        for path in _document_paths(home).values()
        if os.path.lexists(path) and not (path.is_file() and os.access(path, os.R_OK))
    )
