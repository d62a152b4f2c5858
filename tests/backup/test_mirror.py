"""The mirror for programs that deduplicate: restores, unchanged files, crashes."""

import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from home_builder import BuiltHome
from program import call
from round_trips import assert_same_home, bring_back
from sagewai_ops.archive.age import Encryption
from sagewai_ops.archive.directory_reader import MAC_NAME, SUM_NAME
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup import mirror, mirror_record
from sagewai_ops.backup.mirror import update_mirror
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NotFoundError,
    OpsError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs import beneath, locks
from sagewai_ops.home.paths import DATABASE, locate
from sagewai_ops.snapshots.mirror import find_mirror
from small_homes import everything_of, small
from step_counter import counting, failing, killed_at, until_done

pytestmark = pytest.mark.in_memory  # these tests sync much

NOTE = "data/note"


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A small home with an additional file."""
    built = small(tmp_path / "home")
    (built.root / "data").mkdir(exist_ok=True)
    (built.root / NOTE).write_bytes(b"first")
    return built


def mirrored(root: Path, **options: Any) -> BackupReport:
    """Update the mirror of a home next to it."""
    return update_mirror(
        locate(root, {}), root.with_name("backups"), BackupOptions(**options), progress=None
    )


def mirror_of(root: Path) -> Path:
    """Return the path of the mirror that `mirrored` writes."""
    return root.with_name("backups") / "tree"


def verified(place: Path) -> str:
    """Verify every byte of a mirror and return its id."""
    with open_archive(place) as reader:
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
    """Change a row without changing the main file's time: it goes to the `-wal`."""
    with sqlite3.connect(root / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 77")
    connection.close()


def test_mirror_is_restored_as_the_home(built: BuiltHome, tmp_path: Path) -> None:
    """Restored with the same guarantees as an archive: files, links, times, rows, modes."""
    (built.root / "data/link").symlink_to("note")
    (built.root / "data/empty").mkdir()
    report = mirrored(built.root)

    assert report.path == mirror_of(built.root)
    assert (report.format, report.kept_files) == ("directory", 0)
    key = {"SAGEWAI_MASTER_KEY": built.master_key.read_text()}
    bring_back(mirror_of(built.root), tmp_path / "back", environment=key)

    assert_same_home(built.root, tmp_path / "back", "secrets/master.key")


def test_mirror_is_private_and_plain(built: BuiltHome) -> None:
    """Modes 0700 and 0600 whatever the umask, the database whole, the key not in it."""
    before = os.umask(0)
    try:
        mirrored(built.root)
    finally:
        os.umask(before)
    place = mirror_of(built.root)

    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / DATABASE).stat().st_mode) == 0o600
    assert stat.S_IMODE((place / "secrets").stat().st_mode) == 0o700
    assert sorted(os.listdir(place / "db")) == ["sagewai.db"]
    assert not (place / "secrets/master.key").exists()
    assert built.master_key.read_bytes() not in b"".join(
        path.read_bytes() for path in place.rglob("*") if path.is_file()
    )
    with sqlite3.connect(f"file:{place / DATABASE}?immutable=1", uri=True) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_unchanged_file_is_the_same_file(built: BuiltHome) -> None:
    """The same inode and the same time, the database too; only the two documents are new."""
    mirrored(built.root)
    place = mirror_of(built.root)
    before = {path: path.stat() for path in place.rglob("*") if path.is_file()}

    report = mirrored(built.root)

    after = {path: path.stat() for path in place.rglob("*") if path.is_file()}
    own = {place / name for name in ("manifest.json", "snapshot.json", SUM_NAME, MAC_NAME)}
    assert before.keys() == after.keys()
    for path in before.keys() - own:
        assert (before[path].st_ino, before[path].st_mtime_ns) == (
            after[path].st_ino,
            after[path].st_mtime_ns,
        ), path
    assert report.kept_files == len(before) - len(own)
    assert verified(place) == report.id


def test_changed_file_has_a_new_time(built: BuiltHome) -> None:
    """Even if the file in the home has the old time, since other programs compare times."""
    mirrored(built.root)
    place, note = mirror_of(built.root), built.root / NOTE
    status, page = note.stat(), (place / DATABASE).read_bytes()
    before = {name: (place / name).stat().st_mtime_ns for name in (NOTE, DATABASE)}
    main = built.database.stat().st_mtime_ns
    note.write_bytes(b"other")
    os.utime(note, ns=(status.st_atime_ns, status.st_mtime_ns))
    change_database(built.root)
    os.utime(built.database, ns=(main, main))

    report = mirrored(built.root)

    assert (place / NOTE).read_bytes() == b"other"
    assert (place / DATABASE).read_bytes() != page
    for name, moment in before.items():
        assert (place / name).stat().st_mtime_ns != moment, name
    with open_archive(place) as reader:
        times = {entry.path: entry.mtime_ns for entry in reader.manifest.entries}
    assert times[NOTE] == status.st_mtime_ns
    assert verified(place) == report.id


def test_file_damaged_in_the_previous_mirror_is_written_again(built: BuiltHome) -> None:
    """The new mirror is verified; files kept of the previous one were read."""
    mirrored(built.root)
    rotten = mirror_of(built.root) / NOTE
    status = rotten.stat()
    rotten.write_bytes(b"fir?t")
    os.utime(rotten, ns=(status.st_atime_ns, status.st_mtime_ns))

    mirrored(built.root)

    assert rotten.read_bytes() == b"first"


def test_damaged_previous_mirror_is_replaced_completely(built: BuiltHome) -> None:
    """Its manifest cannot be trusted, so no file of it is kept."""
    mirrored(built.root)
    (mirror_of(built.root) / "manifest.json").write_text("{")

    report = mirrored(built.root)

    assert report.kept_files == 0
    assert verified(mirror_of(built.root)) == report.id


def test_without_hard_links_every_file_is_written(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower, and as complete."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for _run in range(2):
        report = mirrored(built.root)

        assert report.kept_files == 0
        assert verified(mirror_of(built.root)) == report.id


def test_external_files_are_in_the_mirror(built: BuiltHome, tmp_path: Path) -> None:
    """Private, under `external/`; restored to the path that Sagewai uses without the override."""
    outside = tmp_path / "elsewhere.json"
    built.admin_state.rename(outside)
    outside.chmod(0o644)
    variables = {"SAGEWAI_ADMIN_STATE_FILE": str(outside)}
    options = BackupOptions(key_environment=variables)
    for _run in range(2):
        report = update_mirror(locate(built.root, variables), tmp_path / "backups", options)

    external = mirror_of(built.root) / "external"
    assert stat.S_IMODE((external / "SAGEWAI_ADMIN_STATE_FILE").stat().st_mode) == 0o600
    assert stat.S_IMODE(external.stat().st_mode) == 0o700
    assert report.kept_files == report.files
    key = {"SAGEWAI_MASTER_KEY": built.master_key.read_text()}
    bring_back(mirror_of(built.root), tmp_path / "back", environment=key)
    assert (tmp_path / "back/config/admin-state.json").read_bytes() == outside.read_bytes()


def test_sequence_continues_and_the_list_names_the_mirror(built: BuiltHome) -> None:
    """It is not in the list of snapshots, and is named below it."""
    mirrored(built.root)
    report = mirrored(built.root)

    assert report.sequence == 2
    listed = call("--home", built.root, "snapshots", "list", "--json",
                  "--snapshots", mirror_of(built.root).parent)  # fmt: skip
    assert listed.result["snapshots"] == []
    assert listed.result["tree"]["id"] == report.id
    assert find_mirror(mirror_of(built.root).parent) is not None


def test_file_that_contains_the_key_is_omitted(built: BuiltHome) -> None:
    """As in an archive without the key, and the run is incomplete."""
    (built.root / "data/notes.txt").write_bytes(b"key: " + built.master_key.read_bytes())

    report = mirrored(built.root)

    assert not (mirror_of(built.root) / "data/notes.txt").exists()
    assert [item.path for item in report.omissions if item.reason.is_loss] == ["data/notes.txt"]
    assert not report.is_complete


def test_file_that_keeps_changing_is_stored_as_last_read(
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

    report = mirrored(built.root)

    assert report.unstable == ("data/log",)
    assert verified(mirror_of(built.root)) == report.id


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compact": True}, "--compact moves every page"),
        ({"custody": "sealed"}, "not encrypted"),
        ({"encryption": Encryption(passphrase="a long one of many words")}, "not encrypted"),
    ],
)
def test_what_a_mirror_cannot_be_is_refused(
    built: BuiltHome, options: dict[str, Any], words: str
) -> None:
    """Before anything is touched."""
    with pytest.raises(UsageError, match=words):
        mirrored(built.root, **options)

    assert not mirror_of(built.root).parent.exists()


def test_another_home_or_a_stranger_is_never_replaced(built: BuiltHome, tmp_path: Path) -> None:
    """Neither a mirror of another home, nor any other directory or link."""
    mirrored(built.root)
    other = small(tmp_path / "other", seed=2)

    clone = locate(other.root, {})
    with pytest.raises(TargetBusyError, match="of the home at"):
        update_mirror(clone, tmp_path / "backups", BackupOptions())
    smaller = BackupOptions(accept_change=True)
    update_mirror(clone, tmp_path / "backups", smaller, all_paths=True)
    other.admin_state.unlink()
    with pytest.raises(TargetBusyError, match="of another home"):
        update_mirror(clone, tmp_path / "backups", BackupOptions(), all_paths=True)
    place = mirror_of(built.root)
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    with pytest.raises(TargetBusyError, match="not a mirror of this program"):
        mirrored(built.root)
    place.unlink()
    place.mkdir()
    (place / "mine").touch()
    with pytest.raises(TargetBusyError, match="not a mirror of this program"):
        mirrored(built.root)

    assert (place / "mine").exists()
    assert verified(tmp_path / "moved")


@pytest.mark.parametrize(
    "damage",
    ["flip", "cut", "longer", "missing", "link", "directory link", "manifest", "sum", "gone"],
)
def test_a_damaged_mirror_is_refused(built: BuiltHome, tmp_path: Path, damage: str) -> None:
    """By verify and by restore, which leaves the target untouched."""
    mirrored(built.root)
    place = mirror_of(built.root)
    note = place / NOTE
    shutil.copytree(place / "data", tmp_path / "elsewhere")
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
        shutil.rmtree(place / "data")
        (place / "data").symlink_to(tmp_path / "elsewhere")
    elif damage == "manifest":
        text = (place / "manifest.json").read_text()
        (place / "manifest.json").write_text(text.replace('"0600"', '"0640"', 1))
    elif damage == "sum":
        (place / SUM_NAME).write_text("")
    else:
        (place / SUM_NAME).unlink()

    expected = NotFoundError if damage == "gone" else DamagedError
    with pytest.raises(expected):
        verified(place)
    with pytest.raises(expected):
        bring_back(place, tmp_path / "back", key_file=built.master_key)

    assert not (tmp_path / "back").exists()


def test_what_the_manifest_does_not_name_is_not_restored(built: BuiltHome, tmp_path: Path) -> None:
    """A file that was added to the mirror is not restored."""
    mirrored(built.root)
    (mirror_of(built.root) / "data/planted").touch()

    bring_back(mirror_of(built.root), tmp_path / "back", key_file=built.master_key)

    assert not (tmp_path / "back/data/planted").exists()
    assert (tmp_path / "back" / NOTE).exists()


def test_who_reads_a_mirror_keeps_it_while_it_is_exchanged(built: BuiltHome) -> None:
    """The next run removes what the reader held."""
    first = mirrored(built.root)
    place = mirror_of(built.root)
    (built.root / NOTE).write_bytes(b"second")

    with open_archive(place) as reader, open_archive(place) as another:
        second = mirrored(built.root)
        reader.verify()
        another.verify()
        assert reader.header.id == first.id
        assert verified(place) == second.id
        assert len(os.listdir(place.parent)) == 3

    mirrored(built.root)
    assert sorted(os.listdir(place.parent)) == [mirror_record.NAME, "tree"]


def test_a_run_on_a_home_that_is_held_is_refused(built: BuiltHome) -> None:
    """One run at a time, as for archives."""
    with locks.exclusive(built.root), pytest.raises(LockedError):
        mirrored(built.root)


def _old_or_new(root: Path, known: set[str], *, exchanges: bool) -> None:
    """Check that the mirror is complete, the old or the new; else, after the next run."""
    place = mirror_of(root)
    if exchanges or place.exists():
        content = {(place / NOTE).read_bytes()}
        assert content <= {b"first", b"second"}
        known.add(verified(place))
    report = mirrored(root)
    assert verified(place) == report.id
    assert (place / NOTE).read_bytes() == b"second"
    assert set(os.listdir(place.parent)) <= {"tree", mirror_record.NAME}


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_step_leaves_the_old_mirror_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exchanges: bool
) -> None:
    """And the next run leaves nothing else behind."""
    if not exchanges:
        monkeypatch.setattr(beneath, "exchange", lambda _first, _second: False)
    root = tmp_path / "home"
    tiny(root, b"first")
    mirrored(root)
    shutil.copytree(mirror_of(root).parent, tmp_path / "first", symlinks=True)
    tiny(root, b"second")
    known: set[str] = set()

    def attempt(number: int) -> bool:
        shutil.rmtree(mirror_of(root).parent)
        shutil.copytree(tmp_path / "first", mirror_of(root).parent, symlinks=True)
        was_killed = killed_at(number, lambda: mirrored(root))
        _old_or_new(root, known, exchanges=exchanges)
        return was_killed

    assert until_done(attempt) > 20
    assert len(known) > 2


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_step_leaves_the_old_mirror_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, exchanges: bool
) -> None:
    """The run fails with one of our errors, or it completes."""
    if not exchanges:
        monkeypatch.setattr(beneath, "exchange", lambda _first, _second: False)
    root = tmp_path / "home"
    tiny(root, b"first")
    mirrored(root)
    tiny(root, b"second")
    with counting() as steps:
        mirrored(root)
    for number in range(1, steps.count + 1):
        (root / NOTE).write_bytes(b"first")
        mirrored(root)
        (root / NOTE).write_bytes(b"second")
        try:
            with failing(number, code):
                mirrored(root)
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


def test_the_command_keeps_a_mirror_below_the_snapshot_directory(built: BuiltHome) -> None:
    """`--snapshots` names its directory, and `tree` names it in other commands."""
    answer = call("--home", built.root, "backup", "--format", "directory", "--json")

    place = built.root.with_name("home.snapshots") / "tree"
    assert answer.code == 0
    assert answer.result["archive"] == str(place)
    assert answer.result["format"] == "directory"
    for words in (["verify", "tree"], ["show", "tree", "--files"]):
        assert call("--home", built.root, "snapshots", *words).code == 0
    out = call("--home", built.root, "snapshots", "extract", "tree", NOTE,
               "--to", place.parent.parent / "out")  # fmt: skip
    assert out.code == 0
    assert (place.parent.parent / "out" / NOTE).read_bytes() == b"first"


def test_a_copied_mirror_opens_without_us(built: BuiltHome, tmp_path: Path) -> None:
    """`cp -a` is a home, and `sha256sum` checks the manifest."""
    mirrored(built.root)
    subprocess.run(["cp", "-a", mirror_of(built.root), tmp_path / "copy"], check=True)

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
    """Where two directories cannot be exchanged, a run may be killed while no mirror exists."""
    first = mirrored(built.root)
    place = mirror_of(built.root)
    place.rename(place.with_name(mirror._PREVIOUS))
    (built.root / NOTE).write_bytes(b"second")

    monkeypatch.setattr(mirror, "_verify", _stop)
    with pytest.raises(DamagedError, match="stop here"):
        mirrored(built.root)

    assert verified(place) == first.id


def _stop(*_arguments: object) -> None:
    raise DamagedError("stop here")
