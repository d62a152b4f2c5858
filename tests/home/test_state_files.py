"""Reading and parsing the three documents, whatever their content."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directory_state import state_of
from home_builder import BuiltHome, build_home
from sagewai_ops.home import state_files
from sagewai_ops.home.paths import locate
from sagewai_ops.home.state_files import (
    ADMIN_STATE_NAME,
    CONNECTIONS_NAME,
    DOCUMENT_NAMES,
    PROFILES_NAME,
    document_name,
    identity_of,
    parse_document,
    read_documents,
)

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltHome:
    """A home in the canonical layout."""
    return build_home(tmp_path_factory.mktemp("built") / "home", artifacts=False)


@pytest.fixture
def root(built: BuiltHome, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(built.root, tmp_path / "home")
    return tmp_path / "home"


def test_documents_are_read_by_their_path_in_the_home(built: BuiltHome) -> None:
    """The bytes are those of the files, and nothing in the home changes."""
    before = state_of(built.admin_state.parent)

    found = read_documents(locate(built.root, {}))

    assert found == {
        "config/admin-state.json": built.admin_state.read_bytes(),
        "config/connections.json": built.connections.read_bytes(),
        "secrets/profiles.json": built.profiles.read_bytes(),
    }
    assert state_of(built.admin_state.parent) == before


def test_flat_layout_is_read_at_the_root(tmp_path: Path) -> None:
    """The older paths are read as well."""
    built = build_home(tmp_path / "home", layout="flat", artifacts=False)

    assert sorted(read_documents(locate(built.root, {}))) == sorted(DOCUMENT_NAMES)


def test_both_layouts_together_have_both_versions(root: Path) -> None:
    """A partially migrated home has different documents; each is backed up and checked."""
    (root / "connections.json").write_bytes(b'{"version": 2}')

    found = read_documents(locate(root, {}))

    assert found["connections.json"] == b'{"version": 2}'
    assert "config/connections.json" in found


def test_document_outside_the_home_is_named_by_its_variable(root: Path, tmp_path: Path) -> None:
    """An override replaces the home's own file."""
    elsewhere = tmp_path / "elsewhere.json"
    (root / "config/connections.json").rename(elsewhere)
    home = locate(root, {"SAGEWAI_CONNECTIONS_FILE": str(elsewhere)})

    found = read_documents(home)

    assert found["external/SAGEWAI_CONNECTIONS_FILE"] == elsewhere.read_bytes()
    assert document_name("external/SAGEWAI_CONNECTIONS_FILE") == CONNECTIONS_NAME
    assert document_name("external/SAGEWAI_ADMIN_STATE_FILE") == ADMIN_STATE_NAME
    assert document_name("secrets/profiles.json") == PROFILES_NAME


def test_unreadable_documents_are_omitted(root: Path) -> None:
    """A missing document, a directory or a pipe of its name is omitted without a wait."""
    (root / "config/connections.json").unlink()
    (root / "config/admin-state.json").unlink()
    (root / "config/admin-state.json").mkdir()
    (root / "secrets/profiles.json").unlink()
    os.mkfifo(root / "secrets/profiles.json")

    assert read_documents(locate(root, {})) == {}


def test_lock_of_the_writers_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a writer has the lock, the documents are not read."""
    monkeypatch.setattr(state_files, "_LOCK_WAIT_SECONDS", 30.0)
    order: list[str] = []
    lock = (root / "config/admin-state.json.lock").open("w")

    def release() -> None:
        order.append("released")
        lock.close()

    fcntl.flock(lock, fcntl.LOCK_EX)
    timer = threading.Timer(0.2, release)
    timer.start()
    read_documents(locate(root, {}))
    order.append("read")
    timer.join()

    assert order == ["released", "read"]


def test_lock_that_is_never_released_does_not_stop_a_backup(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most writers ignore the lock, so the wait is short."""
    monkeypatch.setattr(state_files, "_LOCK_WAIT_SECONDS", 0.1)
    began = time.monotonic()

    with (root / "config/admin-state.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_documents(locate(root, {}))

    assert len(found) == 3
    assert time.monotonic() - began >= 0.1


def test_file_system_without_locks_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems refuse flock; the documents are read without."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    assert len(read_documents(locate(root, {}))) == 3


def test_lock_file_is_not_created(root: Path) -> None:
    """A home without one stays without one."""
    lock = root / "config/admin-state.json.lock"
    lock.unlink(missing_ok=True)

    read_documents(locate(root, {}))

    assert not lock.exists()


def test_built_documents_are_counted_without_a_problem(built: BuiltHome) -> None:
    """Expired sessions and revoked tokens are not counted."""
    parsed = {
        document_name(member): parse_document(document_name(member), content, now=NOW)
        for member, content in read_documents(locate(built.root, {})).items()
    }

    state = parsed[ADMIN_STATE_NAME]
    assert state.counts == {
        "sessions": 1,
        "api_tokens": 1,
        "providers": 4,
        "projects": 4,
        "agents": 3,
        "users": 0,
    }
    assert (state.version, parsed[CONNECTIONS_NAME].version, parsed[PROFILES_NAME].version) == (
        3,
        2,
        1,
    )
    stored = json.loads(built.profiles.read_bytes())["profiles"]
    assert parsed[PROFILES_NAME].counts == {
        "profiles": len(stored),
        "secrets": sum(len(profile["secrets"]) for profile in stored),
    }
    assert parsed[CONNECTIONS_NAME].counts["connections"] > 10
    assert [document.problems for document in parsed.values()] == [(), (), ()]


@pytest.mark.parametrize(
    ("expires_at", "sessions"),
    [
        ("2026-06-01T12:00:01+00:00", 1),
        ("2026-06-01T12:00:00+00:00", 0),
        ("2026-06-01T13:30:00+02:00", 0),
        ("2026-06-01T12:30:00Z", 1),
        ("2026-06-01T12:30:00", 1),
        ("some day", 1),
        (None, 1),
    ],
)
def test_session_counts_until_it_expires(expires_at: object, sessions: int) -> None:
    """The expiry is parsed in every form that fromisoformat of any Python accepts."""
    state = {"active_tokens": [{"hash": "ab", "expires_at": expires_at}]}

    parsed = parse_document(ADMIN_STATE_NAME, json.dumps(state).encode(), now=NOW)

    assert parsed.counts["sessions"] == sessions


def test_sessions_of_older_states_count() -> None:
    """Plain strings, and the older single token, are valid as well."""
    state = {"active_tokens": ["raw-token", "", 5], "active_token": "older"}

    parsed = parse_document(ADMIN_STATE_NAME, json.dumps(state).encode())

    assert parsed.counts["sessions"] == 2


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (ADMIN_STATE_NAME, b"", "empty"),
        (ADMIN_STATE_NAME, b" \n", "empty"),
        (ADMIN_STATE_NAME, b'{"providers": [', "not JSON: Expecting value: line 1 column 16"),
        (PROFILES_NAME, b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (PROFILES_NAME, b"[" * 200_000, "nested too deeply"),
        (CONNECTIONS_NAME, b"[]", "not a JSON object but of type list"),
        (CONNECTIONS_NAME, b"null", "not a JSON object but null"),
        (CONNECTIONS_NAME, b'{"version": 1}', "version 1, not 2"),
        (CONNECTIONS_NAME, b'{"connections": []}', "version None, not 2"),
        (CONNECTIONS_NAME, b'{"version": 2, "connections": {}}', "connections: not a list"),
        (PROFILES_NAME, b'{"profiles": [1, {}, null]}', "profiles: 2 entries are not objects"),
        (ADMIN_STATE_NAME, b'{"schema_version": 4}', "schema_version 4 is ahead of 3"),
    ],
)
def test_each_fault_is_one_phrase(name: str, content: bytes, problem: str) -> None:
    """It begins with the name of the field."""
    parsed = parse_document(name, content)

    assert len(parsed.problems) == 1
    assert parsed.problems[0].startswith(problem)


@pytest.mark.parametrize("version", [0, 3, None, "3", True, 2.5])
def test_state_that_sagewai_upgrades_is_no_problem(version: object) -> None:
    """Only a newer version is; a value that is not a number is no version."""
    content = json.dumps({"schema_version": version}).encode()

    parsed = parse_document(ADMIN_STATE_NAME, content)

    assert parsed.problems == ()
    assert parsed.version == (version if version in (0, 3) and version is not True else None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["providers", "profiles", "connections", "secrets", "admin", "revoked"])
            | st.sampled_from(["active_tokens", "expires_at", "api_tokens", "version"])
            | st.text(),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(name=st.sampled_from(DOCUMENT_NAMES), content=_JSON.map(json.dumps).map(str.encode))
def test_any_json_is_parsed_without_an_exception(name: str, content: bytes) -> None:
    """Any structure results in counts and problems."""
    parsed = parse_document(name, content)

    assert all(count >= 0 for count in parsed.counts.values())


@given(name=st.sampled_from(DOCUMENT_NAMES), content=st.binary())
def test_any_bytes_are_parsed_without_an_exception(name: str, content: bytes) -> None:
    """So do bytes that are not JSON."""
    parsed = parse_document(name, content)

    assert parsed.problems or isinstance(parsed.content, dict)


def test_content_is_not_shown(built: BuiltHome) -> None:
    """A document in a log or a traceback shows no secret."""
    parsed = parse_document(ADMIN_STATE_NAME, built.admin_state.read_bytes())

    assert all(secret.value not in repr(parsed) for secret in built.secrets)
    assert "fernet" not in repr(parsed)


def test_home_keeps_its_identity_when_it_moves(root: Path, built: BuiltHome) -> None:
    """The set-up identifies the home first, its path second."""
    here = identity_of(locate(built.root, {}), "host-a")
    there = identity_of(locate(root, {}), "host-b")

    assert here[0] == there[0]
    assert here[1] != there[1]
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in (*here, *there))


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", b'{"admin": 5}', b'{"admin": {"id": ""}}'])
def test_home_without_an_administrator_is_identified_by_its_path(
    root: Path, content: bytes
) -> None:
    """By path and machine; another machine's home at the same path is another."""
    (root / "config/admin-state.json").write_bytes(content)
    home = locate(root, {})

    assert len(identity_of(home, "a")) == 1
    assert identity_of(home, "a") == identity_of(home, "a")
    assert identity_of(home, "a") != identity_of(home, "b")
