"""The places where Sagewai keeps sealed values, and the values in them.

A *sealed value* is `fernet:` and a Fernet token, a leaf in a JSON document or in a JSON column. It
is under the master key, or under the data key of a project, which is itself a sealed value under
the master key. Nothing is decrypted here.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import field
from enum import Enum

from sagewai_ops.database.sqlite.read_transaction import in_utf8, quoted, utf8_rows
from sagewai_ops.database.sqlite.schema_objects import stored_columns
from sagewai_ops.home.paths import LEGACY_PLACES
from sagewai_ops.home.state_files import (
    ADMIN_STATE_NAME,
    CONNECTIONS_NAME,
    PROFILES_NAME,
    document_name,
)
from sagewai_ops.records import dataclass

PREFIX = "fernet:"

# The keys, at any depth of a provider's `config`, whose values Sagewai seals.
PROVIDER_KEYS = frozenset(
    (
        *("api_key", "apikey", "key", "secret", "client_secret", "token", "access_token"),
        *("refresh_token", "password", "passphrase", "private_key"),
    )
)
# The keys at the top of a notification channel.
CHANNEL_KEYS = frozenset(
    (*("webhook_url", "email_api_key", "smtp_password", "api_key", "token", "secret"), "password")
)
CHANNEL_KIND = "notification_channel"

_TOKEN = re.compile(rb"fernet:[A-Za-z0-9_=-]*")


class Role(Enum):
    """The meaning of a sealed value to Sagewai, and so of one that no key opens."""

    VALUE = "value"
    DATA_KEY = "data key"  # of the project that `where` names
    # Where Sagewai seals nothing. A user's text may begin with `fernet:`: it counts only if a key
    # opens it.
    STRAY = "stray"


@dataclass(frozen=True, slots=True)
class SealedValue:
    """One sealed value.

    Args:
        place: The document's path or `table.column`.
        where: In it: a JSON pointer, after the row's key if it is a column.
        text: With its `fernet:`.
        project: The project whose data key it is under; None for the master key.
        role: See `Role`.
    """

    place: str
    where: str
    text: str = field(repr=False)
    project: str | None = None
    role: Role = Role.VALUE


@dataclass(frozen=True, slots=True)
class Column:
    """A column that contains sealed values.

    Args:
        table: Its table.
        name: Its name; text for `project.data_key_ref`, else JSON.
        keys: The columns that name a row.
        of_project: Whether rows with a `project_id` are under that project's data key.
        role: Of the values where Sagewai seals.
    """

    table: str
    name: str
    keys: tuple[str, ...] = ("id",)
    of_project: bool = False
    role: Role = Role.VALUE

    @property
    def place(self) -> str:
        """Its name in reports."""
        return f"{self.table}.{self.name}"


COLUMNS = (
    Column("project", "data_key_ref", role=Role.DATA_KEY),
    Column("provider", "data", of_project=True),
    Column("admin_resources", "data", keys=("kind", "resource_id"), of_project=True),
    # Under the master key in the rows of projects too: the store has no other.
    Column("connection", "protocol_data"),
    Column("connection", "credentials_backend"),
)


def in_documents(documents: Mapping[str, bytes]) -> Iterator[SealedValue]:
    """Yield the sealed values of documents, as `read_documents` returned them."""
    for member, content in documents.items():
        if PREFIX.encode() not in content:
            continue
        name, place = place_of(member)
        for where, path, text in _leaves(content):
            role = Role.VALUE if _is_sealed_in(name, path) else Role.STRAY
            yield SealedValue(place, where, text, role=role)


def place_of(member: str) -> tuple[str, str]:
    """Return the name of a document and its place; `read_documents` returned its path."""
    name = document_name(member)
    return name, member if member.rpartition("/")[2] == name else LEGACY_PLACES.get(name, member)


def in_copy(place: str, content: bytes) -> Iterator[SealedValue]:
    """Yield what may be sealed values in an old copy of a document, which Sagewai does not read."""
    if PREFIX.encode() in content:
        for where, _path, text in _leaves(content):
            yield SealedValue(place, where, text, role=Role.STRAY)


def in_database(connection: sqlite3.Connection) -> Iterator[SealedValue]:
    """Yield the sealed values of every column that contains some; tables can be missing."""
    for column in COLUMNS:
        yield from _in_column(connection, column)


def _in_column(connection: sqlite3.Connection, column: Column) -> Iterator[SealedValue]:
    present = stored_columns(connection, column.table)
    if column.name not in present or not present.issuperset(column.keys):
        return
    project = "project_id" if column.of_project and "project_id" in present else None
    # As bytes: a JSON column may hold any storage class, and text that is not UTF-8.
    wanted = ", ".join(
        in_utf8(quoted(name)) if name else "NULL" for name in (column.name, project, *column.keys)
    )
    statement = (
        f"SELECT {wanted} FROM {quoted(column.table)}"  # noqa: S608 (names above, quoted)
        f" WHERE instr({quoted(column.name)}, ?)"
    )
    for content, owner, *key in utf8_rows(connection, statement, (PREFIX,)):
        row = "/".join(text_of(part) for part in key)
        if column.role is Role.DATA_KEY:
            yield SealedValue(column.place, row, text_of(content), role=column.role)
            continue
        for pointer, path, text in _leaves(content):
            yield SealedValue(
                place=column.place,
                where=row + pointer,
                text=text,
                project=text_of(owner) if owner is not None else None,
                role=column.role if _is_sealed_of(column, row, path) else Role.STRAY,
            )


JsonPath = tuple[str | int, ...]


def _is_sealed_in(name: str, path: JsonPath | None) -> bool:
    """Return whether Sagewai seals at a path of a document; None if the document is not JSON."""
    if path is None:
        return True
    match name, path:
        case (str(), ("providers", int(), "config", *_, str(key))) if name == ADMIN_STATE_NAME:
            return key in PROVIDER_KEYS
        case (str(), ("connections", int(), "protocol_data" | "credentials_backend", *_)):
            return name == CONNECTIONS_NAME
        case (str(), ("profiles", int(), "secrets", *_)):
            return name == PROFILES_NAME
    return False


def _is_sealed_of(column: Column, row: str, path: JsonPath | None) -> bool:
    if path is None or column.table == "connection":
        return True
    if column.table == "provider":
        return path[0] == "config" and path[-1] in PROVIDER_KEYS
    return row.startswith(f"{CHANNEL_KIND}/") and len(path) == 1 and path[0] in CHANNEL_KEYS


def _leaves(content: bytes) -> Iterator[tuple[str, JsonPath | None, str]]:
    """Yield (pointer, path, text) of each JSON string that begins with the prefix.

    Text that is not JSON is searched for tokens: the pointer is `@` and the offset in bytes, the
    path None.
    """
    try:
        root: object = json.loads(content)
    except (ValueError, RecursionError):
        for match in _TOKEN.finditer(content):
            yield f"@{match.start()}", None, match[0].decode("ascii")
        return
    waiting: list[tuple[JsonPath, object]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, str):
            if node.startswith(PREFIX):
                yield pointer(path), path, node
        elif isinstance(node, dict):
            waiting.extend(((*path, key), value) for key, value in reversed(node.items()))
        elif isinstance(node, list):
            waiting.extend(((*path, at), node[at]) for at in reversed(range(len(node))))


def pointer(path: JsonPath) -> str:
    """Write a JSON pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def text_of(value: bytes | None) -> str:
    """Return the text of a column; what is not UTF-8 is replaced."""
    return "" if value is None else value.decode("utf-8", "replace")
