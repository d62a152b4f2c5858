"""A backup of a home that is itself bad never passes for a good one, and never displaces one."""

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from home_builder import BuiltHome
from program import Answer, call, taken
from small_homes import small

DOCUMENTS = ("config/admin-state.json", "config/connections.json", "secrets/profiles.json")


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A home with all documents and rows."""
    return small(tmp_path / "home")


def backup(built: BuiltHome, *words: object) -> Answer:
    """Create a snapshot."""
    return call("--home", built.root, "backup", "--json", *words)


def left(built: BuiltHome) -> set[str]:
    """Return the ids of all snapshots in the directory."""
    listed = call("--home", built.root, "snapshots", "list", "--json").result
    return {row["id"] for row in listed["snapshots"]}


def _remove_database(built: BuiltHome) -> None:
    for path in built.database.parent.glob("sagewai.db*"):
        path.unlink()


def _empty_database(built: BuiltHome) -> None:
    _remove_database(built)
    built.database.touch()


def _delete_rows(built: BuiltHome) -> None:
    with sqlite3.connect(built.database) as connection:
        connection.execute("DELETE FROM workflow_runs")
    connection.close()


def _tear(built: BuiltHome) -> None:
    path = built.root / DOCUMENTS[1]
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (_remove_database, 3, "database: missing, had"),
        (_empty_database, 4, "database: empty, it has no tables"),
        (_delete_rows, 3, "table workflow_runs: 0 rows, had"),
        (_tear, 4, "config/connections.json: not JSON"),
        (
            lambda built: (built.root / "secrets/profiles.json").unlink(),
            3,
            "profiles.json: missing",
        ),
    ],
)
def test_a_bad_night_has_its_code_and_displaces_nothing(
    built: BuiltHome, spoil: Callable[[BuiltHome], None], code: int, words: str
) -> None:
    """Each night names the reason; the good snapshot stays, and is what `latest` names."""
    good = backup(built, "--keep-last", 1)
    spoil(built)

    nights = [backup(built, "--keep-last", 1) for _night in range(5)]

    assert good.code == 0
    assert [night.code for night in nights] == [code] * 5
    assert any(words in warning for warning in nights[-1].document["warnings"])
    assert nights[-1].result["compared_with"] == good.result["id"]
    assert left(built) == {good.result["id"], *(night.result["id"] for night in nights[-3:])}
    shown = call("--home", built.root, "snapshots", "show", "latest", "--json")
    assert shown.result["id"] == good.result["id"]
    assert len(shown.document["warnings"]) == 3
    status = call("--home", built.root, "status", "--json")
    assert status.result["snapshots"]["good"]["id"] == good.result["id"]


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"{}", b'{"version": 2, "conn', b"[]"])
def test_a_torn_document_is_not_sound(built: BuiltHome, name: str, content: bytes) -> None:
    """Even in the first snapshot of a home; its drill fails, and `restore latest` names it."""
    (built.root / name).write_bytes(content)

    answer = backup(built)

    assert answer.code == 4
    assert [cause["name"] for cause in answer.result["damaged"]] == [name]
    assert answer.result["sound"] is False
    refused = call("--home", built.root, "restore", "latest", "--dry-run")
    assert refused.code == 10
    assert answer.result["id"] in refused.err


def test_a_drill_of_a_torn_document_fails(built: BuiltHome) -> None:
    """It is not proved restorable, and `drill latest` reports what it skipped."""
    backup(built)
    _tear(built)
    bad = backup(built)

    latest = call("--home", built.root, "drill", "--json")
    failed = call("--home", built.root, "drill", bad.result["id"], "--json")

    assert (latest.code, failed.code) == (4, 16)
    assert any(bad.result["id"] in warning for warning in latest.document["warnings"])
    assert "connections.json damaged before" in failed.document["error"]["message"]


def test_an_accepted_change_is_the_new_good_one(built: BuiltHome) -> None:
    """It is recorded, and the next backup is compared with it."""
    backup(built)
    _delete_rows(built)

    refused = backup(built)
    accepted = backup(built, "--accept-change")
    after = backup(built)

    assert (refused.code, accepted.code, after.code) == (3, 0, 0)
    assert accepted.result["change_accepted"] is True
    assert after.result["compared_with"] == accepted.result["id"]
    rows = call("--home", built.root, "snapshots", "list", "--json").result["snapshots"]
    assert [row["plausible"] for row in rows] == [True, False, True, True]
    assert [row["change_accepted"] for row in rows] == [False, False, True, False]


def test_a_lost_admin_state_still_finds_the_good_snapshot(built: BuiltHome) -> None:
    """The id of the home is in that document."""
    good = backup(built)
    (built.root / DOCUMENTS[0]).unlink()

    bad = backup(built, "--keep-last", 1)

    assert bad.code == 3
    assert bad.result["compared_with"] == good.result["id"]
    assert call("--home", built.root, "restore", "latest", "--replace", "--dry-run").code == 0


def test_encrypted_snapshots_are_compared_without_a_key(built: BuiltHome) -> None:
    """The metadata file has the counts."""
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    good = backup(built, "--recipient", recipient)
    _remove_database(built)

    bad = backup(built, "--recipient", recipient)

    assert (good.code, bad.code) == (0, 3)
    assert bad.result["compared_with"] == good.result["id"]


def test_a_rebuilt_metadata_file_has_the_same_properties(built: BuiltHome) -> None:
    """They are in the manifest too."""
    backup(built)
    _delete_rows(built)
    bad = taken(backup(built))
    card = bad.with_name(bad.name + ".json")
    before = card.read_text()
    card.unlink()

    assert call("--home", built.root, "snapshots", "list", "--rebuild").code == 0

    old, new = json.loads(before), json.loads(card.read_text())
    for name in ("complete", "sound", "plausible", "compared_with", "content"):
        assert old[name] == new[name]


@pytest.mark.parametrize("content", [(), ("README.md", "config/", "db/", "src/main.py")])
def test_a_directory_that_is_no_home_is_not_backed_up(
    tmp_path: Path, content: tuple[str, ...]
) -> None:
    """It is the place of a home whose disk is not mounted, or another program's."""
    root = tmp_path / "home"
    root.mkdir()
    for name in content:
        path = root / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.mkdir() if name.endswith("/") else path.touch()

    for words in (["backup"], ["backup", "--dry-run"], ["preflight"]):
        answer = call("--home", root, *words)

        assert answer.code == 10
        assert "none of Sagewai's files" in answer.err
    assert not root.with_name("home.snapshots").exists()


def test_two_directories_of_sagewai_alone_are_a_home(tmp_path: Path) -> None:
    """It may have lost its files; nothing in it is another program's."""
    root = tmp_path / "home"
    (root / "config").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "data/note").touch()

    assert call("--home", root, "backup").code in (0, 3, 4)


def test_a_home_that_is_not_mounted_keeps_its_snapshots(built: BuiltHome) -> None:
    """Whatever the number of nights."""
    good = backup(built, "--keep-last", 1)
    os.rename(built.root, built.root.with_name("disk"))
    built.root.mkdir()

    codes = {backup(built, "--keep-last", 1).code for _night in range(4)}

    assert codes == {10}
    os.rmdir(built.root)
    os.rename(built.root.with_name("disk"), built.root)
    assert left(built) == {good.result["id"]}


def test_snapshots_in_a_followed_directory_are_refused(built: BuiltHome, tmp_path: Path) -> None:
    """Each would contain all earlier ones."""
    disk = tmp_path / "disk"
    os.rename(built.root / "data", disk)
    (built.root / "data").symlink_to(disk)

    answer = call("--home", built.root, "backup", "--to", disk / "snapshots")

    assert answer.code == 2
    assert "inside the home" in answer.err
    assert not (disk / "snapshots").exists()
    assert call("--home", built.root, "backup", "--to", tmp_path / "other").code == 0


def test_a_mirror_is_not_replaced_by_a_bad_one(built: BuiltHome) -> None:
    """There is only one, and it is the good one until the change is accepted."""
    words = ("--format", "directory")
    first = backup(built, *words)
    _delete_rows(built)

    refused = backup(built, *words)
    kept = call("--home", built.root, "snapshots", "show", "tree", "--json").result["id"]
    accepted = backup(built, *words, "--accept-change")

    assert (first.code, refused.code, accepted.code) == (0, 16, 0)
    assert "table workflow_runs: 0 rows" in refused.document["error"]["message"]
    assert kept == first.result["id"]


def test_the_mark_follows_the_good_snapshots(built: BuiltHome) -> None:
    """A newer bad one is skipped; a good one that was removed is noticed."""
    backup(built)
    good = taken(backup(built))
    _delete_rows(built)
    backup(built)
    words = ("--home", built.root, "restore", "latest", "--replace", "--dry-run", "--json")

    skipping = call(*words)
    for path in good.parent.glob(good.name + "*"):
        path.unlink()
    missing = call(*words)

    assert (skipping.code, missing.code) == (0, 16)
    assert skipping.result["archive"] == str(good)
    assert "it was removed, or the directory rolled back" in missing.document["error"]["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_snapshots_below_a_second_mount_of_the_home_are_refused(
    built: BuiltHome, tmp_path: Path
) -> None:
    """The home reaches them by another path."""
    (built.root / "data/work/backups").mkdir(parents=True)
    (tmp_path / "mount").mkdir()
    source, target = str(built.root / "data/work"), str(tmp_path / "mount")
    mount = ["mount", "--bind", source, target]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no mounts here")
    try:
        answer = call("--home", built.root, "backup", "--to", tmp_path / "mount/backups")
    finally:
        subprocess.run(["umount", target], check=True)

    assert answer.code == 2
    assert "inside the home" in answer.err
