"""Finding the master keys available and what Sagewai would think of each."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest

from sagewai_ops.errors import KeyMissingError, NotFoundError, PermissionDeniedError
from sagewai_ops.fs import beneath
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.keys import candidates
from sagewai_ops.keys.candidates import (
    Candidate,
    active_key,
    configured_key,
    find_candidates,
    fingerprint,
    key_from_bytes,
)

KEY = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # 32 bytes, 0 to 31
OTHER = b"__79_Pv6-fj39vX08_Lx8O_u7ezr6uno5-bl5OPi4eA="
NO_KEYRING: Mapping[str, str] = {}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    (tmp_path / "secrets").mkdir(mode=0o700)
    return locate(tmp_path, {})


def put(path: Path, content: bytes = KEY, mode: int = 0o600) -> None:
    """Write a key file."""
    path.write_bytes(content)
    path.chmod(mode)


def test_fingerprint_never_changes() -> None:
    """It is stored in every snapshot: 16 hex digits of an HMAC over a fixed text."""
    assert fingerprint(KEY) == "231adfe2bfbbe2c3"
    assert fingerprint(OTHER) != fingerprint(KEY)


def test_sources_come_in_the_order_of_sagewai(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's file first, then environment, keyring, key file, older key file."""
    put(home.master_key)
    put(home.legacy_master_key, OTHER)
    put(tmp_path / "given.key", OTHER)
    keyring(monkeypatch, lambda *_: OTHER.decode())

    found = find_candidates(
        home, {"SAGEWAI_MASTER_KEY": KEY.decode()}, key_file=tmp_path / "given.key"
    )

    assert [(each.source, each.value, each.problem) for each in found] == [
        ("--key-file", OTHER, ""),
        ("SAGEWAI_MASTER_KEY", KEY, ""),
        ("keyring", OTHER, ""),
        ("secrets/master.key", KEY, ""),
        ("master.key", OTHER, ""),
    ]
    assert [each.is_file for each in found] == [True, False, False, True, True]
    assert [each.path for each in found][3:] == [home.master_key, home.legacy_master_key]


def keyring(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """Put a keyring in place of the system's."""
    module = types.ModuleType("keyring")
    module.get_password = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: module)


def test_empty_home_has_no_candidates(home: Home) -> None:
    """Nothing is made up, and nothing created."""
    assert find_candidates(home, {}) == ()
    assert configured_key(()) is None
    assert active_key(()) is None
    assert os.listdir(home.root) == ["secrets"]


def test_keyring_is_asked_for_the_entry_of_sagewai(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Service and user are Sagewai's; without an environment none is asked."""
    asked: list[tuple[str, ...]] = []
    keyring(monkeypatch, lambda *names: asked.append(names))

    find_candidates(home, {})
    find_candidates(home, {"PATH": "/bin"})

    assert asked == [("sagewai-master-key", "sealed")]


@pytest.mark.parametrize("error", [RuntimeError("locked"), ImportError("no backend")])
def test_keyring_that_fails_is_not_there(
    error: Exception, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any exception means that there is no key in it."""

    def fail(*_: str) -> str:
        raise error

    keyring(monkeypatch, fail)

    assert find_candidates(home, {"PATH": "/bin"}) == ()


def test_keyring_that_is_not_installed_is_not_there(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is optional."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    assert find_candidates(home, {"PATH": "/bin"}) == ()


@pytest.mark.parametrize(
    ("content", "mode", "value", "problem"),
    [
        (KEY, 0o600, KEY, ""),
        (KEY, 0o400, KEY, ""),
        (KEY, 0o700, KEY, ""),
        (KEY, 0o611, KEY, ""),  # execute bits pass Sagewai's check
        (b" " + KEY + b"\r\n", 0o600, KEY, ""),
        (KEY, 0o644, KEY, "mode 0644, accessible to other users"),
        (KEY, 0o640, KEY, "mode 0640, accessible to other users"),
        (KEY, 0o602, KEY, "mode 0602, accessible to other users"),
        (KEY[:40], 0o600, b"", "40 characters, not 44"),
        (KEY * 1000, 0o600, b"", "4096 characters, not 44"),
        (b"", 0o600, b"", "empty"),
        (b"\n", 0o644, b"", "empty"),
        (b"!" * 44, 0o600, b"", "not base64 of 32 bytes"),
        (b"\xff" * 44, 0o600, b"", "not base64 of 32 bytes"),
        (b"A" * 43 + b"!", 0o600, b"", "not base64 of 32 bytes"),
        (b"A" * 44, 0o600, b"", "not base64 of 32 bytes"),
        (b"+/" + KEY[2:], 0o600, b"+/" + KEY[2:], ""),
    ],
)
def test_key_file_is_checked_as_sagewai_checks_it(
    content: bytes, mode: int, value: bytes, problem: str, home: Home
) -> None:
    """A mode that lets others in spoils the key for Sagewai, not for us."""
    put(home.master_key, content, mode)

    (found,) = find_candidates(home, NO_KEYRING)

    assert (found.value, found.problem) == (value, problem)
    assert (active_key([found]) is None) == bool(problem)
    assert (configured_key([found]) is None) == (not value)


def test_mode_is_that_of_a_links_target(home: Home, tmp_path: Path) -> None:
    """A link in the key's place is followed."""
    put(tmp_path / "real.key", mode=0o644)
    home.master_key.symlink_to(tmp_path / "real.key")

    (found,) = find_candidates(home, NO_KEYRING)

    assert found.problem == "mode 0644, accessible to other users"


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_named_and_not_waited_for(kind: str, home: Home) -> None:
    """A directory or a pipe where the key should be is a problem, not an exception."""
    if kind == "directory":
        home.master_key.mkdir()
    else:
        os.mkfifo(home.master_key)

    (found,) = find_candidates(home, NO_KEYRING)

    assert (found.value, found.problem) == (b"", "not a regular file")


def test_dangling_link_is_no_source(home: Home) -> None:
    """Sagewai goes on to the older place then."""
    home.master_key.symlink_to("nowhere")
    put(home.legacy_master_key)

    assert [each.source for each in find_candidates(home, NO_KEYRING)] == ["master.key"]


@pytest.mark.parametrize(
    ("value", "key", "problem"),
    [
        (KEY.decode(), KEY, ""),
        (KEY.decode() + "\n", KEY, "45 characters, not 44: blanks around the key"),
        ("short", b"", "5 characters, not 44"),
        (" ", b"", "1 characters, not 44"),
        ("\udcff" * 44, b"", "not base64 of 32 bytes"),
    ],
)
def test_variable_is_taken_with_its_blanks(
    value: str, key: bytes, problem: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sagewai strips the file but not the variable; we open values with the key anyway."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    (found,) = find_candidates(home, {"SAGEWAI_MASTER_KEY": value})

    assert (found.value, found.problem) == (key, problem)


def test_empty_variable_is_not_set(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty string falls through to the file."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    put(home.master_key)

    found = find_candidates(home, {"SAGEWAI_MASTER_KEY": ""})

    assert [each.source for each in found] == ["secrets/master.key"]


def test_refused_first_source_is_resolved_but_not_accepted(home: Home) -> None:
    """Sagewai does not fall back from a key with a bad mode: it would make a new one."""
    put(home.master_key, mode=0o644)
    put(home.legacy_master_key, OTHER)

    found = find_candidates(home, NO_KEYRING)

    assert active_key(found) is None
    assert (key := configured_key(found)) is not None
    assert key.value == KEY


def test_first_source_without_any_key_is_passed_over_by_us(home: Home) -> None:
    """What the home is meant to run on is the next that can be a key."""
    put(home.master_key, b"")
    put(home.legacy_master_key, OTHER)

    found = find_candidates(home, NO_KEYRING)

    assert active_key(found) is None
    assert (key := configured_key(found)) is not None
    assert key.source == "master.key"


def test_keys_that_the_caller_brings_are_not_sagewais(home: Home, tmp_path: Path) -> None:
    """A key file or an archive's key opens values, but Sagewai does not look there."""
    put(tmp_path / "given.key")
    found = (
        *find_candidates(home, {}, key_file=tmp_path / "given.key"),
        key_from_bytes("archive", KEY),
    )

    assert [each.fingerprint for each in found] == [fingerprint(KEY)] * 2
    assert configured_key(found) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"x" * 10, "10 characters, not 44"), (b"!" * 44, "not base64 of 32 bytes")],
)
def test_key_file_of_the_caller_must_hold_a_key(
    content: bytes, message: str, home: Home, tmp_path: Path
) -> None:
    """What was asked for by name and is no key is an error."""
    (tmp_path / "given.key").write_bytes(content)

    with pytest.raises(KeyMissingError, match=f"given.key: not a master key, {message}"):
        find_candidates(home, {}, key_file=tmp_path / "given.key")


def test_key_file_that_cannot_be_read_is_distinguished(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing is exit 10, forbidden is exit 14."""
    with pytest.raises(NotFoundError, match="No such file"):
        find_candidates(home, {}, key_file=tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="not a regular file"):
        find_candidates(home, {}, key_file=tmp_path)

    def forbid(*_: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    put(home.master_key)
    monkeypatch.setattr(beneath, "open_file", forbid)
    monkeypatch.setattr(candidates, "read_given_file", forbid)
    with pytest.raises(PermissionDeniedError, match="Permission denied"):
        find_candidates(home, {}, key_file=tmp_path / "given.key")
    (found,) = find_candidates(home, {})
    assert (found.value, found.problem) == (b"", "cannot be read: Permission denied")


def test_key_given_from_elsewhere_is_checked_as_well() -> None:
    """An archive's key file may hold anything."""
    assert key_from_bytes("archive", KEY + b"\n").value == KEY
    assert key_from_bytes("archive", b"no key") == Candidate("archive", b"", "6 characters, not 44")
    assert key_from_bytes("archive", b"no key").fingerprint == ""


def test_key_is_not_shown(home: Home) -> None:
    """A candidate in a log or a traceback discloses nothing."""
    put(home.master_key)

    assert KEY.decode() not in repr(find_candidates(home, {}))
