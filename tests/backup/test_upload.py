"""Backups to a remote place: the card is the commit, and what is sent is read back."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyrage
import pytest

import memory_store
from memory_store import MemoryStore
from program import call
from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.remote_input import RemoteStream
from sagewai_ops.cli import acting
from sagewai_ops.cli.settings import Settings
from sagewai_ops.errors import DamagedError, OpsError, RemoteError
from sagewai_ops.snapshots import piped_archive
from sagewai_ops.snapshots.catalog import list_snapshots
from sagewai_ops.snapshots.verify import verify_snapshot
from small_homes import small

PLACE = "s3://bucket/prefix"
IDENTITY = pyrage.x25519.Identity.generate()
RECIPIENT = str(IDENTITY.to_public())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of 1.4 MB."""
    root: Path = small(tmp_path_factory.mktemp("upload") / "home").root
    return root


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A place, which every address opens."""
    place = MemoryStore()
    monkeypatch.setattr(Settings, "_open", lambda _self, _address: place)
    return place


def _backup(home: Path, *words: str, recipient: str = RECIPIENT) -> dict[str, object]:
    answer = call(
        "--home", home, "backup", "--json", "--to", PLACE, "--recipient", recipient, *words
    )
    assert answer.code == 0, answer
    result: dict[str, object] = answer.document["result"]
    return result


def test_backup_leaves_archive_and_card_only(home: Path, store: MemoryStore) -> None:
    """Every byte of it was read back; the copies on the local disk are gone."""
    before = sorted(home.parent.iterdir())

    result = _backup(home)

    archive = f"sagewai-{result['id']}.tar.zst.age"
    assert result["archive"] == f"{PLACE}/{archive}"
    assert store.names() == [archive, f"{archive}.json"]
    assert store.read_bytes == result["archive_bytes"]
    assert sorted(home.parent.iterdir()) == before
    (snapshot,) = list_snapshots(store.path())
    assert snapshot.card["read_back"] == {"bytes": result["archive_bytes"]}
    verified = verify_snapshot(
        snapshot.path, Decryption(identities=(str(IDENTITY),)), (), authentic=False
    )
    assert verified.id == result["id"]


def test_place_is_listed_once_before_the_upload_and_once_for_leftovers(
    home: Path, store: MemoryStore
) -> None:
    """A list of a large place takes seconds; retention, and nothing else, lists it again."""
    first = _backup(home)
    store.requests.clear()

    second = _backup(home)

    assert store.requests["list"] == 2
    assert second["sequence"] == int(str(first["sequence"])) + 1


def test_plain_archive_is_refused_unless_allowed(home: Path, store: MemoryStore) -> None:
    """Others can read a remote place."""
    answer = call("--home", home, "backup", "--to", PLACE)
    assert answer.code == 2
    assert "--allow-clear" in answer.err
    assert store.objects == {}

    assert call("--home", home, "backup", "--to", PLACE, "--allow-clear").code == 0
    assert len(store.objects) == 2


def test_names_of_plain_archives_are_read_by_ranges(home: Path, store: MemoryStore) -> None:
    """`show` reads the end and the first frame, once."""
    assert call("--home", home, "backup", "--to", PLACE, "--allow-clear").code == 0
    store.requests.clear()

    answer = call("--home", home, "snapshots", "show", "latest", "--files", "--snapshots", PLACE)

    assert answer.code == 0
    assert "config/admin-state.json" in answer.out
    assert store.requests["stream"] == 0
    assert store.requests["read"] <= 3


@pytest.mark.parametrize("operation", ["write", "finish", "put", "stream", "upload"])
def test_failed_upload_leaves_nothing_and_no_snapshot(
    home: Path, store: MemoryStore, operation: str
) -> None:
    """The network is lost at a step: exit 19."""

    def fails(name: str, item: str) -> OpsError | None:
        is_hit = name == operation and not item.endswith(".started")
        return RemoteError(f"{PLACE}: connection lost") if is_hit else None

    store.fails = fails
    answer = call("--home", home, "backup", "--to", PLACE, "--recipient", RECIPIENT)

    assert answer.code == 19
    assert store.objects == {}


def test_archive_that_comes_back_changed_is_removed(home: Path, store: MemoryStore) -> None:
    """A flipped byte is found by reading back, whatever the store's own checksum shows."""
    put = store._store

    def flip(name: str, content: bytes) -> None:
        if name.endswith(".age"):
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        put(name, content)

    store._store = flip  # type: ignore[method-assign]
    answer = call("--home", home, "backup", "--to", PLACE, "--recipient", RECIPIENT)

    assert answer.code == 16
    assert store.objects == {}


def test_part_that_was_read_back_is_recorded(home: Path, store: MemoryStore) -> None:
    """Then the snapshot is not listed as verified."""
    _backup(home, "--read-back", "none")
    (snapshot,) = list_snapshots(store.path())

    assert store.requests["stream"] == 0
    assert snapshot.card["read_back"] == {"bytes": 0}
    assert "verified_at" not in snapshot.card
    listed = call("--home", home, "snapshots", "list", "--snapshots", PLACE)
    assert "unread" in listed.out


def test_write_only_credentials_suffice_without_reading_back(
    home: Path, store: MemoryStore
) -> None:
    """Nothing is listed, read or deleted; a later run with more rights removes the note."""
    store.writes_only = True
    refused = call("--home", home, "backup", "--to", PLACE, "--recipient", RECIPIENT)
    assert refused.code == 14

    _backup(home, "--read-back", "none")
    store.writes_only = False
    _backup(home)

    assert len(list_snapshots(store.path())) == 2
    assert not [name for name in store.objects if name.endswith(".started")]


def test_killed_upload_is_no_snapshot_and_swept_a_day_later(home: Path, store: MemoryStore) -> None:
    """An archive without a card; that of another home stays."""
    _backup(home)
    for name in [name for name in store.names() if name.endswith(".json")]:
        content, moment = store.objects.pop(name)
        store.objects[name.removesuffix(".json") + ".started"] = (
            b'{"home_id": "%s"}' % _home_id(content),
            moment,
        )
    foreign = "sagewai-20250101T000000Z-0a0b0c.tar.zst.age"
    store.objects[foreign] = store.objects[f"{foreign}.started"] = (b"{}", store.now)
    assert list_snapshots(store.path()) == []

    _backup(home)
    assert len(store.objects) == 6
    store.now += timedelta(days=2)
    result = _backup(home)

    assert len(result["swept"]) == 1  # type: ignore[arg-type]
    assert len(list_snapshots(store.path())) == 2
    assert len(store.objects) == 6
    assert foreign in store.objects


def _home_id(card: bytes) -> bytes:
    return str(json.loads(card)["home_id"]).encode()


def test_retention_moves_cards_and_then_deletes_archives(
    tmp_path: Path, store: MemoryStore
) -> None:
    """As in a directory: one run later, and `undelete` brings a snapshot back."""
    home = small(tmp_path / "home").root
    first = _backup(home)
    _backup(home, "--keep-last", "1")
    assert len(list_snapshots(store.path())) == 1
    assert f"sagewai-{first['id']}.tar.zst.age" in store.objects

    assert call("--home", home, "snapshots", "undelete", "--all", "--snapshots", PLACE).code == 0
    assert len(list_snapshots(store.path())) == 2

    _backup(home, "--keep-last", "1")
    _backup(home, "--keep-last", "1")
    chain = call("--home", home, "snapshots", "verify", "--chain", "--snapshots", PLACE)
    assert chain.code == 0, chain
    assert f"sagewai-{first['id']}.tar.zst.age" not in store.objects


def test_delete_that_only_hides_is_no_success(home: Path, store: MemoryStore) -> None:
    """An object lock, or versioning: exit 3, with the ids."""
    first = _backup(home)
    _backup(home)
    store.hides = True

    answer = call(
        "--home", home, "snapshots", "prune", "--keep-last", "1", "--json", "--snapshots", PLACE
    )

    assert answer.code == 3
    until = "2026-02-01T00:00:00Z"
    assert answer.document["result"]["hidden"] == [{"id": first["id"], "locked_until": until}]
    assert f"locked until {until}" in answer.document["warnings"][0]
    assert "lock" in answer.document["warnings"][0]


def test_restore_and_drill_read_the_place(home: Path, store: MemoryStore, tmp_path: Path) -> None:
    """The card gets the result of the drill."""
    _backup(home)
    key = tmp_path / "identity"
    key.write_text(str(IDENTITY))
    key.chmod(0o600)
    words = ("--snapshots", PLACE, "--identity", key)

    drilled = call("--home", home, "drill", "latest", *words)
    restored = call("--home", home, "restore", "latest", "--to", tmp_path / "new", *words)

    assert (drilled.code, restored.code) == (0, 0), (drilled, restored)
    assert (tmp_path / "new/db/sagewai.db").exists()
    (snapshot,) = list_snapshots(store.path())
    assert snapshot.proved_at


def test_encrypted_archive_is_downloaded_once_for_a_restore(
    home: Path, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept in a file without a name, where the disk has the space for that file."""
    size_bytes = _backup(home)["archive_bytes"]
    monkeypatch.setattr(memory_store, "PIECE_BYTES", 20_000)  # the first piece is kept in any case
    key = tmp_path / "identity"
    key.write_text(str(IDENTITY))
    key.chmod(0o600)

    for name in ("once", "often"):
        store.requests.clear()
        store.read_bytes = 0
        if name == "often":
            monkeypatch.setattr(piped_archive, "_usable_bytes", lambda _system: 0)
        words = ("--snapshots", PLACE, "--identity", key, "--to", tmp_path / name)
        answer = call("--home", home, "restore", "latest", *words)

        assert answer.code == 0, answer
        assert (store.requests["stream"] == 1) == (name == "once")
        assert store.read_bytes >= size_bytes  # type: ignore[operator]
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_download_goes_on_where_the_disk_becomes_full(store: MemoryStore, tmp_path: Path) -> None:
    """What the file cannot keep is requested again; what it could is freed."""
    store.put("object", content := bytes(range(256)) * 4000)

    for limit, times in ((len(content), 1), (len(content) - 1, 2)):
        store.requests.clear()
        with _FullDisk(tmp_path / f"{limit}", limit) as spool:
            disk = cast("BinaryIO", spool)
            stream = RemoteStream(store.path() / "object", disk, len(content))
            for _each in range(2):
                assert stream.seek(0) == 0
                assert stream.read(len(content) + 1) == content
        assert store.requests["stream"] == times
        assert (tmp_path / f"{limit}").stat().st_size == (len(content) if times == 1 else 0)


def test_a_download_that_is_longer_than_listed_is_16(store: MemoryStore, tmp_path: Path) -> None:
    """No byte after the listed size is kept: such a place could fill the disk."""
    store.put("object", bytes(5 * memory_store.PIECE_BYTES))

    with (tmp_path / "spool").open("w+b", buffering=0) as spool:
        stream = RemoteStream(
            store.path() / "object", cast("BinaryIO", spool), 3 * memory_store.PIECE_BYTES
        )
        with pytest.raises(DamagedError, match="longer than"):
            stream.read(5 * memory_store.PIECE_BYTES)

        assert spool.seek(0, os.SEEK_END) == 3 * memory_store.PIECE_BYTES


class _FullDisk(io.FileIO):
    """A file of a disk with space for some bytes."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(path, "w+")
        self._limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data)) > self._limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("status",), 0),
        (("preflight",), 4),  # the drill has no identity
        (("snapshots", "diff"), 12),
        (("snapshots", "list", "--rebuild"), 3),  # the archive is encrypted
        (("snapshots", "verify", "latest"), 12),
        (("snapshots", "prune", "--keep-last", "1", "--dry-run"), 0),
        (("verify-perms",), 4),
        (("db", "upgrade"), 0),
        (("keys", "rotate", "--yes", "--dry-run"), 0),
        (("schedule", "cron"), 0),
        (("backup", "--dry-run", "--recipient", RECIPIENT), 0),
    ],
)
def test_every_command_accepts_a_place(
    home: Path,
    store: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
) -> None:
    """Where it reads or writes snapshots."""
    _backup(home)
    _backup(home)
    monkeypatch.setenv("SAGEWAI_OPS_SNAPSHOTS", PLACE)

    answer = call("--home", home, *words)

    assert answer.code == code, answer
    assert not Path("s3:").exists()


def test_after_a_kill_at_any_request_the_list_has_only_whole_snapshots(
    home: Path, store: MemoryStore
) -> None:
    """A run that is killed sends nothing more: the store is dead for it from that request on."""
    _backup(home)
    answered = sum(store.requests.values())
    assert answered > 8
    for last in range(1, answered):
        store.requests.clear()

        def fails(_operation: str, _name: str, last: int = last) -> OpsError | None:
            is_dead = sum(store.requests.values()) > last
            return RemoteError("connection lost") if is_dead else None

        store.fails = fails
        answer = call("--home", home, "backup", "--to", PLACE, "--recipient", RECIPIENT)
        store.fails = lambda _operation, _name: None

        assert answer.code in (0, 19), answer
        for snapshot in list_snapshots(store.path()):
            verify_snapshot(snapshot.path, Decryption(identities=(str(IDENTITY),)), ())


def test_every_flipped_byte_of_a_store_is_found(home: Path, store: MemoryStore) -> None:
    """A sample of them: in the archive by its hashes, in the card by its authentication."""
    _backup(home)
    (snapshot,) = list_snapshots(store.path())
    content, moment = store.objects[snapshot.path.name]
    for offset in (*range(0, 400, 37), *range(400, len(content), len(content) // 20)):
        changed = bytearray(content)
        changed[offset] ^= 0x10
        store.objects[snapshot.path.name] = (bytes(changed), moment)
        with pytest.raises(OpsError):
            verify_snapshot(snapshot.path, Decryption(identities=(str(IDENTITY),)), ())
    store.objects[snapshot.path.name] = (content, moment)

    card = snapshot.path.name + ".json"
    text, moment = store.objects[card]
    at = text.index(b'"sequence": ') + 12
    store.objects[card] = (text[:at] + b"9" + text[at + 1 :], moment + timedelta(seconds=1))
    listed = call("--home", home, "snapshots", "list", "--json", "--snapshots", PLACE)
    assert listed.document["result"]["snapshots"][0]["authenticity"] == "unverified"


def test_lost_cards_are_written_again_from_their_archives(
    home: Path, store: MemoryStore, tmp_path: Path
) -> None:
    """Neither for uploads in progress, nor for removed ones, nor without the key."""
    first, second = (_backup(home)["id"] for _each in range(2))
    card = f"sagewai-{first}.tar.zst.age.json"
    lost = json.loads(store.objects.pop(card)[0])
    for name in ("20260101T000000Z-000001", "20260101T000000Z-000002"):
        store.put(f"sagewai-{name}.tar.zst.age", b"age-encryption.org/v1")
    store.put("sagewai-20260101T000000Z-000001.tar.zst.age.started", b"{}")
    store.put("sagewai-20260101T000000Z-000002.tar.zst.age.json.removed", b"{}")
    key = tmp_path / "identity"
    key.write_text(str(IDENTITY))
    key.chmod(0o600)
    words = ("--home", home, "snapshots", "list", "--json", "--rebuild", "--snapshots", PLACE)

    without = call(*words)
    assert without.code == 3, without
    assert card not in store.objects
    assert without.document["result"]["rebuilt"]["limited"] == [first, second]
    rebuilt = call(*words, "--identity", key)

    assert rebuilt.code == 0, rebuilt
    assert rebuilt.document["result"]["rebuilt"]["written"] == [first, second]
    listed = rebuilt.document["result"]["snapshots"]
    assert [item["authenticity"] for item in listed] == ["authentic", "authentic"]
    found = json.loads(store.objects[card][0])
    for name in ("archive_sha256", "archive_bytes", "authentication", "sequence"):
        assert found[name] == lost[name]


def test_rebuilding_signs_no_archive_of_another_home(
    home: Path, store: MemoryStore, tmp_path: Path
) -> None:
    """Anyone may write an archive to a place: with the HMAC of this home, it would be ours."""
    other = small(tmp_path / "other").root
    (other / "secrets/master.key").write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
    kept, lost = (
        call("--home", other, "backup", "--json", "--to", PLACE, "--allow-clear").document["result"]
        for _each in range(2)
    )
    cards = [f"sagewai-{each['id']}.tar.zst.json" for each in (kept, lost)]
    before = store.objects[cards[0]][0]
    del store.objects[cards[1]]

    answer = call("--home", home, "snapshots", "list", "--json", "--rebuild", "--snapshots", PLACE)

    assert answer.code == 0, answer
    assert store.objects[cards[0]][0] == before
    assert "mac" not in json.loads(store.objects[cards[1]][0])
    origins = {item["id"]: item["authenticity"] for item in answer.document["result"]["snapshots"]}
    assert "authentic" not in origins.values()


def test_automatic_snapshot_is_plain_only_where_this_home_wrote_plain_ones(
    tmp_path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`db upgrade` has no option for it; what others put there allows nothing."""
    home = small(tmp_path / "home").root
    monkeypatch.setenv("SAGEWAI_OPS_SNAPSHOTS", PLACE)
    refused = call("--home", home, "preflight", "--json")
    assert "--allow-clear" in refused.out
    assert store.objects == {}

    assert call("--home", home, "backup", "--allow-clear").code == 0
    allowed = call("--home", home, "preflight", "--json")

    assert "--allow-clear" not in allowed.out
    assert len(list_snapshots(store.path())) == 2


def test_schedule_for_a_place_is_online_and_writes_no_directory(
    home: Path, store: MemoryStore
) -> None:
    """The unit may use the network, and only the home and the copies' directory are writable."""
    words = ("schedule", "systemd", "--snapshots", PLACE, "--", "--also", "/srv/copies")
    answer = call("--home", home, *words)

    assert answer.code == 0, answer
    assert "AF_INET" in answer.out
    (writable,) = [line for line in answer.out.splitlines() if line.startswith("ReadWritePaths")]
    assert "/srv/copies" in writable
    assert "s3:" not in writable
    assert f"sagewai-ops remote init {PLACE}" in answer.out
    assert store.requests == {}
    composed = call("--home", home, "schedule", "compose", "--snapshots", PLACE)
    assert (composed.code, PLACE in composed.out) == (0, True), composed
    assert store.requests == {}


def test_hash_of_an_encrypted_archive_is_verified_without_its_key(
    home: Path, store: MemoryStore
) -> None:
    """Here and in a directory; a flipped byte is found."""
    _backup(home)
    words = ("snapshots", "verify", "latest", "--hash", "--json", "--snapshots", PLACE)

    intact = call("--home", home, *words)
    (snapshot,) = list_snapshots(store.path())
    content, moment = store.objects[snapshot.path.name]
    store.objects[snapshot.path.name] = (content[:-1] + bytes([content[-1] ^ 1]), moment)
    damaged = call("--home", home, *words)

    assert (intact.code, damaged.code) == (0, 16), (intact, damaged)
    assert intact.document["result"]["authenticity"] == "authentic"


def test_restore_from_a_place_in_the_place_of_the_home(tmp_path: Path, store: MemoryStore) -> None:
    """With `--undo`, and for a part of it."""
    home = small(tmp_path / "home").root
    assert call("--home", home, "backup", "--to", PLACE, "--allow-clear").code == 0
    (home / "config/connections.json").write_text("[]")
    (home / "data/later").write_text("after the snapshot")

    part = call(
        *("--home", home, "restore", "latest", "--only", "config", "--replace"),
        *("--snapshots", PLACE),
    )
    assert part.code == 0, part
    assert (home / "config/connections.json").read_text() != "[]"
    assert (home / "data/later").exists()
    whole = call("--home", home, "restore", "latest", "--replace", "--snapshots", PLACE)
    assert whole.code == 0, whole
    assert not (home / "data/later").exists()
    assert call("--home", home, "restore", "--undo", "--snapshots", PLACE).code == 0
    assert (home / "data/later").exists()


def test_objects_of_an_attacker_set_no_sequence_number(home: Path, store: MemoryStore) -> None:
    """A number near the limit of the format would make each later snapshot unreadable."""
    assert call("--home", home, "backup", "--to", PLACE, "--allow-clear").code == 0
    ((name, (content, moment)),) = (
        item for item in store.objects.items() if item[0].endswith(".zst")
    )
    card = json.loads(store.objects[f"{name}.json"][0])
    planted = name.replace("-2", "-3", 1)
    card |= {"archive": planted, "sequence": 2**63 - 1, "home_id": "another"}
    card.pop("mac")
    store.objects[planted] = (content, moment)
    store.objects[f"{planted}.json"] = (json.dumps(card).encode(), moment)

    answer = call("--home", home, "backup", "--json", "--to", PLACE, "--allow-clear")

    assert answer.code == 0, answer
    assert answer.document["result"]["sequence"] < 1000


def test_killed_upload_note_does_not_remove_what_the_trash_has(
    tmp_path: Path, store: MemoryStore
) -> None:
    """A `.started` that stayed names an archive whose card is in the trash."""
    home = small(tmp_path / "home").root
    first = _backup(home)
    name = f"sagewai-{first['id']}.tar.zst.age"
    card = store.objects[f"{name}.json"][0]
    store.objects[f"{name}.started"] = (b'{"home_id": "%s"}' % _home_id(card), store.now)
    _backup(home, "--keep-last", "1")
    assert f"{name}.json.removed" in store.objects
    store.now += timedelta(days=2)

    _backup(home)

    assert name in store.objects
    assert f"{name}.started" not in store.objects


def test_malformed_authentication_is_no_traceback(home: Path, store: MemoryStore) -> None:
    """Anyone may write the card."""
    _backup(home)
    (snapshot,) = list_snapshots(store.path())
    name = f"{snapshot.path.name}.json"
    card = {**json.loads(store.objects[name][0]), "mac": "\ud800"}
    store.objects[name] = (json.dumps(card).encode(), store.now + timedelta(seconds=9))

    answer = call("--home", home, "snapshots", "list", "--json", "--snapshots", PLACE)

    assert answer.code == 0, answer
    assert answer.document["result"]["snapshots"][0]["authenticity"] == "unverified"


def test_archive_that_vanishes_during_the_upload_is_no_success(
    home: Path, store: MemoryStore
) -> None:
    """Another run or user deleted it before its card was written: exit 19, and no card."""
    put = store.put

    def put_and_delete(name: str, content: bytes, *, replace: bool = False) -> bool:
        if name.endswith(".age.json"):
            store.objects.pop(name.removesuffix(".json"))
        return put(name, content, replace=replace)

    store.put = put_and_delete  # type: ignore[method-assign]
    answer = call("--home", home, "backup", "--to", PLACE, "--recipient", RECIPIENT)

    assert answer.code == 19, answer
    assert not [name for name in store.names() if name.endswith(".json")]


def test_place_is_no_file_that_root_opens_for_another_user() -> None:
    """Root's process serves files of options; and a place is no file."""
    assert list(acting._files_of({"snapshots": MemoryStore().path(), "also": []})) == []


@pytest.mark.parametrize("place", ["restic:/backups/sagewai", "borg:/backups/sagewai"])
def test_cards_of_a_repository_are_not_rebuilt(home: Path, place: str) -> None:
    """Refused before the repository is opened."""
    answer = call("--home", home, "snapshots", "list", "--rebuild", "--snapshots", place)

    assert answer.code == 2, answer
    assert f"--rebuild: not possible in a repository: {place}" in answer.err
    assert f"snapshots verify latest --snapshots {place}" in answer.err
