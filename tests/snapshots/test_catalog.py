"""Which snapshots a directory holds, in which order, and which of them a name means."""

import json
import os
import socket
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from program import call
from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.home.state_files import place_identity
from sagewai_ops.snapshots import cards, catalog


def _archive(directory: Path, identifier: str, *, sealed: bool = False, **card: Any) -> Path:
    """Put a file with an archive's name into a directory, with a card if one is given."""
    path = directory / catalog.archive_name(identifier, is_encrypted=sealed)
    path.write_bytes(b"archive")
    if card:
        cards.write_card(path, {"archive": path.name, **card})
    return path


def test_an_id_is_the_utc_time_and_random_digits() -> None:
    """Ids sort by time, whatever the zone of the machine, and two of a second differ."""
    moment = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))

    identifiers = {catalog.new_id(moment) for _ in range(20)}

    assert {identifier.rpartition("-")[0] for identifier in identifiers} == {"20260228T233000Z"}
    assert len(identifiers) > 15


def test_only_archives_are_listed(tmp_path: Path) -> None:
    """Partials, cards, directories, links and strangers are not snapshots."""
    path = _archive(tmp_path, "20260101T000000Z-0a1b2c", sequence=1)
    sealed = _archive(tmp_path, "20260102T000000Z-0a1b2c", sealed=True)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".sagewai-20260101T000000Z-0a1b2d.tar.zst.partial").touch()
    (tmp_path / "sagewai-20260101T000000Z-0a1b2e.tar.zst").mkdir()
    (tmp_path / "sagewai-20260101T000000Z-0a1b2f.tar.zst").symlink_to(path)
    (tmp_path / "sagewai-20260101T000000Z-XYZXYZ.tar.zst").touch()
    os.mkfifo(tmp_path / "sagewai-20260101T000000Z-aaaaaa.tar.zst")

    found = catalog.list_snapshots(tmp_path)

    assert [item.path for item in found] == [path, sealed]
    assert [item.is_encrypted for item in found] == [False, True]


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_directory_that_is_not_there_has_no_snapshots(tmp_path: Path, name: str) -> None:
    """Nothing was backed up yet: that is an answer, not an error."""
    (tmp_path / "file").touch()

    assert catalog.list_snapshots(tmp_path / name) == []


def test_the_sequence_orders_and_the_name_does_where_there_is_none(tmp_path: Path) -> None:
    """A clock that was set back reorders nothing; without metadata the time in the name counts."""
    _archive(tmp_path, "20260105T000000Z-000001", sequence=1)
    _archive(tmp_path, "20260103T000000Z-000002", sequence=2)
    _archive(tmp_path, "20260104T000000Z-000003")
    _archive(tmp_path, "20260101T000000Z-000004", sequence=3)

    found = [item.id[-1] for item in catalog.list_snapshots(tmp_path)]

    assert [digit for digit in found if digit != "3"] == ["1", "2", "4"]


def test_order_within_a_second_is_stable_when_a_snapshot_is_removed(tmp_path: Path) -> None:
    """Two that are numbered against the order of their ids, and one whose backup was killed."""
    _archive(tmp_path, "20260101T000000Z-00000a", sequence=9)
    _archive(tmp_path, "20260101T000000Z-00000b")
    goes = _archive(tmp_path, "20260101T000000Z-00000c", sequence=8)
    before = [item.id[-1] for item in catalog.list_snapshots(tmp_path)]

    goes.unlink()

    assert before == ["b", "c", "a"]
    assert [item.id[-1] for item in catalog.list_snapshots(tmp_path)] == ["b", "a"]


def test_digits_that_are_no_date_are_a_snapshot_and_the_oldest(tmp_path: Path) -> None:
    """A forged name does not stop the list."""
    _archive(tmp_path, "20260101T000000Z-000001")
    _archive(tmp_path, "99999999T999999Z-000002")

    oldest, newest = catalog.list_snapshots(tmp_path)
    assert [oldest.id[-1], newest.id[-1]] == ["2", "1"]
    assert [oldest.created_text, newest.created_text] == [
        "0001-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"archive": "another.tar.zst", "sequence": 5}',
    ],
)
def test_a_broken_card_is_no_card(tmp_path: Path, content: bytes) -> None:
    """It never hides the snapshot."""
    path = _archive(tmp_path, "20260101T000000Z-000001")
    cards.card_path(path).write_bytes(content)

    (found,) = catalog.list_snapshots(tmp_path)

    assert found.path == path
    assert found.card == {}
    assert found.sequence == 0


def test_invalid_values_of_a_card_are_ignored(tmp_path: Path) -> None:
    """A number where a text belongs is passed over, the rest counts."""
    path = _archive(tmp_path, "20260101T000000Z-000001")
    card = {
        "archive": path.name,
        "home": 5,
        "sequence": "7",
        "home_id": [],
        "key_custody": "sealed",
    }
    cards.card_path(path).write_text(json.dumps(card))

    (found,) = catalog.list_snapshots(tmp_path)

    assert (found.sequence, found.home_id) == (0, "")
    assert found.card == {"archive": path.name, "key_custody": "sealed"}


def test_an_archive_that_was_cut_is_noticed_by_its_size(tmp_path: Path) -> None:
    """If the metadata file records a size; without it nothing is known."""
    _archive(tmp_path, "20260101T000000Z-000001", archive_bytes=7)
    _archive(tmp_path, "20260102T000000Z-000002", archive_bytes=8)
    _archive(tmp_path, "20260103T000000Z-000003", archive_bytes="8")
    _archive(tmp_path, "20260104T000000Z-000004")

    assert [item.is_truncated for item in catalog.list_snapshots(tmp_path)] == [
        False,
        True,
        False,
        False,
    ]


def test_a_card_that_is_a_directory_is_no_card(tmp_path: Path) -> None:
    """Whatever is at its path, the archive is listed."""
    path = _archive(tmp_path, "20260101T000000Z-000001")
    cards.card_path(path).mkdir()

    assert len(catalog.list_snapshots(tmp_path)) == 1


def test_an_archive_that_goes_meanwhile_takes_no_other_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run prunes while the directory is listed."""
    paths = [_archive(tmp_path, f"2026010{day}T000000Z-000001") for day in (1, 2, 3)]
    really = beneath.status

    def vanishing(path: Path) -> os.stat_result:
        if path == paths[1]:
            raise FileNotFoundError(2, "gone", str(path))
        return really(path)

    monkeypatch.setattr(beneath, "status", vanishing)
    found = catalog.list_snapshots(tmp_path)
    monkeypatch.undo()

    assert [item.path for item in found] == [paths[0], paths[2]]


def test_a_snapshot_is_named_by_id_prefix_or_path(tmp_path: Path) -> None:
    """The whole id, a beginning that is enough, the file's name, or its path."""
    path = _archive(tmp_path, "20260101T000000Z-0a1b2c")
    _archive(tmp_path, "20260102T000000Z-0a1b2c")
    names = ["20260101T000000Z-0a1b2c", "20260101", path.name, str(path)]

    assert {catalog.find_snapshot(tmp_path, name, ()) for name in names} == {path}


def test_a_path_need_not_be_in_the_directory_nor_exist(tmp_path: Path) -> None:
    """A path is returned as it is; opening it finds out whether it exists."""
    named = tmp_path / "copy.tar.zst"

    assert catalog.find_snapshot(tmp_path / "other", str(named), ()) == named


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """No process writes to it, and an archive is read from its end."""
    os.mkfifo(tmp_path / "pipe")

    for path in (f"{tmp_path}/pipe", "/dev/null"):
        with pytest.raises(UsageError, match="not a file or directory"):
            catalog.find_snapshot(tmp_path, path, ())


def test_an_ambiguous_beginning_is_refused_with_two_of_the_ids(tmp_path: Path) -> None:
    """Guessing would restore the wrong one."""
    for day in (1, 2):
        _archive(tmp_path, f"2026010{day}T000000Z-0a1b2c")

    with pytest.raises(UsageError, match=r"ambiguous, 2 ids: 20260101.*20260102"):
        catalog.find_snapshot(tmp_path, "2026", ())
    with pytest.raises(NotFoundError, match="not found in"):
        catalog.find_snapshot(tmp_path, "2025", ())


def test_latest_is_the_latest_of_this_home(tmp_path: Path) -> None:
    """A directory may hold those of several homes."""
    ours = _archive(tmp_path, "20260101T000000Z-000001", sequence=1, home_id="ours")
    theirs = _archive(tmp_path, "20260102T000000Z-000002", sequence=2, home_id="theirs")

    assert catalog.find_snapshot(tmp_path, "latest", ("other", "ours")) == ours
    assert catalog.find_snapshot(tmp_path, "latest", ("theirs",)) == theirs
    with pytest.raises(UsageError, match="several homes"):
        catalog.find_snapshot(tmp_path, "latest", ("nobody",))


def test_latest_of_another_machine_is_the_latest_of_the_only_home(tmp_path: Path) -> None:
    """After a loss the id of the place is another: one home's snapshots are still meant."""
    _archive(tmp_path, "20260101T000000Z-000001", sequence=1, home_id="lost")
    last = _archive(tmp_path, "20260102T000000Z-000002")

    assert catalog.find_snapshot(tmp_path, "latest", ("here",)) == last


def test_latest_of_a_lost_home_is_not_from_before_its_administrator(tmp_path: Path) -> None:
    """Its first snapshot has the id of a place, which a container has for a moment only."""
    place: dict[str, Any] = {"host": "container", "home": "/h"}
    former = {**place, "home_id": place_identity("container", "/h")}
    _archive(tmp_path, "20260101T000000Z-000001", sequence=1, **former, key_fingerprint="a" * 16)
    admin = {**place, "home_id": "admin", "key_fingerprint": "a" * 16}
    last = _archive(tmp_path, "20260102T000000Z-000002", sequence=2, **admin)

    assert catalog.find_snapshot(tmp_path, "latest", ("other",)) == last

    # Without the same key it is another home, and a home with an administrator always is.
    _archive(tmp_path, "20260103T000000Z-000003", sequence=3, **former, key_fingerprint="b" * 16)
    with pytest.raises(UsageError, match="several homes"):
        catalog.find_snapshot(tmp_path, "latest", ("other",))


def test_one_key_does_not_make_two_homes_one(tmp_path: Path) -> None:
    """It may be in the environment of both."""
    key: dict[str, Any] = {"key_fingerprint": "a" * 16}
    _archive(tmp_path, "20260101T000000Z-000001", sequence=1, home_id="one", **key)
    _archive(tmp_path, "20260102T000000Z-000002", sequence=2, home_id="two", **key)

    with pytest.raises(UsageError, match="several homes"):
        catalog.find_snapshot(tmp_path, "latest", ("other",))


def test_homes_of_one_place_that_alternate_are_several(tmp_path: Path) -> None:
    """Two projects of containers that back up to one prefix; a home set up again is one."""
    for day, home_id in enumerate(["before", "one", "one"], 1):
        _archive(tmp_path, f"2026010{day}T000000Z-000001", sequence=day, home_id=home_id)
    ids = {"before", "one"}
    catalog.require_single_home(tmp_path, catalog.list_snapshots(tmp_path), ids)

    _archive(tmp_path, "20260104T000000Z-000001", sequence=4, home_id="before")
    with pytest.raises(UsageError, match="several homes, all from this path"):
        catalog.require_single_home(tmp_path, catalog.list_snapshots(tmp_path), ids)


def test_an_empty_volume_gets_no_home_of_another_project(tmp_path: Path) -> None:
    """Where two back up to one directory, each with the path and host name of the other."""
    home, directory = tmp_path / "home", tmp_path / "snapshots"
    for path in (home, directory):
        path.mkdir(mode=0o700)
    place: dict[str, Any] = {"host": socket.gethostname(), "home": str(home)}
    for day, home_id in enumerate(["one", "two", "one"], 1):
        identifier = f"2026010{day}T000000Z-000001"
        _archive(directory, identifier, sequence=day, home_id=home_id, **place)

    answer = call("--home", home, "restore", "latest", "--if-empty", "--snapshots", directory)

    assert answer.code == 2
    assert "several homes, all from this path and host name" in answer.err
    assert not list(home.iterdir())


def test_latest_of_nothing_is_not_found(tmp_path: Path) -> None:
    """With what to do about it."""
    with pytest.raises(NotFoundError, match="not found in") as raised:
        catalog.find_snapshot(tmp_path, "latest", ())

    assert "sagewai-ops backup" in raised.value.hint


def test_a_card_is_private_and_names_its_version(tmp_path: Path) -> None:
    """Mode 0600, JSON that other programs read."""
    path = _archive(tmp_path, "20260101T000000Z-000001", sequence=3)

    card = cards.card_path(path)

    assert card.stat().st_mode & 0o777 == 0o600
    assert json.loads(card.read_bytes()) == {"card": 1, "archive": path.name, "sequence": 3}


def test_an_amended_card_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    """Facts of a later program stay; None takes one away."""
    path = _archive(tmp_path, "20260101T000000Z-0a1b2c", sequence=3, colour="red", complete=True)

    cards.update_card(path, {"proved_restorable_at": "2026-01-02T00:00:00Z", "complete": None}, {})

    assert json.loads(cards.card_path(path).read_bytes()) == {
        "card": 1,
        "archive": path.name,
        "sequence": 3,
        "colour": "red",
        "proved_restorable_at": "2026-01-02T00:00:00Z",
    }
    (found,) = catalog.list_snapshots(tmp_path)
    assert found.proved_at == "2026-01-02T00:00:00Z"


@pytest.mark.parametrize("content", [None, b"{", b'{"archive": "another", "sequence": 9}'])
def test_a_card_that_cannot_be_read_is_amended_from_the_archive(
    tmp_path: Path, content: bytes | None
) -> None:
    """The facts of the archive replace it."""
    path = _archive(tmp_path, "20260101T000000Z-0a1b2c")
    if content:
        cards.card_path(path).write_bytes(content)

    cards.update_card(path, {"drill": {"outcome": "failed"}}, {"sequence": 4})

    (found,) = catalog.list_snapshots(tmp_path)
    assert found.sequence == 4
    assert found.has_failed_drill
    assert found.proved_at == ""


def test_no_card_is_made_for_an_archive_that_is_gone(tmp_path: Path) -> None:
    """Another run has pruned it."""
    path = tmp_path / catalog.archive_name("20260101T000000Z-0a1b2c", is_encrypted=False)

    with pytest.raises(NotFoundError, match="removed by another run"):
        cards.update_card(path, {"drill": {}}, {"sequence": 4})

    assert list(tmp_path.iterdir()) == []
