"""The record of a mirror: what a second night does not read, and what it reads nevertheless."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from home_builder import BuiltHome
from program import call
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup import mirror_record, mirror_writer
from sagewai_ops.backup.entries import open_source
from sagewai_ops.backup.mirror import update_mirror
from sagewai_ops.backup.mirror_record import NAME, digest_of
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.sqlite import raw_copy
from sagewai_ops.errors import OpsError
from sagewai_ops.home.paths import DATABASE, LEGACY_MASTER_KEY, locate
from small_homes import small
from step_counter import counting, failing, killed_at

pytestmark = pytest.mark.in_memory  # these tests sync much

NOTE, LOG = "data/note", "data/log"
LOG_BYTES = 300_000  # longer than what is searched for keys


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat files that were just written as if they were old."""
    monkeypatch.setattr(mirror_record, "RACY_NS", 0)


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A small home with two additional files."""
    built = small(tmp_path / "home")
    (built.root / "data").mkdir(exist_ok=True)
    (built.root / NOTE).write_bytes(b"first")
    (built.root / LOG).write_bytes(b"x" * LOG_BYTES)
    return built


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the files of the home that are opened, without databases."""
    found: list[str] = []

    def record(item: Any, copy: Any) -> Any:
        if item.type == "file" and not item.path.endswith(".json"):
            found.append(item.path)
        return open_source(item, copy)

    monkeypatch.setattr("sagewai_ops.backup.run.open_source", record)
    return found


def mirrored(root: Path, **options: Any) -> BackupReport:
    """Update the mirror of a home next to it."""
    return update_mirror(locate(root, {}), root.with_name("backups"), BackupOptions(**options))


def mirror_of(root: Path) -> Path:
    """Return the path of the mirror that `mirrored` writes."""
    return root.with_name("backups") / "tree"


def is_whole(root: Path, report: BackupReport) -> bool:
    """Return whether the mirror of a report is there, every byte of it."""
    with open_archive(mirror_of(root)) as reader:
        reader.verify()
        return reader.header.id == report.id


def change_database(root: Path) -> None:
    """Change a row."""
    with contextlib.closing(sqlite3.connect(root / DATABASE)) as connection:
        connection.execute("PRAGMA user_version = 77")


def rewrite(path: Path, content: bytes) -> None:
    """Change a file in place without changing its modification time."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.usefixtures("settled")
def test_unchanged_files_are_not_read(built: BuiltHome, reads: list[str]) -> None:
    """They are linked, and their entries are those of a run that reads everything."""
    mirrored(built.root)
    assert {NOTE, LOG} <= set(reads)
    reads.clear()
    begun = int(time.time())

    report = mirrored(built.root)

    assert reads == []
    assert report.reused_files >= 2
    assert report.last_read_at is not None
    assert begun - 60 < report.last_read_at.timestamp() <= begun
    with open_archive(mirror_of(built.root)) as reader:
        entries = reader.manifest.entries
    assert is_whole(built.root, report)
    complete = mirrored(built.root, reads_all=True)
    with open_archive(mirror_of(built.root)) as reader:
        assert [*reader.manifest.entries][1:] == [*entries][1:]  # the first is snapshot.json
    assert {NOTE, LOG} <= set(reads)
    assert (complete.reused_files, complete.last_read_at) == (0, None)
    assert complete.kept_files == report.kept_files


@pytest.mark.usefixtures("settled")
def test_a_change_with_the_old_size_and_time_is_read(built: BuiltHome, reads: list[str]) -> None:
    """The time of the inode differs, which no program can set."""
    mirrored(built.root)
    reads.clear()
    rewrite(built.root / NOTE, b"other")

    report = mirrored(built.root)

    assert reads == [NOTE]
    assert (mirror_of(built.root) / NOTE).read_bytes() == b"other"
    assert is_whole(built.root, report)


def test_a_file_that_has_just_changed_is_read_again(
    built: BuiltHome, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change again within one tick of the clock, with the same status."""
    mirrored(built.root)
    # What a file system with a coarse clock would show.
    monkeypatch.setattr(mirror_record, "digest_of", lambda _found: b"s" * 16)
    rewrite(built.root / NOTE, b"other")
    reads.clear()

    report = mirrored(built.root)

    assert {NOTE, LOG} <= set(reads)
    assert report.reused_files == 0
    assert (mirror_of(built.root) / NOTE).read_bytes() == b"other"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["changed", "replaced", "cut", "removed", "mode"])
def test_a_file_of_the_mirror_that_is_not_as_it_was_verified(
    built: BuiltHome, reads: list[str], damage: str
) -> None:
    """The source is read, and the mirror gets its content."""
    mirrored(built.root)
    reads.clear()
    stored = mirror_of(built.root) / NOTE
    if damage == "changed":
        rewrite(stored, b"fIrst")
    elif damage == "replaced":
        status = stored.stat()
        stored.with_name("other").write_bytes(b"fIrst")
        stored.with_name("other").chmod(0o600)
        stored.with_name("other").replace(stored)
        os.utime(stored, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage == "cut":
        rewrite(stored, b"firs")
    elif damage == "removed":
        stored.unlink()
    else:
        stored.chmod(0o644)

    report = mirrored(built.root)

    assert reads == [NOTE]
    assert stored.read_bytes() == b"first"
    assert is_whole(built.root, report)


@pytest.mark.usefixtures("settled")
def test_a_database_of_the_mirror_that_was_changed_is_replaced(built: BuiltHome) -> None:
    """Although that of the home is unchanged."""
    mirrored(built.root)
    stored = mirror_of(built.root) / DATABASE
    content = stored.read_bytes()
    rewrite(stored, content[:-1] + bytes([content[-1] ^ 1]))

    report = mirrored(built.root)

    assert stored.read_bytes() == content
    assert is_whole(built.root, report)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("forgery", ["unsigned", "field", "older", "not JSON", "missing", "large"])
def test_a_forged_record_is_ignored(built: BuiltHome, reads: list[str], forgery: str) -> None:
    """Only the holder of the key can make the program keep a file unread."""
    mirrored(built.root)
    record = mirror_of(built.root).with_name(NAME)
    older = record.read_bytes()
    (built.root / "data/more").write_bytes(b"more")
    mirrored(built.root)
    document = json.loads(record.read_bytes())
    rewrite(mirror_of(built.root) / NOTE, b"fIrst")
    reads.clear()
    if forgery == "unsigned":
        del document["mac"]
        record.write_text(json.dumps(document))
    elif forgery == "field":
        document["searched"] = ""
        record.write_text(json.dumps(document))
    elif forgery == "older":
        record.write_bytes(older)
    elif forgery == "not JSON":
        record.write_bytes(b"[" * 100_000)
    elif forgery == "large":
        document["files"] = "A" * 1_000_000
        record.write_text(json.dumps(document))
    else:
        record.unlink()

    report = mirrored(built.root)

    assert {NOTE, LOG} <= set(reads)
    assert report.reused_files == 0
    assert is_whole(built.root, report)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("code", [errno.EMLINK, errno.EXDEV, errno.EPERM])
def test_a_file_that_cannot_be_linked_is_copied(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """It has as many names as the file system allows, or that allows none."""
    mirrored(built.root)
    original = os.link

    def refuse(source: str, *arguments: Any, **options: Any) -> None:
        if Path(source).name in ("note", "sagewai.db", "0.db"):
            raise OSError(code, os.strerror(code))
        original(source, *arguments, **options)

    monkeypatch.setattr(os, "link", refuse)
    before = (mirror_of(built.root) / NOTE).stat().st_ino

    report = mirrored(built.root)

    assert (mirror_of(built.root) / NOTE).stat().st_ino != before
    assert report.reused_files >= 1
    assert is_whole(built.root, report)


@pytest.mark.usefixtures("settled")
def test_mirror_on_another_file_system(
    built: BuiltHome, tmp_path_factory: pytest.TempPathFactory, reads: list[str]
) -> None:
    """Only names within the mirror are created: nothing is linked to the home."""
    backups = tmp_path_factory.mktemp("backups")
    home = locate(built.root, {})
    update_mirror(home, backups, BackupOptions())
    reads.clear()

    report = update_mirror(home, backups, BackupOptions())

    assert reads == []
    assert report.reused_files >= 2
    assert (backups / "tree" / NOTE).stat().st_nlink == 1
    assert (built.root / NOTE).stat().st_nlink == 1


def test_status_of_a_file_is_its_identity_and_both_times(tmp_path: Path) -> None:
    """A file on another device, with another inode, size, mode or time is another one."""
    (tmp_path / "file").write_bytes(b"x")
    found = (tmp_path / "file").stat()

    def digest(**changes: int) -> bytes:
        values = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return digest_of(type("Status", (), {**values, **changes}))  # type: ignore[arg-type]

    names = ("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns")
    digests = {digest(), *(digest(**{name: getattr(found, name) + 1}) for name in names)}

    assert len(digests) == len(names) + 1
    assert digest() == digest_of(found)
    assert digest_of(tmp_path.stat()) == bytes(16)


@pytest.mark.usefixtures("settled")
def test_after_seven_days_everything_is_read(
    built: BuiltHome, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk can change bytes without a change of the status."""
    mirrored(built.root)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6.9 * 24 * 3600)
    assert mirrored(built.root).reused_files >= 2
    reads.clear()
    monkeypatch.setattr(time, "time", lambda: now + 7.1 * 24 * 3600)

    report = mirrored(built.root)

    assert {NOTE, LOG} <= set(reads)
    assert report.reused_files == 0


@pytest.mark.usefixtures("settled")
def test_small_files_are_searched_for_a_key_that_is_new(built: BuiltHome, reads: list[str]) -> None:
    """A file that was harmless is omitted once it contains a key of the home."""
    key = b"bmV3IGtleSBvZiB0aGlydHktdHdvIGJ5dGVzICEhISE="
    (built.root / NOTE).write_bytes(b"note: " + key)
    assert not any(item.reason.is_loss for item in mirrored(built.root).omissions)
    (built.root / LEGACY_MASTER_KEY).write_bytes(key)
    (built.root / LEGACY_MASTER_KEY).chmod(0o600)
    reads.clear()

    report = mirrored(built.root)

    assert NOTE in reads
    assert LOG not in reads
    assert [item.path for item in report.omissions if item.reason.is_loss] == [NOTE]
    assert not (mirror_of(built.root) / NOTE).exists()


@pytest.mark.usefixtures("settled")
def test_a_file_that_keeps_changing_is_not_recorded(
    built: BuiltHome, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored may be a state that never existed."""
    with monkeypatch.context() as patch:
        patch.setattr(
            mirror_writer,
            "is_unchanged",
            lambda stream, _before: os.fstat(stream.fileno()).st_size != LOG_BYTES,
        )
        assert mirrored(built.root).unstable == (LOG,)
    reads.clear()

    assert mirrored(built.root).unstable == ()

    assert reads == [LOG]


def test_copy_of_a_database_is_written_once(built: BuiltHome) -> None:
    """The file of the mirror is the copy, and has no other name afterwards."""
    mirrored(built.root)
    change_database(built.root)

    report = mirrored(built.root)

    stored = mirror_of(built.root) / DATABASE
    assert stored.stat().st_nlink == 1
    assert stored.stat().st_mode & 0o777 == 0o600
    assert is_whole(built.root, report)


@pytest.mark.parametrize("previous", ["same", "shorter", "longer", "other", "link", "missing"])
def test_clone_of_the_previous_copy_gets_the_pages_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, previous: str
) -> None:
    """Whatever the previous copy has, the new one equals its source."""
    monkeypatch.setattr(fcntl, "ioctl", _clone)
    written = 0
    write_at = os.pwrite

    def count(target: int, content: memoryview, offset: int) -> int:
        nonlocal written
        written += len(content)
        return write_at(target, content, offset)

    monkeypatch.setattr(os, "pwrite", count)
    content = os.urandom(3 * 1024 * 1024 + 4096)
    changed = {
        "same": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        "shorter": content[:-5000],
        "longer": content + b"more",
        "other": os.urandom(1024 * 1024),
        "link": content,
        "missing": b"",
    }[previous]
    source, before, target = (tmp_path / name for name in ("source", "before", "target"))
    source.write_bytes(content)
    before.write_bytes(changed)
    if previous == "link":
        before.rename(tmp_path / "elsewhere")
        before.symlink_to(tmp_path / "elsewhere")
    elif previous == "missing":
        before.unlink()
    with source.open("rb") as main, target.open("w+b") as copy:
        is_cloned = raw_copy.clone(before, copy.fileno())
        assert is_cloned == (previous not in ("link", "missing"))
        raw_copy.copy_changed_blocks(main.fileno(), copy.fileno(), source, lambda _bytes: None)

    assert target.read_bytes() == content
    assert written == {"same": 4096, "shorter": 8192, "longer": 0}.get(previous, written)


def _clone(target: int, request: int, source: int) -> None:
    """Copy what FICLONE would share."""
    assert request == 0x40049409
    while piece := os.read(source, 1 << 20):
        os.write(target, piece)


def test_mirror_on_a_file_system_that_shares_blocks(built: BuiltHome, tmp_path: Path) -> None:
    """Pages that did not change are those of the previous mirror: named by the environment.

    `REFLINKS` is a directory on btrfs or XFS.
    """
    shared = os.environ.get("REFLINKS")
    if not shared:
        pytest.skip("REFLINKS: no directory on btrfs or XFS")
    root = Path(shared) / f"mirror-{os.getpid()}"
    try:
        home = locate(built.root, {})
        update_mirror(home, root, BackupOptions())
        change_database(built.root)
        probe = root / "probe"
        with probe.open("w+b") as copy:
            assert raw_copy.clone(root / "tree" / DATABASE, copy.fileno())
        report = update_mirror(home, root, BackupOptions())
        with open_archive(root / "tree") as reader:
            reader.verify()
            assert reader.header.id == report.id
    finally:
        shutil.rmtree(root)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("failure", ["kill", errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_step_leaves_a_whole_mirror(tmp_path: Path, failure: str | int) -> None:
    """The old or the new one, each with the files that were not read, and a record that is true."""
    root = tmp_path / "home"
    (root / "secrets").mkdir(parents=True, mode=0o700)
    (root / "secrets/master.key").write_bytes(b"bmV3IGtleSBvZiB0aGlydHktdHdvIGJ5dGVzICEhISE=")
    (root / "secrets/master.key").chmod(0o600)
    (root / "data").mkdir()
    (root / LOG).write_bytes(b"x" * 100)
    (root / NOTE).write_bytes(b"first")
    mirrored(root)
    (root / NOTE).write_bytes(b"other")
    with counting() as steps:
        assert mirrored(root).reused_files == 1
    found = set()
    for number in range(1, steps.count + 1):
        rewrite(root / NOTE, b"first")
        mirrored(root)
        rewrite(root / NOTE, b"other")
        if failure == "kill":
            killed_at(number, lambda: mirrored(root))
        else:
            with contextlib.suppress(OpsError, OSError), failing(number, int(failure)):
                mirrored(root)
        with open_archive(mirror_of(root)) as reader:
            reader.verify()
        found.add((mirror_of(root) / NOTE).read_bytes())
        report = mirrored(root)
        assert is_whole(root, report)
        assert (mirror_of(root) / NOTE).read_bytes() == b"other"
        assert (mirror_of(root) / LOG).read_bytes() == b"x" * 100

    assert found == {b"first", b"other"}


def test_command_reports_what_was_not_read(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `--read-back full` reads everything."""
    monkeypatch.setattr(mirror_record, "RACY_NS", 0)
    words = ("--home", built.root, "backup", "--format", "directory")
    call(*words)

    second, full = call(*words, "--verbose"), call(*words, "--read-back", "full", "--json")

    assert " of them not read since 20" in second.out
    assert full.result["reused_files"] == 0
    assert full.result["last_read_at"] is None
    assert call(*words, "--json").result["reused_files"] > 0
