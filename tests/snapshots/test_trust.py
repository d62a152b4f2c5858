"""Metadata files are advisory: what neither an HMAC nor the archive confirms does not count."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import archives
from program import call
from sagewai_ops.archive.authentication import derive_key
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.catalog import list_snapshots
from sagewai_ops.snapshots.trust import Trust, confirm, next_sequence

KEY = derive_key("f" * 16, b"A" * 43 + b"=")
OURS = Trust((KEY,), frozenset({"us"}), "us", since=3)
HEADER = {"home_id": "us", "home": "/srv/home", "host": "here", "key_fingerprint": "f" * 16}
STRANGER = 40001


def _put(
    directory: Path,
    sequence: int,
    *,
    encrypted: bool = False,
    authentic: bool = False,
    header: Any = None,
    **card: Any,
) -> Path:
    """Put an archive of format 1 with a metadata file into a directory."""
    directory.mkdir(mode=0o700, exist_ok=True)
    name = f"20260101T0000{sequence:02}Z-{sequence:06x}"
    path = directory / catalog.archive_name(name, is_encrypted=encrypted)
    facts = {**HEADER, "sequence": sequence}
    archives.write(path, [], name=name, facts={**facts, **(header or {})})
    complete = {"archive": path.name, "id": name, **facts, "complete": True, **card}
    cards.write_card(path, complete, KEY if authentic else None)
    return path


def _confirmed(directory: Path, trust: Trust = OURS) -> dict[int, str]:
    """Map the last digits of each snapshot to its doubt."""
    found = confirm(directory, catalog.list_snapshots(directory), trust)
    return {int(item.id[-6:], 16): item.doubt for item in found}


def test_authenticated_metadata_file_is_believed(tmp_path: Path) -> None:
    """Also of an archive that is not read; a changed or copied one is not."""
    _put(tmp_path / "s", 4, encrypted=True, authentic=True)
    changed = _put(tmp_path / "s", 5, encrypted=True, authentic=True)
    card = cards.card_path(changed)
    card.write_text(card.read_text().replace('"complete": true', '"complete": false'))
    other = _put(tmp_path / "s", 6, encrypted=True)
    copied = json.loads(cards.card_path(tmp_path / "s" / _name(4, ".age")).read_text())
    cards.card_path(other).write_text(json.dumps({**copied, "archive": other.name}))

    doubts = _confirmed(tmp_path / "s")

    assert doubts[4] == ""
    assert "not authenticated" in doubts[5]
    assert "not authenticated" in doubts[6]


def _name(sequence: int, suffix: str = "") -> str:
    return f"sagewai-20260101T0000{sequence:02}Z-{sequence:06x}.tar.zst{suffix}"


def test_older_snapshots_than_the_first_authenticated_one_count_by_their_owner(
    tmp_path: Path,
) -> None:
    """They were written before; newer ones without authentication are not of this home."""
    for sequence in (1, 2, 3, 4):
        _put(tmp_path / "s", sequence, encrypted=sequence % 2 == 0)

    doubts = _confirmed(tmp_path / "s")

    assert [bool(doubts[sequence]) for sequence in (1, 2, 3, 4)] == [False, False, True, True]


def test_header_replaces_what_the_metadata_file_claims(tmp_path: Path) -> None:
    """Sequence and home; and no result of it counts where the home authenticates."""
    path = _put(tmp_path / "s", 1, header={"home_id": "them"})
    proved = _put(tmp_path / "s", 4, proved_restorable_at="2026-01-01T00:00:00Z")
    cards.card_path(path).write_text(
        cards.card_path(path).read_text().replace('"sequence": 1', '"sequence": 900')
    )

    found = {
        item.path: item
        for item in confirm(tmp_path / "s", catalog.list_snapshots(tmp_path / "s"), OURS)
    }

    assert (found[path].sequence, found[path].home_id) == (1, "them")
    assert found[proved].proved_at == ""


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_renamed_archive_is_not_what_its_name_states(tmp_path: Path, keys: Any) -> None:
    """With and without a key of the home."""
    path = _put(tmp_path / "s", 1)
    path.rename(path.with_name(_name(9)))

    doubts = _confirmed(tmp_path / "s", Trust(keys, frozenset({"us"})))

    assert doubts[9] == "its content is snapshot 20260101T000001Z-000001"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_directory_of_several_users_shows_nothing_of_encrypted_archives(
    tmp_path: Path, mode: int
) -> None:
    """Sticky or not; a clear one has its header."""
    _put(tmp_path / "s", 1)
    _put(tmp_path / "s", 2, encrypted=True)
    (tmp_path / "s").chmod(mode)

    doubts = _confirmed(tmp_path / "s", Trust((), frozenset({"us"})))

    assert doubts == {1: "", 2: "others can write its directory"}


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of files")
def test_files_of_other_users_count_only_if_they_are_authentic(tmp_path: Path) -> None:
    """They are listed, with a note."""
    for sequence in (4, 5):
        path = _put(tmp_path / "s", sequence, authentic=sequence == 4)
        os.chown(path, STRANGER, STRANGER)

    doubts = _confirmed(tmp_path / "s")

    assert doubts == {4: "", 5: "owned by another user, and not authenticated"}


def test_forged_number_does_not_become_the_next_one(tmp_path: Path) -> None:
    """Only a confirmed snapshot counts up."""
    _put(tmp_path / "s", 4, authentic=True)
    card = cards.card_path(_put(tmp_path / "s", 5, encrypted=True))
    card.write_text(card.read_text().replace('"sequence": 5', f'"sequence": {2**62}'))

    assert next_sequence(tmp_path / "s", OURS) == 5


def test_metadata_file_makes_no_snapshot_proved(tmp_path: Path) -> None:
    """Nor does a prune count a forged one: the three true ones stay."""
    home = tmp_path / "home"
    call("--home", home, "init")
    for _number in range(3):
        assert call("--home", home, "backup").code == 0
    directory = tmp_path / "home.snapshots"
    good = [item.path for item in reversed(list_snapshots(directory))]
    card = json.loads(cards.card_path(good[0]).read_text())
    card["proved_restorable_at"] = "2026-01-01T00:00:00Z"
    card["drill"] = {"outcome": "proved"}
    cards.card_path(good[0]).write_text(json.dumps(card))
    for number in range(3):
        forged = directory / f"sagewai-2027010{number + 1}T000000Z-ffffff.tar.zst"
        shutil.copy(good[0], forged)
        name = catalog.id_of(forged.name)
        facts = {**card, "archive": forged.name, "id": name, "sequence": 900 + number}
        cards.card_path(forged).write_text(json.dumps(facts))

    status = call("--home", home, "status", "--json").result["snapshots"]
    listed = call("--home", home, "snapshots", "list", "--json").result["snapshots"]
    pruned = call("--home", home, "snapshots", "prune", "--keep-last", 3, "--json").result

    assert (status["count"], status["proved"]) == (3, None)
    assert status["newest"]["id"] in {catalog.id_of(path.name) for path in good}
    assert {row["proved_restorable_at"] for row in listed} == {None}
    assert pruned["removed"] == []
    assert call("--home", home, "restore", "latest", "--replace").code == 0


def test_drill_is_recorded_with_an_hmac(tmp_path: Path) -> None:
    """So `status` reports the proof."""
    home = tmp_path / "home"
    call("--home", home, "init")
    call("--home", home, "backup")

    assert call("--home", home, "drill").code == 0

    result = call("--home", home, "status", "--json").result
    assert result["snapshots"]["proved"]["proved_restorable_at"]
    (row,) = call("--home", home, "snapshots", "list", "--json").result["snapshots"]
    assert (row["authenticity"], row["doubt"]) == ("authentic", "")
