"""Finding sealed values in documents and columns."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from home_builder import BuiltHome, build_home
from sagewai_ops.database.sqlite.online_copy import copy_database
from sagewai_ops.home.paths import locate
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.keys.locations import Role, SealedValue, in_database, in_documents

TOKEN = "fernet:gAAAAAabc_-="


def found_in(document: str, content: object) -> list[tuple[str, Role]]:
    """Find in one document: pointer and role of each value."""
    values = in_documents({document: json.dumps(content).encode()})
    return [(value.where, value.role) for value in values]


def values_of(built: BuiltHome, tmp_path: Path) -> list[SealedValue]:
    """Find everything in a built home."""
    copy = copy_database(built.database, tmp_path / "copy.db").path
    with closing(sqlite3.connect(f"file://{copy}?immutable=1", uri=True)) as connection:
        return [
            *in_documents(read_documents(locate(built.root, {}))),
            *in_database(connection),
        ]


@pytest.mark.parametrize("layout", ["canonical", "flat"])
def test_every_planted_value_is_found_and_nothing_else(layout: str, tmp_path: Path) -> None:
    """An independent builder planted values in every place: tokens, projects and roles agree."""
    built = build_home(
        tmp_path / "home",
        rows=8,
        keys=2,
        layout="flat" if layout == "flat" else "canonical",
        artifacts=False,
    )

    found = values_of(built, tmp_path)

    assert len(found) == len(built.sealed)
    assert {value.text for value in found} == {value.token for value in built.sealed}
    project_of = {value.token: value.key_name.partition(":")[2] or None for value in built.sealed}
    assert all(value.project == project_of[value.text] for value in found)
    assert {value.place.rpartition("/")[2] for value in found} == set(built.sealed_per_place)
    data_keys = {value.where for value in found if value.role is Role.DATA_KEY}
    assert data_keys == set(built.data_keys)
    assert not [value for value in found if value.role is Role.STRAY]


def test_home_without_sealed_values_has_none(tmp_path: Path) -> None:
    """Nothing is found where nothing is sealed."""
    built = build_home(tmp_path / "home", keys=0, artifacts=False)

    assert values_of(built, tmp_path) == []


def test_provider_secrets_are_known_by_their_names() -> None:
    """At any depth of `config`, under the eleven names; elsewhere a prefix may be chance."""
    state = {
        "providers": [
            {
                "config": {
                    "api_key": TOKEN,
                    "deep": [{"private_key": TOKEN}, {"password": "plain"}],
                    "note": TOKEN,
                },
                "api_key": TOKEN,
            }
        ],
        "prompt_logs": [{"input_text": TOKEN}],
    }

    assert found_in("config/admin-state.json", state) == [
        ("/providers/0/config/api_key", Role.VALUE),
        ("/providers/0/config/deep/0/private_key", Role.VALUE),
        ("/providers/0/config/note", Role.STRAY),
        ("/providers/0/api_key", Role.STRAY),
        ("/prompt_logs/0/input_text", Role.STRAY),
    ]


def test_connections_and_profiles_are_known_by_their_fields() -> None:
    """Any leaf of the fields that Sagewai seals, whatever its name."""
    connections = {
        "connections": [
            {
                "protocol_data": {"tokens": {"any": TOKEN}},
                "credentials_backend": {"config": {"x": [TOKEN]}},
                "display_name": TOKEN,
            }
        ]
    }
    profiles = {"profiles": [{"secrets": {"A": TOKEN}, "env": {"B": TOKEN}}]}

    assert found_in("config/connections.json", connections) == [
        ("/connections/0/protocol_data/tokens/any", Role.VALUE),
        ("/connections/0/credentials_backend/config/x/0", Role.VALUE),
        ("/connections/0/display_name", Role.STRAY),
    ]
    assert found_in("secrets/profiles.json", profiles) == [
        ("/profiles/0/secrets/A", Role.VALUE),
        ("/profiles/0/env/B", Role.STRAY),
    ]


def test_pointer_follows_its_standard() -> None:
    """A slash or a tilde in a name is escaped as in RFC 6901."""
    profiles = {"profiles": [{"secrets": {"a/b~c": TOKEN}}]}

    assert found_in("profiles.json", profiles)[0][0] == "/profiles/0/secrets/a~1b~0c"


def test_document_outside_the_home_is_named_by_its_standard_place() -> None:
    """So that a value has the same name before a backup and after the restore."""
    content = json.dumps({"profiles": [], "connections": [{"protocol_data": TOKEN}]}).encode()

    (value,) = in_documents({"external/SAGEWAI_CONNECTIONS_FILE": content})

    assert (value.place, value.role) == ("config/connections.json", Role.VALUE)


@pytest.mark.parametrize("broken", [b'{"a": "%s", ', b"\xff %s", b"[" * 200_000 + b'"%s"'])
def test_values_of_a_broken_document_are_found_by_their_shape(broken: bytes) -> None:
    """A torn document still reports how much is sealed in it, by offset."""
    content = broken % TOKEN.encode() if broken.count(b"%") else broken

    (value,) = in_documents({"config/connections.json": content})

    assert (value.text, value.role) == (TOKEN, Role.VALUE)
    assert value.where == f"@{content.index(b'fernet:')}"


def test_channels_are_known_by_their_kind_and_names(connection: sqlite3.Connection) -> None:
    """Only notification channels are sealed, and only seven names at their top."""
    connection.execute("CREATE TABLE admin_resources (kind, resource_id, project_id, data JSON)")
    data = json.dumps({"webhook_url": TOKEN, "name": TOKEN, "deep": {"token": TOKEN}})
    connection.executemany(
        "INSERT INTO admin_resources VALUES (?, ?, ?, ?)",
        [("notification_channel", "c1", "p1", data), ("saved_workflow", "w1", None, data)],
    )

    found = [(value.where, value.project, value.role) for value in in_database(connection)]

    assert found == [
        ("notification_channel/c1/webhook_url", "p1", Role.VALUE),
        ("notification_channel/c1/name", "p1", Role.STRAY),
        ("notification_channel/c1/deep/token", "p1", Role.STRAY),
        ("saved_workflow/w1/webhook_url", None, Role.STRAY),
        ("saved_workflow/w1/name", None, Role.STRAY),
        ("saved_workflow/w1/deep/token", None, Role.STRAY),
    ]


def test_provider_rows_are_known_by_the_same_names(connection: sqlite3.Connection) -> None:
    """As in the document: under `config`, by name."""
    connection.execute("CREATE TABLE provider (id, project_id, data JSON)")
    data = {"config": {"x": {"token": TOKEN}, "y": TOKEN}, "token": TOKEN}
    connection.execute("INSERT INTO provider VALUES ('p', NULL, ?)", (json.dumps(data),))

    assert [(value.where, value.role) for value in in_database(connection)] == [
        ("p/config/x/token", Role.VALUE),
        ("p/config/y", Role.STRAY),
        ("p/token", Role.STRAY),
    ]


def test_rows_of_connections_are_never_under_a_projects_key(
    connection: sqlite3.Connection,
) -> None:
    """Sagewai's store has no other than the master key, for rows of projects too."""
    connection.execute(
        "CREATE TABLE connection (id, project_id, protocol_data JSON, credentials_backend JSON)"
    )
    connection.execute(
        "INSERT INTO connection VALUES ('c', 'p', ?, ?)",
        (json.dumps({"a": TOKEN}), json.dumps({"config": TOKEN})),
    )

    assert [(value.where, value.project) for value in in_database(connection)] == [
        ("c/a", None),
        ("c/config", None),
    ]


@pytest.mark.parametrize(
    "stored",
    [
        None,
        0,
        1.5,
        b"\x00\xff",
        "",
        "null",
        "0",
        "{}",
        '"words"',
        "[1, 2",
        "\udce9".encode("utf-8", "surrogateescape"),
    ],
)
def test_odd_values_of_a_json_column_hold_nothing(
    stored: object, connection: sqlite3.Connection
) -> None:
    """SQLite stores anything in any column: numbers, blobs, broken text."""
    connection.execute("CREATE TABLE provider (id, project_id, data JSON)")
    connection.execute("INSERT INTO provider VALUES (7, NULL, ?)", (stored,))

    assert list(in_database(connection)) == []


def test_broken_json_of_a_column_is_searched(connection: sqlite3.Connection) -> None:
    """As with a document, what is sealed in it is not lost from the count."""
    connection.execute("CREATE TABLE provider (id, project_id, data JSON)")
    stored = b'{"config": {"api_key": "' + TOKEN.encode() + b'", "x": "\xff"'
    connection.execute("INSERT INTO provider VALUES (x'ff', 'p', ?)", (stored,))

    (value,) = in_database(connection)

    assert (value.text, value.where, value.role) == (TOKEN, "\ufffd@24", Role.VALUE)


def test_tables_and_columns_of_an_older_home_may_be_missing(
    connection: sqlite3.Connection,
) -> None:
    """Without the key or the value column nothing can be sealed; without a project, globally."""
    assert list(in_database(connection)) == []
    connection.execute("CREATE TABLE project (id)")
    connection.execute("CREATE TABLE connection (protocol_data JSON)")
    connection.execute("INSERT INTO connection VALUES (?)", (json.dumps({"a": TOKEN}),))
    connection.execute("CREATE TABLE provider (id, data JSON)")
    connection.execute(
        "INSERT INTO provider VALUES ('p', ?)", (json.dumps({"config": {"key": TOKEN}}),)
    )

    (value,) = in_database(connection)

    assert (value.place, value.project) == ("provider.data", None)


def test_value_is_not_shown() -> None:
    """Not even sealed text is in a log or a traceback."""
    assert "gAAAA" not in repr(SealedValue("place", "where", TOKEN))
