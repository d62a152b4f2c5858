"""Find secrets in plaintext, and whether Sagewai itself would have sealed them.

Sagewai seals some secrets and keeps others in plaintext. A plaintext secret in a place where it
seals is a finding: the file was written by hand or by an import. Elsewhere it is a note for people
who copy the file. Values are never kept: a result has only their places. Secrets are recognised by
the names of their fields; docs/keys.md lists the places.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import field
from enum import Enum

from sagewai_ops.database.sqlite.read_transaction import in_utf8, quoted, utf8_rows
from sagewai_ops.database.sqlite.schema_objects import stored_columns
from sagewai_ops.home.state_files import ADMIN_STATE_NAME, CONNECTIONS_NAME, PROFILES_NAME
from sagewai_ops.keys.locations import (
    CHANNEL_KEYS,
    CHANNEL_KIND,
    PREFIX,
    PROVIDER_KEYS,
    JsonPath,
    place_of,
    pointer,
    text_of,
)
from sagewai_ops.records import dataclass


class Habit(str, Enum):
    """What Sagewai does with a secret at a place."""

    SEALS = "Sagewai seals this"
    LATER = "Sagewai seals this at the first successful test of the connection"
    NEVER = "Sagewai keeps this in plaintext"
    COPY = "an old copy keeps this in plaintext"


@dataclass(frozen=True, slots=True)
class Plaintext:
    """The place of a secret in plaintext.

    Args:
        place: The document's path or `table.column`.
        where: In it: a JSON pointer, after the row's key if it is a column.
        habit: Whether Sagewai would have sealed it.
        finding: It is in plaintext where Sagewai itself would have sealed it.
    """

    place: str
    where: str
    finding: bool = field(init=False)
    habit: Habit

    def __post_init__(self) -> None:
        """Set `finding`."""
        object.__setattr__(self, "finding", self.habit is Habit.SEALS)


# By protocol, the fields below `protocol_data` that Sagewai's local backend seals.
_SEALED_FIELDS: Mapping[str, tuple[JsonPath, ...]] = {
    "oauth2": (("client_secret",), ("tokens", "access_token"), ("tokens", "refresh_token")),
    "mqtt": (("password",),),
    "opcua": (("password",),),
    "coap": (("psk_key",),),
    "websocket": (("auth_header_value",),),
    "grpc": (("auth_token",),),
}
# By protocol, the object below `protocol_data` with nothing but secrets that it does not seal.
_OPEN_OBJECTS = {"inference": "secrets", "sdk": "secrets"}
_TESTED_OBJECT = ("mcp", "credentials")
# Where admin-state.json can contain secrets; elsewhere it has texts of users.
_STATE_KEYS = frozenset(
    (
        *("providers", "notification_channels", "connectors", "triggers", "csrf_secret"),
        *("autopilot_identity", "sealed"),
    )
)
_SECRET_ENDINGS = (
    *("secret", "token", "password", "passphrase", "api_key", "apikey", "private_key"),
    *("webhook_url", "secret_id", "psk_key", "auth_header_value"),
)
_REFERENCES = frozenset(("field_to_env",))  # names of variables, not their values
_CONNECTOR_KIND = "connector_trigger"
# Sealed under a key that a program passed to Sagewai, without the prefix: at least 73 bytes, which
# begin with 0x80 and the seconds since 1970.
_BARE_TOKEN = re.compile(r"gAAAAA[A-Za-z0-9_-]{92,}={0,2}")


def plain_in_documents(documents: Mapping[str, bytes]) -> Iterator[Plaintext]:
    """Yield the plaintext secrets of documents, as `read_documents` returned them.

    A document that is not JSON is skipped.
    """
    for member, content in documents.items():
        name, place = place_of(member)
        root = _parsed(content)
        for path, _text in _plain_strings(root):
            habit = None
            if name == ADMIN_STATE_NAME:
                habit = _habit_in_state(path)
            elif name == CONNECTIONS_NAME and len(path) > 3 and path[0] == "connections":
                record = _at(root, path[:2])
                protocol, tested = record.get("protocol"), record.get("last_test_ok")
                habit = _habit_in_connection(path[2:], protocol, is_tested=tested is True)
            elif name == PROFILES_NAME and path[::2][:2] == ("profiles", "secrets"):
                habit = Habit.SEALS
            if habit:
                yield Plaintext(place, pointer(path), habit)


def plain_in_copies(copies: Mapping[str, bytes]) -> Iterator[Plaintext]:
    """Yield the secrets that Sagewai seals or hashes today in old copies of documents."""
    for place, content in copies.items():
        file = place.rpartition("/")[2]
        # A crash leaves a state under an arbitrary name.
        names = (CONNECTIONS_NAME, PROFILES_NAME)
        name = next((known for known in names if known.partition(".")[0] in file), ADMIN_STATE_NAME)
        for secret in plain_in_documents({name: content}):
            if secret.finding:
                yield Plaintext(place, secret.where, Habit.COPY)
        for path, _text in _plain_strings(_parsed(content)) if name == ADMIN_STATE_NAME else ():
            if _is_bearer(path):
                yield Plaintext(place, pointer(path), Habit.COPY)


def plain_in_database(connection: sqlite3.Connection) -> Iterator[Plaintext]:
    """Yield the plaintext secrets of every column that can contain some; tables can be missing."""
    for (identity, text), place in _rows(connection, "project", ("id",), "data_key_ref"):
        if text.strip() and not text.startswith(PREFIX):
            yield Plaintext(place, identity, Habit.SEALS)
    for (identity, text), place in _rows(connection, "provider", ("id",), "data"):
        for path, _text in _plain_strings(_parsed(text)):
            if habit := _habit_in_provider(path):
                yield Plaintext(place, identity + pointer(path), habit)
    keys = ("kind", "resource_id")
    for (identity, text), place in _rows(connection, "admin_resources", keys, "data"):
        for path, _text in _plain_strings(_parsed(text)):
            if habit := _habit_in_resource(identity.partition("/")[0], path):
                yield Plaintext(place, identity + pointer(path), habit)
    yield from _in_connections(connection)
    for column in ("access_token", "refresh_token"):
        for (identity, text), place in _rows(connection, "connector_credentials", ("id",), column):
            if text.strip() and not text.startswith(PREFIX):
                yield Plaintext(place, identity, Habit.NEVER)
    for table in ("connector_credentials", "notification_channels"):
        for (identity, text), place in _rows(connection, table, ("id",), "config"):
            for path, content in _plain_strings(_parsed(text)):
                if _is_secret(path) and not _BARE_TOKEN.fullmatch(content):
                    yield Plaintext(place, identity + pointer(path), Habit.NEVER)


def _in_connections(connection: sqlite3.Connection) -> Iterator[Plaintext]:
    for column in ("protocol_data", "credentials_backend"):
        keys = ("id", "protocol", "last_test_ok")
        for (identity, text), place in _rows(connection, "connection", keys, column):
            # Neither a protocol nor a flag contains a slash; an id can.
            row, protocol, tested = identity.rsplit("/", 2)
            for path, _text in _plain_strings(_parsed(text)):
                habit = _habit_in_connection((column, *path), protocol, is_tested=tested == "1")
                if habit:
                    yield Plaintext(place, row + pointer(path), habit)


def _habit_in_state(path: JsonPath) -> Habit | None:
    if path[0] not in _STATE_KEYS:
        return None
    if path[0] == "providers":
        return _habit_in_provider(path[2:])
    named = path[0] == "notification_channels" and len(path) == 3 and path[-1] in CHANNEL_KEYS
    return Habit.NEVER if named or _is_secret(path) else None


def _habit_in_provider(path: JsonPath) -> Habit | None:
    if len(path) > 1 and path[0] == "config" and path[-1] in PROVIDER_KEYS:
        return Habit.SEALS
    return Habit.NEVER if _is_secret(path) else None


def _habit_in_resource(kind: str, path: JsonPath) -> Habit | None:
    if kind == CHANNEL_KIND and len(path) == 1 and path[0] in CHANNEL_KEYS:
        return Habit.SEALS
    known = kind in (CHANNEL_KIND, _CONNECTOR_KIND)
    return Habit.NEVER if known and _is_secret(path) else None


def _habit_in_connection(path: JsonPath, protocol: object, *, is_tested: bool) -> Habit | None:
    """Return the habit for a path of a connection, which begins with its column or field."""
    if path[0] not in ("protocol_data", "credentials_backend") or len(path) < 2:
        return None
    if path[0] == "protocol_data" and isinstance(protocol, str):
        if path[1:] in _SEALED_FIELDS.get(protocol, ()):
            return Habit.SEALS
        if (protocol, path[1]) == _TESTED_OBJECT:
            return Habit.SEALS if is_tested else Habit.LATER
        if path[1] == _OPEN_OBJECTS.get(protocol):
            return Habit.NEVER
    return Habit.NEVER if _is_secret(path) else None


def _is_bearer(path: JsonPath) -> bool:
    """Return whether a state without a version has a session or API token at a path."""
    if path[0] == "api_tokens":
        return _is_secret(path)
    return path == ("active_token",) or (path[0] == "active_tokens" and len(path) == 2)


def _is_secret(path: JsonPath) -> bool:
    """Return whether the name of a field is that of a secret; an entry of a list has no name."""
    name = path[-1] if path else ""
    return isinstance(name, str) and name.lower().endswith(_SECRET_ENDINGS)


def _plain_strings(root: object) -> Iterator[tuple[JsonPath, str]]:
    """Yield each string leaf that is not blank, sealed or a reference."""
    waiting: list[tuple[JsonPath, object]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, str):
            if path and node.strip() and not node.startswith(PREFIX):
                yield path, node
        elif isinstance(node, dict):
            waiting.extend(
                ((*path, key), value)
                for key, value in reversed(node.items())
                # An object with a `$` is a reference to a secret in the environment or a vault.
                if not key.startswith("$") and key not in _REFERENCES
            )
        elif isinstance(node, list):
            waiting.extend(((*path, at), node[at]) for at in reversed(range(len(node))))


def _rows(
    connection: sqlite3.Connection, table: str, keys: tuple[str, ...], column: str
) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield ((the row's key, the column's text), `table.column`); nothing if it is missing."""
    present = stored_columns(connection, table)
    if not present.issuperset((*keys, column)):
        return
    # As bytes: a JSON column may hold any storage class, and text that is not UTF-8.
    wanted = ", ".join(in_utf8(quoted(name)) for name in (column, *keys))
    statement = (
        f"SELECT {wanted} FROM {quoted(table)}"  # noqa: S608 (names of ours, quoted)
        f" WHERE {quoted(column)} IS NOT NULL"
    )
    for content, *key in utf8_rows(connection, statement):
        row = "/".join(text_of(part) for part in key)
        yield (row, text_of(content)), f"{table}.{column}"


def _at(root: object, path: JsonPath) -> dict[str, object]:
    """Return the object at a path of a document; an empty one if there is no object."""
    for step in path:
        if isinstance(root, dict) and isinstance(step, str):
            root = root.get(step)
        elif isinstance(root, list) and isinstance(step, int):
            root = root[step]
    return root if isinstance(root, dict) else {}


def _parsed(content: bytes | str) -> object:
    try:
        parsed: object = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return parsed
