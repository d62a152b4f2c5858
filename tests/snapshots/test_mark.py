"""A directory that is rolled back, with authentic archives only, is noticed before a restore."""

import json
import os
import shutil
from pathlib import Path

import pytest

from program import call
from sagewai_ops.home.paths import locate
from sagewai_ops.snapshots.mark import NAME, Mark, read_mark, write_mark
from small_homes import small

MARK = Mark(sequence=7, id="20260101T000000Z-0a0b0c", mac="0" * 64, key="f" * 16, since=3)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with two snapshots."""
    root = tmp_path / "home"
    call("--home", root, "init")
    for _number in range(2):
        assert call("--home", root, "backup").code == 0
    return root


def _archives(home: Path) -> list[Path]:
    directory = home.with_name("home.snapshots")
    listed = call("--home", home, "snapshots", "list", "--json").result["snapshots"]
    return [directory / Path(row["archive"]).name for row in listed]


def _remove_newest(home: Path) -> Path:
    newest = _archives(home)[-1]
    newest.rename(home.with_name("gone"))
    newest.with_name(newest.name + ".json").unlink()
    return newest


def _restore(home: Path, *words: object) -> int:
    return call("--home", home, "restore", *words, "--replace").code


@pytest.mark.parametrize("lost", ["nothing", "home", "state"])
def test_directory_without_its_newest_snapshot_is_refused(home: Path, lost: str) -> None:
    """Whichever of the two marks is left."""
    _remove_newest(home)
    if lost == "home":
        (home / NAME).unlink()
    if lost == "state":
        shutil.rmtree(Path(os.environ["HOME"]) / ".local/state")
    before = (home / "secrets/master.key").stat().st_ino

    drilled = call("--home", home, "drill")
    refused = call("--home", home, "restore", "latest", "--replace")
    status = call("--home", home, "status")

    assert (drilled.code, refused.code) == (16, 16)
    assert "sequence 1, but snapshot" in refused.err
    assert "removed, or the directory rolled back" in status.err
    assert (home / "secrets/master.key").stat().st_ino == before


def test_rolled_back_directory_is_restored_by_option_or_by_id(home: Path) -> None:
    """And without any mark, as on a new machine."""
    _remove_newest(home)
    (only,) = _archives(home)

    assert _restore(home, "latest", "--allow-rollback") == 0
    assert _restore(home, only) == 0
    assert _restore(home, "latest") == 16  # the restored home has the mark of the previous one
    (home / NAME).unlink()
    shutil.rmtree(Path(os.environ["HOME"]) / ".local/state")
    assert _restore(home, "latest") == 0


def test_replaced_newest_snapshot_is_refused(home: Path) -> None:
    """One of the same number: an older state of the directory went on for itself."""
    newest = _remove_newest(home)
    mark = (home / NAME).read_text()
    (home / NAME).unlink()
    shutil.rmtree(Path(os.environ["HOME"]) / ".local/state")
    assert call("--home", home, "backup").code == 0
    assert [path != newest for path in _archives(home)] == [True, True]
    (home / NAME).write_text(mark)

    answer = call("--home", home, "restore", "latest", "--replace")

    assert answer.code == 16
    assert "it was replaced" in answer.err


def test_next_snapshot_continues_behind_a_removed_one(home: Path) -> None:
    """Its sequence is above the mark, and it names the removed snapshot as the previous one."""
    newest = _remove_newest(home)

    call("--home", home, "backup")

    last = call("--home", home, "snapshots", "show", _archives(home)[-1], "--json").result
    assert last["sequence"] == 3
    chain = call("--home", home, "snapshots", "verify", "--chain", "--json")
    assert chain.code == 4
    (finding,) = chain.result["findings"]
    assert finding["snapshot"] == newest.name[8:31]
    assert "missing, and no prune removed it" in finding["problem"]


def test_pruned_snapshots_are_no_finding(home: Path) -> None:
    """In the trash, after it, and if another home prunes in the same directory."""
    for _number in range(2):
        call("--home", home, "backup")
        assert call("--home", home, "snapshots", "prune", "--keep-last", 2).code == 0
    call("--home", home, "snapshots", "prune", "--keep-last", 1)
    call("--home", home, "snapshots", "prune", "--keep-last", 1)

    answer = call("--home", home, "snapshots", "verify", "--chain", "--json")

    assert answer.code == 0, answer.out
    assert len(answer.result["authentic"]) == len(answer.result["pruned"]) == 1


def test_replaced_snapshot_is_a_gap_in_the_chain(home: Path, tmp_path: Path) -> None:
    """And so is a record of a prune that no key authenticated."""
    first, _second = _archives(home)
    first.unlink()
    record = next(home.with_name("home.snapshots").glob(".removed-*"), None)
    assert record is None
    identity = call("--home", home, "snapshots", "show", _archives(home)[-1], "--json").result
    forged = {"version": 1, "removed": {first.name[8:31]: 1}, "mac": "0" * 64}
    path = home.with_name("home.snapshots") / f".removed-{identity['home_id']}.json"
    path.write_text(json.dumps(forged))

    answer = call("--home", home, "snapshots", "verify", "--chain", "--json")

    assert answer.code == 4
    assert answer.result["findings"][0]["snapshot"] == first.name[8:31]


def test_unauthenticated_snapshot_of_a_home_that_authenticates_is_named(
    home: Path, tmp_path: Path
) -> None:
    """A version-1 archive that is named by its id needs no key to be forged."""
    golden = Path(__file__).parents[2] / "fixtures/snapshots/version-1.tar.zst"
    archive = shutil.copy(golden, _archives(home)[0].parent)
    words = ("--home", home, "restore", archive, "--without-key", "--to", tmp_path / "new")

    plan, done = call(*words, "--dry-run", "--json"), call(*words)

    since = "and this home authenticates its snapshots since sequence 1"
    assert plan.result["authenticity_reason"] == f"format 1 has no authentication, {since}"
    assert since in done.err


def test_chain_needs_a_key(tmp_path: Path) -> None:
    """Without one nothing is shown; and a snapshot or the chain is named, not both."""
    alone = call("--home", tmp_path, "snapshots", "verify", "--chain", "--snapshots", tmp_path)
    both = call("--home", tmp_path, "snapshots", "verify", "latest", "--chain")
    neither = call("--home", tmp_path, "snapshots", "verify")

    assert (alone.code, both.code, neither.code) == (12, 2, 2)


def test_higher_mark_counts_and_each_directory_has_its_own(tmp_path: Path) -> None:
    """A state directory that cannot be written is no failure."""
    (tmp_path / "home").mkdir()
    home = locate(tmp_path / "home", {})
    environment = {"XDG_STATE_HOME": str(tmp_path / "state")}

    assert write_mark(home, tmp_path / "a", MARK, environment)
    before = os.stat(home.root).st_mtime_ns
    assert write_mark(home, tmp_path / "b", MARK, {"XDG_STATE_HOME": "/proc/none"})

    assert os.stat(home.root).st_mtime_ns == before
    assert read_mark(home, tmp_path / "a", {}) == MARK
    (home.root / NAME).unlink()
    assert read_mark(home, tmp_path / "a", environment) == MARK
    assert read_mark(home, tmp_path / "b", environment) is None


@pytest.mark.parametrize("places", [1, 2])
def test_a_mark_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    """One of the two is enough; without both, the backup succeeds with a warning."""
    root: Path = small(tmp_path / "home", rows=1).root
    (root / NAME).mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none" if places == 2 else str(tmp_path / "state"))

    answer = call("--home", root, "backup")

    assert answer.code == 0
    assert ("high-water mark not written" in answer.err) == (places == 2)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"version": 2}', b'{"version": 1}', b"\xff"])
def test_unreadable_mark_is_none(tmp_path: Path, content: bytes) -> None:
    """So is one that other users can write, and a link."""
    home = locate(tmp_path / "home", {})
    home.root.mkdir()
    write_mark(home, tmp_path, MARK, {})
    good = (home.root / NAME).read_bytes()

    (home.root / NAME).write_bytes(content)
    assert read_mark(home, tmp_path, {}) is None
    (home.root / NAME).write_bytes(good)
    (home.root / NAME).chmod(0o622)
    assert read_mark(home, tmp_path, {}) is None
    (home.root / NAME).rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o600)
    (home.root / NAME).symlink_to(tmp_path / "elsewhere")
    assert read_mark(home, tmp_path, {}) is None


def test_snapshots_before_a_rotation_stay_authentic(home: Path, tmp_path: Path) -> None:
    """With the new key, which opens what is kept of the old one; without that, it is unknown."""
    import pyrage

    recipient = pyrage.x25519.Identity.generate().to_public()
    old = _archives(home)[0]
    rotated = call(
        "--home", home, "keys", "rotate", "--recipient", recipient, "--yes",
        "--snapshots", tmp_path / "rotation",
    )  # fmt: skip
    assert rotated.code == 0, rotated.err

    kept = call("--home", home, "snapshots", "verify", old, "--json").result
    (home / NAME).unlink()
    lost = call("--home", home, "snapshots", "verify", old, "--json").result

    assert kept["authenticity"] == "authentic"
    assert lost["authenticity"] == "not authenticated"
    assert lost["authenticity_reason"].startswith("another key: ")
