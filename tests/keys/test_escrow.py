"""A key in escrow: encrypted, proved, on paper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyrage
import pytest

from sagewai_ops.errors import DamagedError, NotFoundError, TargetBusyError, UsageError
from sagewai_ops.fs import atomic
from sagewai_ops.home.paths import MASTER_KEY, Home, locate
from sagewai_ops.keys.candidates import ENVIRONMENT, Candidate, find_candidates
from sagewai_ops.keys.escrow import (
    Escrow,
    check_place,
    ciphertext_of,
    seal_key,
    sheet_of,
    write_key,
    write_sheet,
)
from small_homes import small

KEY = b"b3RoZXIgbWFzdGVyIGtleSBvdGhlciBtYXN0ZXIga2U="
MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with nothing but a key."""
    found = locate(tmp_path / "home", {})
    found.master_key.parent.mkdir(parents=True)
    found.master_key.write_bytes(KEY)
    found.master_key.chmod(0o600)
    return found


@pytest.fixture
def identity() -> pyrage.x25519.Identity:
    """The identity of who is meant to open it."""
    return pyrage.x25519.Identity.generate()


@pytest.fixture
def sealed(identity: pyrage.x25519.Identity) -> Escrow:
    """The key, encrypted to that identity."""
    return seal_key(Candidate("secrets/master.key", KEY), [str(identity.to_public())])


def test_each_recipient_opens_the_key_and_no_other(identity: pyrage.x25519.Identity) -> None:
    """Any one of them; one named twice counts once."""
    second = pyrage.x25519.Identity.generate()
    names = [str(each.to_public()) for each in (identity, second, identity)]

    sealed = seal_key(Candidate("x", KEY), names)

    assert sealed.recipients == tuple(names[:2])
    assert pyrage.decrypt(sealed.content, [identity]) == KEY
    assert pyrage.decrypt(sealed.content, [second]) == KEY
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(sealed.content, [pyrage.x25519.Identity.generate()])


def test_neither_key_nor_identity_is_in_what_is_shown(sealed: Escrow) -> None:
    """A traceback or a log reports nothing."""
    assert KEY.decode() not in repr(sealed)
    assert "AGE-SECRET" not in repr(sealed)


def test_a_written_key_is_private_and_opens(
    sealed: Escrow, identity: pyrage.x25519.Identity, tmp_path: Path
) -> None:
    """Whatever the umask; nothing else is left next to it."""
    before = os.umask(0)
    try:
        write_key(tmp_path / "key.age", sealed)
    finally:
        os.umask(before)

    assert (tmp_path / "key.age").stat().st_mode & 0o777 == 0o600
    assert pyrage.decrypt((tmp_path / "key.age").read_bytes(), [identity]) == KEY
    assert [path.name for path in tmp_path.iterdir()] == ["key.age"]


def test_the_sheet_alone_recovers_the_key(
    sealed: Escrow, home: Home, identity: pyrage.x25519.Identity, tmp_path: Path
) -> None:
    """With the identity; it names what, when, of which home, for whom and what to do."""
    write_sheet(tmp_path / "sheet.txt", sealed, home, MOMENT)

    text = (tmp_path / "sheet.txt").read_text()
    assert pyrage.decrypt(ciphertext_of(text), [identity]) == KEY
    assert (tmp_path / "sheet.txt").stat().st_mode & 0o777 == 0o600
    for output in (
        sealed.key.fingerprint,
        str(home.root),
        "2026-05-04 03:02 UTC",
        str(identity.to_public()),
        "age -d -i IDENTITY",
        f"install -m 0600 master.key {home.master_key}",
    ):
        assert output in text
    assert KEY.decode() not in text
    assert "AGE-SECRET" not in text


@pytest.mark.skipif(not shutil.which("age"), reason="no age")
def test_the_instructions_of_a_sheet_can_be_followed_to_the_letter(
    identity: pyrage.x25519.Identity, tmp_path: Path
) -> None:
    """Wherever the home is, also without its secrets: every command on it works."""
    built = small(tmp_path / "a home's")
    home = locate(built.root, {})
    sealed = seal_key(find_candidates(home, {})[0], [str(identity.to_public())])
    write_sheet(tmp_path / "sheet.txt", sealed, home, MOMENT)
    shutil.rmtree(built.root / "secrets")
    text = (tmp_path / "sheet.txt").read_text()
    (tmp_path / "key.age").write_text(text[text.index("-----BEGIN") :])
    (tmp_path / "identity").write_text(str(identity))
    program = tmp_path / "sagewai-ops"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sagewai_ops "$@"\n')
    program.chmod(0o700)
    steps = text.partition("If the home is lost too")[0].replace("IDENTITY", "identity")
    commands = [line.strip() for line in steps.splitlines() if line.startswith("     ")]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    outputs = [
        subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=path, capture_output=True, text=True, check=False
        )
        for line in commands
    ]

    assert [each.returncode for each in outputs] == [0, 4, 0, 0], (
        outputs
    )  # what it opens is not lost yet
    assert re.search(rf"key file +{sealed.key.fingerprint}", outputs[1].stdout)
    assert built.master_key.read_bytes() == built.master_keys[0]
    assert built.master_key.stat().st_mode & 0o777 == 0o600
    assert built.master_key.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("source", "is_named"), [(ENVIRONMENT, True), (MASTER_KEY, False)])
def test_a_sheet_says_where_sagewai_looks_first(home: Home, source: str, *, is_named: bool) -> None:
    """A file next to a variable would be of no use."""
    key = Candidate(source, KEY)
    recipient = str(pyrage.x25519.Identity.generate().to_public())

    text = sheet_of(seal_key(key, [recipient]), home, MOMENT)

    assert (f"It came from {source}" in text) is is_named


def test_a_sheet_is_plain_text_of_a_pages_width(sealed: Escrow, tmp_path: Path) -> None:
    """Control characters in a home's name are escaped: it is made to be printed."""
    text = sheet_of(sealed, locate(tmp_path / "a\nb \x1b[31m", {}), MOMENT)

    assert all(line.isprintable() for line in text.splitlines())
    block = text[text.index("-----BEGIN") :].splitlines()[1:-1]
    assert {len(line) for line in block[:-1]} == {64}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other key"])
def test_what_does_not_open_again_never_gets_its_name(
    damage: str, sealed: Escrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that writes something else is found out; the file that was there stays."""
    whole = atomic.replace
    other = Escrow(Candidate("x", KEY[::-1]), (), sealed.content, sealed.identity)
    flipped = sealed.content[:-1] + bytes([sealed.content[-1] ^ 1])
    written: dict[str, bytes] = {"flip": flipped, "cut": sealed.content[:-9], "empty": b""}

    def replace(path: Path, content: bytes, **options: Any) -> None:
        whole(path, written.get(damage, content), **options)

    monkeypatch.setattr(atomic, "replace", replace)
    (tmp_path / "key.age").write_bytes(b"before")

    with pytest.raises(DamagedError):
        write_key(tmp_path / "key.age", other if damage == "other key" else sealed)

    assert [path.name for path in tmp_path.iterdir()] == ["key.age"]
    assert (tmp_path / "key.age").read_bytes() == b"before"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n-----BEGIN AGE ENCRYPTED FILE-----\nAAAA\n",
        "\n-----BEGIN AGE ENCRYPTED FILE-----\nA?\n-----END AGE ENCRYPTED FILE-----\n",
    ],
)
def test_a_sheet_without_a_whole_block_is_refused(text: str) -> None:
    """Cut or smudged paper is distinguished from a wrong key."""
    with pytest.raises(DamagedError, match="recovery sheet"):
        ciphertext_of(text)


def test_places_that_would_be_lost_or_would_lose_something_are_refused(
    home: Home, tmp_path: Path
) -> None:
    """In the home, through a link too; on a key; on what is there; in no directory."""
    (tmp_path / "link").symlink_to(home.root)
    kept = tmp_path / "kept.key"
    kept.write_bytes(KEY)
    keys = find_candidates(home, {}, key_file=kept)

    for path in (home.root / "k.age", tmp_path / "link/k.age", home.master_key, kept):
        with pytest.raises(UsageError):
            check_place(path, home, keys, force=True)
    (tmp_path / "there").write_bytes(b"x")
    with pytest.raises(TargetBusyError, match="exists"):
        check_place(tmp_path / "there", home, keys, force=False)
    with pytest.raises(TargetBusyError, match="is a directory"):
        check_place(tmp_path, home, keys, force=True)
    with pytest.raises(NotFoundError):
        check_place(tmp_path / "none/k.age", home, keys, force=False)
    check_place(tmp_path / "there", home, keys, force=True)
