"""The differences between two snapshots, and metadata files rebuilt from archives."""

import json
import os
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from home_builder import BuiltHome
from program import Answer, call, run, taken
from sagewai_ops.snapshots import cards
from sagewai_ops.snapshots.rebuild_cards import rebuild_cards
from small_homes import small


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltHome, Path, Path]:
    """A home and two snapshots of it, with changes in between."""
    built = small(tmp_path_factory.mktemp("difference") / "home")
    data = built.root / "data"
    data.mkdir(exist_ok=True)
    for name in ("stays", "touched", "goes", "changes", "opened", "turns"):
        (data / name).write_bytes(name.encode())
    first = taken(call("--home", built.root, "backup", "--json", "--tag", "before", "--tag", "a b"))
    (data / "goes").unlink()
    (data / "came").write_bytes(b"came")
    (data / "changes").write_bytes(b"changed")
    (data / "opened").chmod(0o640)
    os.utime(data / "touched")
    (data / "turns").unlink()
    (data / "turns").symlink_to("stays")
    with sqlite3.connect(built.database) as connection:
        connection.execute("CREATE TABLE own (number)")
        connection.execute("INSERT INTO own VALUES (1), (2)")
        connection.execute("DELETE FROM workflow_runs")
    connection.close()
    second = taken(call("--home", built.root, "backup", "--accept-change", "--json"))
    return built, first, second


def _diff(built: BuiltHome, *words: object) -> Answer:
    return call("--home", built.root, "snapshots", "diff", *words)


def test_files_and_tables_that_differ_are_named(world: tuple[BuiltHome, Path, Path]) -> None:
    """Added, removed, changed and how; rows by table; what was only touched is the same."""
    built, first, _second = world

    result = _diff(built, first, "latest", "--json").result

    assert result["added"] == {"data/came": 4}
    assert result["removed"] == {"data/goes": 4}
    changed = {row["path"]: row["what"] for row in result["changed"]}
    assert changed == {
        "data/changes": ["content"],
        "data/opened": ["mode"],
        "data/turns": ["type"],
        "db/sagewai.db": ["content"],
    }
    assert {row["table"]: (row["rows_before"], row["rows_after"]) for row in result["tables"]} == {
        "own": (None, 2),
        "workflow_runs": (1, 0),
    }
    assert result["facts"] == {}
    assert result["keys"] == {}
    assert not result["same"]


def test_the_difference_is_shown_in_lines(world: tuple[BuiltHome, Path, Path]) -> None:
    """One for each file, table and fact, also without a terminal: it was asked for."""
    built, first, second = world
    name = first.name[len("sagewai-") : -len(".tar.zst")]

    out = run("--home", built.root, "snapshots", "diff", name, second).out

    assert "  + data/came  4 B\n" in out
    assert "  - data/goes  4 B\n" in out
    assert "  ~ data/changes  content  7 B\n" in out
    assert "  rows workflow_runs  1 -> 0 (-1)\n" in out
    assert "  rows own  no table -> 2\n" in out
    assert _diff(built, "latest", "latest").out.splitlines()[1:] == ["  no differences"]


def test_level_key_and_place_that_differ_are_facts(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path
) -> None:
    """Of another home, with a key of its own."""
    built, first, _second = world
    other = small(tmp_path / "other", seed=3, revision="018_fleet_schema_correction", rows=2)
    archive = taken(call("--home", other.root, "backup", "--json"))

    result = _diff(built, first, archive, "--json").result

    assert result["facts"]["home"] == {"before": str(built.root), "after": str(other.root)}
    assert "schema_level" in result["facts"]
    assert "key_fingerprint" in result["facts"]
    assert len(result["keys"]) == 2


def test_what_cannot_be_compared_is_an_error(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path
) -> None:
    """An unknown one, one of several, a damaged one."""
    built, first, _second = world
    (tmp_path / "broken.tar.zst").write_bytes(first.read_bytes()[:-3])

    assert _diff(built, "1999", "latest").code == 10
    assert _diff(built, "2", "latest").code == 2
    assert _diff(built, tmp_path / "broken.tar.zst", "latest").code == 16


def _list(directory: Path, *words: object) -> Answer:
    return call("snapshots", "list", "--snapshots", directory, "--json", *words)


def _copied(world: tuple[BuiltHome, Path, Path], directory: Path) -> list[Path]:
    """Copy the two snapshots with their cards into a directory of a test's own."""
    found = []
    for archive in world[1:]:
        (directory / archive.name).write_bytes(archive.read_bytes())
        cards.card_path(directory / archive.name).write_bytes(cards.card_path(archive).read_bytes())
        found.append(directory / archive.name)
    return found


def test_tags_are_listed_and_found_by(world: tuple[BuiltHome, Path, Path]) -> None:
    """One of several is enough; the archive has them, too."""
    built, first, second = world
    directory = first.parent

    rows = _list(directory).result["snapshots"]
    found = _list(directory, "--tag", "a b", "--tag", "none").result["snapshots"]

    assert [row["tags"] for row in rows] == [["before", "a b"], []]
    assert [row["archive"] for row in found] == [str(first)]
    assert "before,a b" in call("snapshots", "list", "--snapshots", directory).out
    shown = call("--home", built.root, "snapshots", "show", second, "--json")
    assert shown.result["tags"] == []


@pytest.mark.parametrize("tag", ["", " a", "a\n", "x" * 101])
def test_what_is_no_tag_is_refused(
    world: tuple[BuiltHome, Path, Path], tag: str, tmp_path: Path
) -> None:
    """Before anything is taken."""
    answer = call("--home", world[0].root, "backup", "--to", tmp_path / "b", "--tag", tag)

    assert answer.code == 2
    assert not (tmp_path / "b").exists()


def _facts(card: Path) -> dict[str, Any]:
    found = json.loads(card.read_bytes())
    assert isinstance(found, dict)
    return found


def test_lost_and_broken_cards_are_rebuilt(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path
) -> None:
    """Equal to the previous ones, except for the time of the verification."""
    first, second = _copied(world, tmp_path)
    before = [_facts(cards.card_path(path)) for path in (first, second)]
    cards.card_path(first).unlink()
    cards.card_path(second).write_text("{")
    (tmp_path / "notes.txt").touch()

    answer = _list(tmp_path, "--rebuild")

    assert answer.code == 0
    after = [_facts(cards.card_path(path)) for path in (first, second)]
    for old, new in zip(before, after, strict=True):
        assert old.pop("mac")  # no key of the home is available to this run
        assert {**old, "verified_at": ""} == {**new, "verified_at": ""}
        assert new["verified_at"] >= old["verified_at"]
    assert [row["has_card"] for row in answer.result["snapshots"]] == [True, True]
    assert len(answer.result["rebuilt"]["written"]) == 2


@pytest.mark.parametrize("with_card", [True, False])
def test_a_rebuild_tells_how_far_it_is(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path, *, with_card: bool
) -> None:
    """In bytes of the archives, from the first to the last, also within one."""
    paths = _copied(world, tmp_path)
    total = sum(path.stat().st_size for path in paths)
    if not with_card:
        cards.card_path(paths[0]).unlink()
    reported: list[tuple[str, int, int]] = []

    rebuild_cards(tmp_path, None, progress=lambda *what: reported.append(what))

    done = [count for _stage, count, _total in reported]
    assert {(stage, of) for stage, _count, of in reported} == {("rebuild", total)}
    assert done == sorted(done)
    assert (len(set(done)) > len(paths)) is not with_card
    assert done[-1] == total


def test_what_only_the_card_knows_stays_on_it(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path
) -> None:
    """What a drill proved, tags that were changed, when it was verified."""
    first, _second = _copied(world, tmp_path)
    card = cards.card_path(first)
    proof = {"drill": {"outcome": "passed"}, "proved_restorable_at": "2026-01-01T00:00:00Z"}
    old = {**_facts(card), **proof, "tags": ["mine"], "schema_level": "wrong"}
    card.write_text(json.dumps(old))

    assert _list(tmp_path, "--rebuild").code == 0

    new = _facts(card)
    assert {name: new[name] for name in (*proof, "tags", "verified_at")} == {
        name: old[name] for name in (*proof, "tags", "verified_at")
    }
    assert new["schema_level"] != "wrong"


@pytest.mark.parametrize("with_card", [True, False])
def test_a_damaged_archive_gets_no_card_that_says_it_holds(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path, *, with_card: bool
) -> None:
    """Exit 4, it is named, and the others are done."""
    first, second = _copied(world, tmp_path)
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    if not with_card:
        cards.card_path(first).unlink()

    answer = _list(tmp_path, "--rebuild")

    assert answer.code == 4
    assert len(answer.result["rebuilt"]["damaged"]) == 1
    assert len(answer.result["rebuilt"]["written"]) == 1
    assert cards.card_path(first).exists() is with_card
    assert first.name[8:30] in answer.document["warnings"][0]
    assert _facts(cards.card_path(second))["complete"] is True


def test_a_card_that_anyone_may_have_written_replaces_no_verification(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path
) -> None:
    """It has the hash of the damaged archive, and no HMAC: it gets none, the archive is damaged."""
    first, _second = _copied(world, tmp_path)
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    forged = {**_facts(cards.card_path(first)), "archive_sha256": sha256(content).hexdigest()}
    forged.pop("mac")
    cards.card_path(first).write_text(json.dumps(forged))

    words = ("snapshots", "list", "--rebuild", "--snapshots", tmp_path, "--json")
    answer = call("--home", world[0].root, *words)

    assert answer.code == 4
    assert len(answer.result["rebuilt"]["damaged"]) == 1
    assert _facts(cards.card_path(first)) == forged


def test_an_encrypted_archive_needs_its_identity(
    world: tuple[BuiltHome, Path, Path], tmp_path: Path
) -> None:
    """Without it the card has what the file shows, and exit is 3; with it, everything."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "identity.txt").write_text(str(identity))
    directory = tmp_path / "sealed"
    archive = taken(call("--home", world[0].root, "backup", "--json", "--to", directory,
                         "--recipient", identity.to_public()))  # fmt: skip
    before = _facts(cards.card_path(archive))

    assert _list(directory, "--rebuild").code == 3
    assert _facts(cards.card_path(archive)) == before
    cards.card_path(archive).unlink()
    answer = _list(directory, "--rebuild")
    limited = _facts(cards.card_path(archive))
    whole = _list(directory, "--rebuild", "--identity", tmp_path / "identity.txt")

    assert answer.code == 3
    assert "--identity" in answer.document["warnings"][0]
    assert limited["archive_sha256"] == before["archive_sha256"]
    assert "home" not in limited
    assert whole.code == 0
    # No key of the home is available to these runs, and an archive does not name its recipients.
    del before["mac"], before["recipients"]
    assert {**_facts(cards.card_path(archive)), "verified_at": ""} == {
        **before,
        "verified_at": "",
    }
