"""The tree for stores that deduplicate: what comes back, what stays, what a crash leaves."""

import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from home_builder import BuiltHome
from memory_directory import memory_directory
from program import call
from round_trips import assert_same_home, bring_back
from sagewai_ops.archive.age import Encryption
from sagewai_ops.archive.directory_reader import SUM_NAME
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup import mirror
from sagewai_ops.backup.mirror import find_mirror, update_mirror
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NotFoundError,
    OpsError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs import atomic, locks
from sagewai_ops.home.paths import DATABASE, locate
from small_homes import everything_of, small
from step_counter import counting, failing, killed_at, until_done

NOTE = "data/note"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a directory in memory: what these tests make durable is much."""
    with memory_directory() as directory:
        yield directory


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A small home with one file more."""
    built = small(tmp_path / "home")
    (built.root / "data").mkdir(exist_ok=True)
    (built.root / NOTE).write_bytes(b"first")
    return built


def kept(root: Path, **options: Any) -> BackupReport:
    """Keep the tree of a home beside it."""
    return update_mirror(
        locate(root, {}), root.with_name("backups"), BackupOptions(**options), progress=None
    )


def tree_of(root: Path) -> Path:
    """Name the tree that `kept` keeps."""
    return root.with_name("backups") / "tree"


def verified(tree: Path) -> str:
    """Prove every byte of a tree and give its id."""
    with open_archive(tree) as reader:
        reader.verify()
        return reader.header.id


def tiny(root: Path, note: bytes) -> None:
    """Make a home of two files and a link: crash tests take many of them."""
    (root / "config").mkdir(parents=True, exist_ok=True)
    (root / "config/connections.json").write_bytes(b'{"version": 1, "connections": []}')
    (root / NOTE).parent.mkdir(exist_ok=True)
    (root / NOTE).write_bytes(note)
    if not (root / "link").is_symlink():
        (root / "link").symlink_to(NOTE)


def change_database(root: Path) -> None:
    """Change a row without a change of the main file's time: it goes to the `-wal`."""
    with sqlite3.connect(root / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 77")
    connection.close()


def test_a_tree_comes_back_as_the_home_that_it_was(built: BuiltHome, tmp_path: Path) -> None:
    """By our restore, with the same promises as an archive: files, links, times, rows, modes."""
    (built.root / "data/link").symlink_to("note")
    (built.root / "data/empty").mkdir()
    report = kept(built.root)

    assert report.path == tree_of(built.root)
    assert (report.format, report.kept_files) == ("directory", 0)
    key = {"SAGEWAI_MASTER_KEY": built.master_key.read_text()}
    bring_back(tree_of(built.root), tmp_path / "back", environment=key)

    assert_same_home(built.root, tmp_path / "back", "secrets/master.key")


def test_a_tree_is_private_and_plain(built: BuiltHome) -> None:
    """Modes 0700 and 0600 whatever the umask, the database whole, the key not in it."""
    before = os.umask(0)
    try:
        kept(built.root)
    finally:
        os.umask(before)
    tree = tree_of(built.root)

    assert stat.S_IMODE(tree.stat().st_mode) == 0o700
    assert stat.S_IMODE((tree / DATABASE).stat().st_mode) == 0o600
    assert stat.S_IMODE((tree / "secrets").stat().st_mode) == 0o700
    assert sorted(os.listdir(tree / "db")) == ["sagewai.db"]
    assert not (tree / "secrets/master.key").exists()
    assert built.master_key.read_bytes() not in b"".join(
        path.read_bytes() for path in tree.rglob("*") if path.is_file()
    )
    with sqlite3.connect(f"file:{tree / DATABASE}?immutable=1", uri=True) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_what_did_not_change_is_the_same_file(built: BuiltHome) -> None:
    """The same inode and the same time, the database too; only the two documents are new."""
    kept(built.root)
    tree = tree_of(built.root)
    before = {path: path.stat() for path in tree.rglob("*") if path.is_file()}

    report = kept(built.root)

    after = {path: path.stat() for path in tree.rglob("*") if path.is_file()}
    own = {tree / name for name in ("manifest.json", "snapshot.json", SUM_NAME)}
    assert before.keys() == after.keys()
    for path in before.keys() - own:
        assert (before[path].st_ino, before[path].st_mtime_ns) == (
            after[path].st_ino,
            after[path].st_mtime_ns,
        ), path
    assert report.kept_files == len(before) - len(own)
    assert verified(tree) == report.id


def test_what_changed_has_another_time(built: BuiltHome) -> None:
    """Also where the file in the home has the old one: stores that look at times must see it."""
    kept(built.root)
    tree, note = tree_of(built.root), built.root / NOTE
    status, page = note.stat(), (tree / DATABASE).read_bytes()
    before = {name: (tree / name).stat().st_mtime_ns for name in (NOTE, DATABASE)}
    main = built.database.stat().st_mtime_ns
    note.write_bytes(b"other")
    os.utime(note, ns=(status.st_atime_ns, status.st_mtime_ns))
    change_database(built.root)
    os.utime(built.database, ns=(main, main))

    report = kept(built.root)

    assert (tree / NOTE).read_bytes() == b"other"
    assert (tree / DATABASE).read_bytes() != page
    for name, moment in before.items():
        assert (tree / name).stat().st_mtime_ns != moment, name
    with open_archive(tree) as reader:
        times = {entry.path: entry.mtime_ns for entry in reader.manifest.entries}
    assert times[NOTE] == status.st_mtime_ns
    assert verified(tree) == report.id


def test_a_file_that_rotted_in_the_old_tree_is_written_anew(built: BuiltHome) -> None:
    """The new tree is proved; what it keeps of the old one was read."""
    kept(built.root)
    rotten = tree_of(built.root) / NOTE
    status = rotten.stat()
    rotten.write_bytes(b"fir?t")
    os.utime(rotten, ns=(status.st_atime_ns, status.st_mtime_ns))

    kept(built.root)

    assert rotten.read_bytes() == b"first"


def test_a_damaged_old_tree_is_replaced_whole(built: BuiltHome) -> None:
    """Its manifest tells nothing any more, so nothing of it is kept."""
    kept(built.root)
    (tree_of(built.root) / "manifest.json").write_text("{")

    report = kept(built.root)

    assert report.kept_files == 0
    assert verified(tree_of(built.root)) == report.id


def test_a_file_system_without_hard_links_gets_everything_anew(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dearer, and as whole."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for _run in range(2):
        report = kept(built.root)

        assert report.kept_files == 0
        assert verified(tree_of(built.root)) == report.id


def test_what_lives_outside_the_home_is_in_the_tree(built: BuiltHome, tmp_path: Path) -> None:
    """Private, under `external/`; it comes back to where Sagewai looks without the override."""
    outside = tmp_path / "elsewhere.json"
    built.admin_state.rename(outside)
    outside.chmod(0o644)
    variables = {"SAGEWAI_ADMIN_STATE_FILE": str(outside)}
    options = BackupOptions(key_environment=variables)
    for _run in range(2):
        report = update_mirror(locate(built.root, variables), tmp_path / "backups", options)

    external = tree_of(built.root) / "external"
    assert stat.S_IMODE((external / "SAGEWAI_ADMIN_STATE_FILE").stat().st_mode) == 0o600
    assert stat.S_IMODE(external.stat().st_mode) == 0o700
    assert report.kept_files == report.files
    key = {"SAGEWAI_MASTER_KEY": built.master_key.read_text()}
    bring_back(tree_of(built.root), tmp_path / "back", environment=key)
    assert (tmp_path / "back/config/admin-state.json").read_bytes() == outside.read_bytes()


def test_the_sequence_goes_on_and_the_list_tells_of_the_tree(built: BuiltHome) -> None:
    """It is no snapshot of the list, and is named below it."""
    kept(built.root)
    report = kept(built.root)

    assert report.sequence == 2
    listed = call("--home", built.root, "snapshots", "list", "--json",
                  "--snapshots", tree_of(built.root).parent)  # fmt: skip
    assert listed.result["snapshots"] == []
    assert listed.result["tree"]["id"] == report.id
    assert find_mirror(tree_of(built.root).parent) is not None


def test_the_key_in_another_file_keeps_that_out(built: BuiltHome) -> None:
    """As in an archive without the key, and the run is incomplete."""
    (built.root / "data/notes.txt").write_bytes(b"key: " + built.master_key.read_bytes())

    report = kept(built.root)

    assert not (tree_of(built.root) / "data/notes.txt").exists()
    assert [item.path for item in report.losses] == ["data/notes.txt"]
    assert not report.is_complete


def test_a_file_that_keeps_changing_is_carried_as_last_read(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And named."""
    from sagewai_ops.backup import mirror_writer

    (built.root / "data/log").write_bytes(b"line\n" * 100_000)
    monkeypatch.setattr(
        mirror_writer,
        "is_unchanged",
        lambda stream, _before: os.fstat(stream.fileno()).st_size != 500_000,
    )

    report = kept(built.root)

    assert report.unstable == ("data/log",)
    assert verified(tree_of(built.root)) == report.id


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compact": True}, "--compact moves every page"),
        ({"custody": "sealed"}, "not encrypted"),
        ({"encryption": Encryption(passphrase="a long one of many words")}, "not encrypted"),
    ],
)
def test_what_a_tree_cannot_be_is_refused(
    built: BuiltHome, options: dict[str, Any], words: str
) -> None:
    """Before anything is touched."""
    with pytest.raises(UsageError, match=words):
        kept(built.root, **options)

    assert not tree_of(built.root).parent.exists()


def test_another_home_or_a_stranger_is_never_replaced(built: BuiltHome, tmp_path: Path) -> None:
    """Neither a tree of another home, nor a directory or link that somebody put there."""
    kept(built.root)
    other = small(tmp_path / "other", seed=2)

    clone = locate(other.root, {})
    with pytest.raises(TargetBusyError, match="of the home at"):
        update_mirror(clone, tmp_path / "backups", BackupOptions())
    update_mirror(clone, tmp_path / "backups", BackupOptions(), all_paths=True)
    other.admin_state.unlink()
    with pytest.raises(TargetBusyError, match="of another home"):
        update_mirror(clone, tmp_path / "backups", BackupOptions(), all_paths=True)
    tree = tree_of(built.root)
    tree.rename(tmp_path / "moved")
    tree.symlink_to(tmp_path / "moved")
    with pytest.raises(TargetBusyError, match="not a mirror of this program"):
        kept(built.root)
    tree.unlink()
    tree.mkdir()
    (tree / "mine").touch()
    with pytest.raises(TargetBusyError, match="not a mirror of this program"):
        kept(built.root)

    assert (tree / "mine").exists()
    assert verified(tmp_path / "moved")


@pytest.mark.parametrize(
    "damage",
    ["flip", "cut", "longer", "missing", "link", "directory link", "manifest", "sum", "gone"],
)
def test_a_damaged_tree_is_refused(built: BuiltHome, tmp_path: Path, damage: str) -> None:
    """By verify and by restore, which leaves the target untouched."""
    kept(built.root)
    tree = tree_of(built.root)
    note = tree / NOTE
    shutil.copytree(tree / "data", tmp_path / "elsewhere")
    if damage == "flip":
        note.write_bytes(b"fIrst")
    elif damage == "cut":
        note.write_bytes(b"firs")
    elif damage == "longer":
        note.write_bytes(b"first!")
    elif damage == "missing":
        note.unlink()
    elif damage == "link":
        note.unlink()
        note.symlink_to(tmp_path / "elsewhere/note")
    elif damage == "directory link":
        shutil.rmtree(tree / "data")
        (tree / "data").symlink_to(tmp_path / "elsewhere")
    elif damage == "manifest":
        text = (tree / "manifest.json").read_text()
        (tree / "manifest.json").write_text(text.replace('"0600"', '"0640"', 1))
    elif damage == "sum":
        (tree / SUM_NAME).write_text("")
    else:
        (tree / SUM_NAME).unlink()

    expected = NotFoundError if damage == "gone" else DamagedError
    with pytest.raises(expected):
        verified(tree)
    with pytest.raises(expected):
        bring_back(tree, tmp_path / "back", key_file=built.master_key)

    assert not (tmp_path / "back").exists()


def test_what_the_manifest_does_not_name_is_not_restored(built: BuiltHome, tmp_path: Path) -> None:
    """A file that somebody put into the tree stays there."""
    kept(built.root)
    (tree_of(built.root) / "data/planted").touch()

    bring_back(tree_of(built.root), tmp_path / "back", key_file=built.master_key)

    assert not (tmp_path / "back/data/planted").exists()
    assert (tmp_path / "back" / NOTE).exists()


def test_who_reads_a_tree_keeps_it_while_it_is_exchanged(built: BuiltHome) -> None:
    """The next run removes what the reader held."""
    first = kept(built.root)
    tree = tree_of(built.root)
    (built.root / NOTE).write_bytes(b"second")

    with open_archive(tree) as reader, open_archive(tree) as another:
        second = kept(built.root)
        reader.verify()
        another.verify()
        assert reader.header.id == first.id
        assert verified(tree) == second.id
        assert len(os.listdir(tree.parent)) == 2

    kept(built.root)
    assert os.listdir(tree.parent) == ["tree"]


def test_a_run_on_a_home_that_is_held_is_refused(built: BuiltHome) -> None:
    """One run at a time, as for archives."""
    with locks.exclusive(built.root), pytest.raises(LockedError):
        kept(built.root)


def _old_or_new(root: Path, known: set[str], *, exchanges: bool) -> None:
    """See that the tree is one of two and whole; without an exchange, after the next run."""
    tree = tree_of(root)
    if exchanges or tree.exists():
        content = {(tree / NOTE).read_bytes()}
        assert content <= {b"first", b"second"}
        known.add(verified(tree))
    report = kept(root)
    assert verified(tree) == report.id
    assert (tree / NOTE).read_bytes() == b"second"
    assert os.listdir(tree.parent) == ["tree"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_step_leaves_the_old_tree_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exchanges: bool
) -> None:
    """And the next run leaves nothing else behind."""
    if not exchanges:
        monkeypatch.setattr(atomic, "exchange", lambda _first, _second: False)
    root = tmp_path / "home"
    tiny(root, b"first")
    kept(root)
    shutil.copytree(tree_of(root).parent, tmp_path / "first", symlinks=True)
    tiny(root, b"second")
    known: set[str] = set()

    def attempt(number: int) -> bool:
        shutil.rmtree(tree_of(root).parent)
        shutil.copytree(tmp_path / "first", tree_of(root).parent, symlinks=True)
        was_killed = killed_at(number, lambda: kept(root))
        _old_or_new(root, known, exchanges=exchanges)
        return was_killed

    assert until_done(attempt) > 20
    assert len(known) > 2


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_step_leaves_the_old_tree_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, exchanges: bool
) -> None:
    """It is an error of ours, or the run came to its end all the same."""
    if not exchanges:
        monkeypatch.setattr(atomic, "exchange", lambda _first, _second: False)
    root = tmp_path / "home"
    tiny(root, b"first")
    kept(root)
    tiny(root, b"second")
    with counting() as steps:
        kept(root)
    for number in range(1, steps.count + 1):
        (root / NOTE).write_bytes(b"first")
        kept(root)
        (root / NOTE).write_bytes(b"second")
        try:
            with failing(number, code):
                kept(root)
        except (OpsError, OSError):
            pass
        _old_or_new(root, set(), exchanges=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--output", "-"],
        ["--level", "9"],
        ["--keep-last", "3"],
        ["--key", "sealed"],
        ["--compact"],
    ],
)
def test_options_of_archives_are_refused(built: BuiltHome, words: list[str]) -> None:
    """Exit 2: an option that did nothing would deceive."""
    answer = call("--home", built.root, "backup", "--format", "directory", *words)

    assert answer.code == 2
    assert "--format directory" in answer.err
    assert call("--home", built.root, "backup", "--format", "zip").code == 2


def test_the_command_keeps_a_tree_below_the_snapshot_directory(built: BuiltHome) -> None:
    """`--to` names that directory; `tree` names it for the commands that read."""
    answer = call("--home", built.root, "backup", "--format", "directory", "--json")

    tree = built.root.with_name("home.snapshots") / "tree"
    assert answer.code == 0
    assert answer.result["archive"] == str(tree)
    assert answer.result["format"] == "directory"
    for words in (["verify", "tree"], ["show", "tree", "--files"]):
        assert call("--home", built.root, "snapshots", *words).code == 0
    out = call("--home", built.root, "snapshots", "extract", "tree", NOTE,
               "--to", tree.parent.parent / "out")  # fmt: skip
    assert out.code == 0
    assert (tree.parent.parent / "out" / NOTE).read_bytes() == b"first"


def test_a_copied_tree_opens_without_us(built: BuiltHome, tmp_path: Path) -> None:
    """`cp -a` is a home, and `sha256sum` checks the manifest."""
    kept(built.root)
    subprocess.run(["cp", "-a", tree_of(built.root), tmp_path / "copy"], check=True)

    done = subprocess.run(
        ["sha256sum", "-c", SUM_NAME], cwd=tmp_path / "copy", capture_output=True, check=False
    )

    assert done.returncode == 0
    found = everything_of(tmp_path / "copy")
    assert found[NOTE][2] == b"first"
    entries = json.loads((tmp_path / "copy/manifest.json").read_text())["entries"]
    assert {entry["path"] for entry in entries} <= found.keys()


def test_the_directory_between_two_renames_is_put_back(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two directories cannot be exchanged, a run may die while there is no tree."""
    first = kept(built.root)
    tree = tree_of(built.root)
    tree.rename(tree.with_name(mirror._PREVIOUS))
    (built.root / NOTE).write_bytes(b"second")

    monkeypatch.setattr(mirror, "_verify", _stop)
    with pytest.raises(DamagedError, match="stop here"):
        kept(built.root)

    assert verified(tree) == first.id


def _stop(*_arguments: object) -> None:
    raise DamagedError("stop here")
