"""Finding secrets in the clear, by their places."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from sagewai_ops.database.sqlite.read_transaction import open_read_transaction
from sagewai_ops.home.paths import locate
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.keys.plaintext_secrets import (
    Habit,
    Plaintext,
    plain_in_copies,
    plain_in_database,
    plain_in_documents,
)
from small_homes import small

SEALED = "fernet:gAAAAAabc_-="


def found_in(document: str, content: object) -> dict[str, Habit]:
    """Find in one document: what Sagewai does, by pointer."""
    found = plain_in_documents({document: json.dumps(content).encode()})
    return {each.where: each.habit for each in found}


def connected(protocol: str, data: object, **record: Any) -> dict[str, Habit]:
    """Find in a connection's `protocol_data`, by the rest of the pointer."""
    content = {"connections": [{"protocol": protocol, "protocol_data": data, **record}]}
    found = found_in("config/connections.json", content)
    return {where.removeprefix("/connections/0/"): habit for where, habit in found.items()}


def test_a_providers_fields_are_found_at_any_depth_of_its_config() -> None:
    """In dictionaries and lists; empty, sealed and other values are not."""
    config = {
        "api_key": "a",
        "list": [{"token": "b"}, {"token": SEALED}, {"key": "c"}],
        "password": " ",
        "secret": 5,
        "model": "d",
        "signing_secret": "e",
    }

    found = found_in("config/admin-state.json", {"providers": [{"config": config}]})

    assert found == {
        "/providers/0/config/api_key": Habit.SEALS,
        "/providers/0/config/list/0/token": Habit.SEALS,
        "/providers/0/config/list/2/key": Habit.SEALS,
        "/providers/0/config/signing_secret": Habit.NEVER,
    }


def test_what_sagewai_never_seals_in_its_state_is_a_note() -> None:
    """Channels, connectors, triggers and its own secrets; users' words are left alone."""
    state = {
        "csrf_secret": "a",
        "autopilot_identity": {"instance_secret": "b", "instance_id": "i"},
        "notification_channels": [{"webhook_url": "c", "smtp_password": "d", "name": "n"}],
        "connectors": [{"api_key": "e"}],
        "triggers": [{"signing_secret": "f"}],
        "sealed": {"vault": {"auth_config": {"token": "g"}}},
        "agents": [{"token": "another word"}],
        "active_tokens": [{"hash": "h"}],
    }

    found = found_in("config/admin-state.json", state)

    assert set(found) == {
        "/csrf_secret",
        "/autopilot_identity/instance_secret",
        "/notification_channels/0/webhook_url",
        "/notification_channels/0/smtp_password",
        "/connectors/0/api_key",
        "/triggers/0/signing_secret",
        "/sealed/vault/auth_config/token",
    }
    assert set(found.values()) == {Habit.NEVER}


@pytest.mark.parametrize(
    ("protocol", "data", "where"),
    [
        ("oauth2", {"client_secret": "a", "client_id": "b"}, "client_secret"),
        ("oauth2", {"tokens": {"access_token": "a", "expires_at": "b"}}, "tokens/access_token"),
        ("oauth2", {"tokens": {"refresh_token": "a"}}, "tokens/refresh_token"),
        ("mqtt", {"password": "a", "host": "b"}, "password"),
        ("opcua", {"password": "a"}, "password"),
        ("coap", {"psk_key": "a"}, "psk_key"),
        ("websocket", {"auth_header_value": "a"}, "auth_header_value"),
        ("grpc", {"auth_token": "a"}, "auth_token"),
    ],
)
def test_a_protocols_sealed_field_in_the_clear_is_a_finding(
    protocol: str, data: object, where: str
) -> None:
    """By protocol, as Sagewai's local backend seals them."""
    assert connected(protocol, data) == {f"protocol_data/{where}": Habit.SEALS}


@pytest.mark.parametrize("protocol", ["inference", "sdk"])
def test_what_a_protocol_never_seals_is_a_note(protocol: str) -> None:
    """Every field of its `secrets`, whatever its name."""
    found = connected(protocol, {"secrets": {"ANY": "a"}, "model": "b"})

    assert found == {"protocol_data/secrets/ANY": Habit.NEVER}


def test_credentials_of_mcp_are_a_finding_once_a_test_succeeded() -> None:
    """Before that, Sagewai itself has them in the clear."""
    data = {"credentials": {"ANY": "a"}}
    where = "protocol_data/credentials/ANY"

    assert connected("mcp", data) == {where: Habit.LATER}
    assert connected("mcp", data, last_test_ok=False) == {where: Habit.LATER}
    assert connected("mcp", data, last_test_ok=True) == {where: Habit.SEALS}


def test_a_backends_own_tokens_are_notes_and_references_are_nothing() -> None:
    """Where a secret is stored elsewhere, its name is no secret."""
    vault = {"kind": "vault", "config": {"auth": {"mode": "token", "token": "a", "secret_id": "b"}}}
    env = {"kind": "env", "config": {"field_to_env": {"password": "MQTT_PASSWORD"}}}

    data = {"password": {"$vault": {"path": "p", "password": "q"}}}
    assert connected("mqtt", data, credentials_backend=vault) == {
        "credentials_backend/config/auth/token": Habit.NEVER,
        "credentials_backend/config/auth/secret_id": Habit.NEVER,
    }
    assert connected("mqtt", {"password": {"$env": "P"}}, credentials_backend=env) == {}


def test_a_profiles_secrets_are_findings_and_its_environment_is_nothing() -> None:
    """Every value of `secrets`; a legacy place is named as itself."""
    content = {"profiles": [{"secrets": {"A": "a", "B": SEALED}, "env": {"API_KEY": "c"}}]}

    assert found_in("secrets/profiles.json", content) == {"/profiles/0/secrets/A": Habit.SEALS}
    assert found_in("profiles.json", content) == {"/profiles/0/secrets/A": Habit.SEALS}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"7", b'"token"', b"[1]", b'{"connections": ["x"], "providers": 1}'],
)
def test_documents_of_any_shape_are_searched(content: bytes) -> None:
    """What is odd holds nothing, and is no error here."""
    names = ("config/admin-state.json", "config/connections.json", "secrets/profiles.json")

    assert [*plain_in_documents(dict.fromkeys(names, content))] == []


def test_old_copies_are_notes_for_what_sagewai_seals_or_hashes_today() -> None:
    """Tokens of before the first version among them; not what it never seals."""
    old = {
        "active_token": "a",
        "active_tokens": ["b", {"hash": "c"}],
        "api_tokens": [{"token": "d", "token_hash": "e", "prefix": "sw_"}],
        "providers": [{"config": {"api_key": "f", "token": "fernet:g", "region": "h"}}],
        "csrf_secret": "i",
    }
    profiles = {"profiles": [{"secrets": {"K": "j"}, "env": {"E": "k"}}]}
    connection = {"protocol": "mqtt", "protocol_data": {"password": "l", "host": "m"}}
    state, leftover = "config/admin-state.json.bak-v0-x", "config/tmpab12cd_x.tmp"

    copies = plain_in_copies(
        {
            state: json.dumps(old).encode(),
            leftover: json.dumps({"active_token": "n"}).encode(),
            "config/.connections.ab12cd_x.tmp": json.dumps({"connections": [connection]}).encode(),
            "secrets/profiles.json.legacy-x": json.dumps(profiles).encode(),
            "config/connections.json.bak": b"{",
        }
    )

    found = [*copies]
    assert sorted((each.place, each.where) for each in found if each.habit is Habit.COPY) == [
        ("config/.connections.ab12cd_x.tmp", "/connections/0/protocol_data/password"),
        (state, "/active_token"),
        (state, "/active_tokens/0"),
        (state, "/api_tokens/0/token"),
        (state, "/providers/0/config/api_key"),
        (leftover, "/active_token"),
        ("secrets/profiles.json.legacy-x", "/profiles/0/secrets/K"),
    ]
    assert not any(each.finding for each in found)


def test_token_under_a_key_of_somebodys_own_is_no_plaintext(
    connection: sqlite3.Connection,
) -> None:
    """It has no prefix; Sagewai keeps its key nowhere."""
    token = Fernet(Fernet.generate_key()).encrypt(b"").decode()
    connection.execute("CREATE TABLE notification_channels (id TEXT, config JSON)")
    connection.execute(
        "INSERT INTO notification_channels VALUES ('a', ?), ('b', ?)",
        (json.dumps({"smtp_password": token}), json.dumps({"smtp_password": token[:50]})),
    )

    found = [*plain_in_database(connection)]

    assert [each.where for each in found] == ["b/smtp_password"]


def test_columns_are_checked_like_documents(connection: sqlite3.Connection) -> None:
    """Rows are named by their keys; the slash of an id is part of it."""
    connection.executescript(
        """
        CREATE TABLE project (id TEXT, data_key_ref TEXT);
        INSERT INTO project VALUES ('p', 'in the clear'), ('q', 'fernet:x'), ('r', NULL);
        CREATE TABLE connection (id TEXT, protocol TEXT, last_test_ok BOOLEAN, protocol_data JSON);
        INSERT INTO connection VALUES
            ('a/b', 'mcp', 1, '{"credentials": {"T": "a"}}'),
            ('c', 'mcp', NULL, '{"credentials": {"T": "a"}}');
        CREATE TABLE admin_resources (kind TEXT, resource_id TEXT, data JSON);
        INSERT INTO admin_resources VALUES
            ('notification_channel', 'n', '{"token": "a", "deep": {"token": "b"}}'),
            ('saved_workflow', 'w', '{"token": "c"}');
        CREATE TABLE connector_credentials (id TEXT, access_token TEXT, config JSON);
        INSERT INTO connector_credentials VALUES ('k', 'a', x'ff');
        """
    )

    found = [*plain_in_database(connection)]

    assert found == [
        Plaintext("project.data_key_ref", "p", Habit.SEALS),
        Plaintext("admin_resources.data", "notification_channel/n/token", Habit.SEALS),
        Plaintext("admin_resources.data", "notification_channel/n/deep/token", Habit.NEVER),
        Plaintext("connection.protocol_data", "a/b/credentials/T", Habit.SEALS),
        Plaintext("connection.protocol_data", "c/credentials/T", Habit.LATER),
        Plaintext("connector_credentials.access_token", "k", Habit.NEVER),
    ]


def test_a_built_homes_secrets_are_found_where_they_were_planted(tmp_path: Path) -> None:
    """Each of the places that are looked at, and none that holds no secret."""
    built = small(tmp_path / "home")
    elsewhere = ("sessions.", "llm_providers.", "fleet/")  # docs/keys.md: not looked at
    unnamed = ("extra_header", "signing_salt")  # fields whose names mean nothing
    expected = [
        each
        for each in built.secrets
        if not each.place.startswith(elsewhere) and not each.where.endswith(unnamed)
    ]

    found = [*plain_in_documents(read_documents(locate(built.root, {})))]
    with open_read_transaction(built.database) as pin:
        found += plain_in_database(pin.connection)

    places = sorted(each.place.rpartition("/")[2] for each in found)
    assert places == sorted(each.place for each in expected)
    assert not any(each.value in repr(found) for each in expected)
