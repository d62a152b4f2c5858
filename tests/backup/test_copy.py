"""Copies of snapshots: the same bytes, read back, and the card last."""

from __future__ import annotations

import json
from pathlib import Path

import pyrage
import pytest

from memory_store import MemoryStore
from program import Answer, call
from sagewai_ops.cli.settings import Settings
from sagewai_ops.errors import OpsError, RemoteError
from sagewai_ops.snapshots.catalog import list_snapshots
from small_homes import small

PLACES = ("s3://bucket/one", "s3://bucket/two")
RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> dict[str, MemoryStore]:
    """Two places."""
    found = {address: MemoryStore(address=address) for address in PLACES}
    monkeypatch.setattr(Settings, "_open", lambda _self, address: found[address])
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with three encrypted snapshots in its directory."""
    root: Path = small(tmp_path / "home").root
    for _number in range(3):
        assert call("--home", root, "backup", "--recipient", RECIPIENT).code == 0
    return root


def _copy(home: Path, *words: object) -> Answer:
    return call("--home", home, "snapshots", "copy", "--json", *words)


def _archives(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("sagewai-*.age")}


@pytest.mark.parametrize("target", ["directory", PLACES[0]])
def test_copy_has_the_same_bytes(
    home: Path, stores: dict[str, MemoryStore], tmp_path: Path, target: str
) -> None:
    """All of them, with cards that are authentic in the target; a second run copies nothing."""
    source = home.with_name("home.snapshots")
    to = tmp_path / "copy" if target == "directory" else target

    answer = _copy(home, source, to, "--all")
    again = _copy(home, source, to, "--all")

    assert answer.code == again.code == 0, (answer, again)
    assert len(answer.document["result"]["copied"]) == 3
    assert again.document["result"]["copied"] == []
    assert len(again.document["result"]["present"]) == 3
    if target == "directory":
        found = _archives(tmp_path / "copy")
        assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    else:
        objects = stores[target].objects
        found = {name: value[0] for name, value in objects.items() if name.endswith(".age")}
    assert found == _archives(source)
    listed = call("--home", home, "snapshots", "list", "--json", "--snapshots", to)
    origins = {item["authenticity"] for item in listed.document["result"]["snapshots"]}
    assert origins == {"authentic"}
    chain = call("--home", home, "snapshots", "verify", "--chain", "--snapshots", to)
    assert chain.code == 0, chain


def test_newest_of_a_place_can_be_copied_to_another_and_back(
    home: Path, stores: dict[str, MemoryStore], tmp_path: Path
) -> None:
    """A gap before a copy is no finding of the chain."""
    source = home.with_name("home.snapshots")
    assert _copy(home, source, PLACES[0], "--newest", "2").code == 0
    assert _copy(home, PLACES[0], PLACES[1]).code == 0
    assert _copy(home, PLACES[1], tmp_path / "back").code == 0

    ((name, content),) = _archives(tmp_path / "back").items()
    assert content == _archives(source)[name]
    assert name == list_snapshots(source)[-1].path.name
    chain = call("--home", home, "snapshots", "verify", "--chain", "--snapshots", tmp_path / "back")
    assert chain.code == 0, chain


def test_damaged_archive_is_not_copied(
    home: Path, stores: dict[str, MemoryStore], tmp_path: Path
) -> None:
    """Neither to a directory nor to a store; nothing of it is left there."""
    source = home.with_name("home.snapshots")
    for archive in source.glob("sagewai-*.age"):
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 1
        archive.write_bytes(content)

    for target in (tmp_path / "copy", PLACES[0]):
        answer = _copy(home, source, target)
        assert answer.code == 16
        assert "not copied" in answer.document["error"]["message"]
    assert list((tmp_path / "copy").iterdir()) == []
    assert stores[PLACES[0]].objects == {}


def test_another_archive_of_the_name_is_not_overwritten(
    home: Path, stores: dict[str, MemoryStore]
) -> None:
    """Another user changed the copy: exit 15."""
    source = home.with_name("home.snapshots")
    assert _copy(home, source, PLACES[0]).code == 0
    store = stores[PLACES[0]]
    name = next(name for name in store.names() if name.endswith(".age"))
    store.objects[name] = (b"other", store.now)

    answer = _copy(home, source, PLACES[0])

    assert answer.code == 15
    assert store.objects[name][0] == b"other"


@pytest.mark.parametrize("same", [True, False])
def test_copy_without_a_metadata_file_is_completed(
    home: Path, tmp_path: Path, *, same: bool
) -> None:
    """As after a full disk; but other bytes of that name are another archive."""
    source, to = home.with_name("home.snapshots"), tmp_path / "copy"
    assert _copy(home, source, to, "--all").code == 0
    archive = max(to.glob("sagewai-*.age"))
    card = archive.with_name(f"{archive.name}.json")
    whole = card.read_bytes()
    card.unlink()
    content = archive.read_bytes()
    if not same:
        content = content[:-1] + bytes([content[-1] ^ 1])
        archive.write_bytes(content)

    answer = _copy(home, source, to, "--all")

    assert answer.code == (0 if same else 15), answer
    assert archive.read_bytes() == content
    assert card.exists() == same
    if same:
        assert card.read_bytes() == whole


@pytest.mark.parametrize("is_signed", [True, False])
def test_copy_with_a_forged_metadata_file_does_not_count(
    home: Path, stores: dict[str, MemoryStore], *, is_signed: bool
) -> None:
    """Neither with a hash of the archive that is right nor with an HMAC of other facts."""
    source, place = home.with_name("home.snapshots"), stores[PLACES[0]]
    assert _copy(home, source, PLACES[0]).code == 0
    name = next(name for name in place.names() if name.endswith(".age.json"))
    card = json.loads(place.objects[name][0])
    card["tags"] = ["forged"]
    if not is_signed:
        del card["mac"]
    place.put(name, forged := json.dumps(card).encode(), replace=True)

    answer = _copy(home, source, PLACES[0])

    assert answer.code == 15, answer
    assert (
        "its metadata file is not authentic; not overwritten" in answer.document["error"]["message"]
    )
    assert place.objects[name][0] == forged
    del place.objects[name]
    assert _copy(home, source, PLACES[0]).code == 0  # what is no snapshot is written again


def test_plain_archive_needs_permission_for_a_remote_place(
    tmp_path: Path, stores: dict[str, MemoryStore]
) -> None:
    """As for a backup."""
    home = small(tmp_path / "home").root
    assert call("--home", home, "backup").code == 0
    source = home.with_name("home.snapshots")

    assert _copy(home, source, PLACES[0]).code == 2
    assert stores[PLACES[0]].objects == {}
    assert _copy(home, source, PLACES[0], "--allow-clear").code == 0
    assert _copy(home, source, tmp_path / "copy").code == 0


def test_dry_run_copies_nothing(home: Path, stores: dict[str, MemoryStore]) -> None:
    """It names what it would copy."""
    source = home.with_name("home.snapshots")
    answer = call("--home", home, "snapshots", "copy", source, PLACES[0], "--dry-run")

    assert (answer.code, "copy snapshot" in answer.out) == (0, True)
    assert stores[PLACES[0]].objects == {}


def test_backup_copies_to_each_place(home: Path, stores: dict[str, MemoryStore]) -> None:
    """A failing place is exit 3, with the snapshot and the other copy intact."""

    def fails(_operation: str, _name: str) -> OpsError | None:
        return RemoteError("connection refused")

    words = ("backup", "--json", "--recipient", RECIPIENT, "--also", PLACES[0], "--also", PLACES[1])
    both = call("--home", home, *words)
    stores[PLACES[0]].fails = fails
    partial = call("--home", home, *words)

    assert both.code == 0, both
    assert [copy["problem"] for copy in both.document["result"]["copies"]] == [None, None]
    assert partial.code == 3, partial
    problems = [copy["problem"] for copy in partial.document["result"]["copies"]]
    assert problems == ["connection refused", None]
    assert any(PLACES[0] in line for line in partial.document["warnings"])
    assert len(stores[PLACES[1]].objects) == 5


def test_each_place_has_its_own_rules(
    home: Path, stores: dict[str, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`keep-last = 1` there removes nothing here."""
    monkeypatch.setattr(Settings, "retention_of", lambda _self, _path: {"keep_last": 1})
    source = home.with_name("home.snapshots")
    words = ("backup", "--recipient", RECIPIENT, "--also", PLACES[0], "--json")
    for _number in range(3):
        answer = call("--home", home, *words)
        assert answer.code == 0, answer

    listed = call("--home", home, "snapshots", "list", "--json", "--snapshots", PLACES[0])
    assert len(listed.document["result"]["snapshots"]) == 1
    assert len(_archives(source)) == 6
    assert answer.document["result"]["copies"][0]["retention"]["applied"] is True


def test_what_was_removed_by_others_in_the_target_stays_a_finding(
    home: Path, stores: dict[str, MemoryStore]
) -> None:
    """The next copy must not record the missing one as absent."""
    source = home.with_name("home.snapshots")
    assert _copy(home, source, PLACES[0], "--all").code == 0
    store = stores[PLACES[0]]
    newest = list_snapshots(store.path())[-1].path.name
    for name in (newest, f"{newest}.json"):
        del store.objects[name]

    assert call("--home", home, "backup", "--recipient", RECIPIENT).code == 0
    assert _copy(home, source, PLACES[0]).code == 0
    chain = call("--home", home, "snapshots", "verify", "--chain", "--snapshots", PLACES[0])

    assert chain.code == 4, chain


def test_what_is_in_the_trash_of_the_target_is_not_copied_again(
    home: Path, stores: dict[str, MemoryStore], tmp_path: Path
) -> None:
    """Otherwise the next prune could not move it."""
    source = home.with_name("home.snapshots")
    for target in (tmp_path / "copies", PLACES[0]):
        assert _copy(home, source, target, "--all").code == 0
        prune = ("snapshots", "prune", "--keep-last", "1", "--snapshots", target)
        assert call("--home", home, *prune).code == 0
        again = _copy(home, source, target, "--all")
        assert len(again.document["result"]["pruned"]) == 2, again
        assert call("--home", home, *prune).code == 0


def test_no_copy_goes_into_the_home(home: Path, stores: dict[str, MemoryStore]) -> None:
    """As no backup does."""
    answer = _copy(home, home.with_name("home.snapshots"), home / "data")

    assert answer.code == 2
    assert not list((home / "data").glob("sagewai-*"))


def test_partial_file_of_a_killed_copy_does_not_prevent_the_next(
    home: Path, stores: dict[str, MemoryStore], tmp_path: Path
) -> None:
    """It is swept."""
    source = home.with_name("home.snapshots")
    (tmp_path / "copies").mkdir(mode=0o700)
    newest = list_snapshots(source)[-1].path.name
    (tmp_path / "copies" / f".{newest}.partial").write_bytes(b"part")

    assert _copy(home, source, tmp_path / "copies").code == 0
    assert sorted(_archives(tmp_path / "copies")) == [newest]
