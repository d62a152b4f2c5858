"""A snapshot of a home: its contents, the untouched home, and failures by name."""

import contextlib
import dataclasses
import json
import os
import sqlite3
import stat
import tarfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import home_writer
import real_homes
from archives import tar_stream
from sagewai_ops.archive import writer as archive_writer
from sagewai_ops.archive.age import Decryption, Encryption, temporary_identity
from sagewai_ops.archive.manifest import EntryType, Manifest
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.backup import create
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    LockedError,
    NotFoundError,
    UsageError,
)
from sagewai_ops.fs import locks
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.home.paths import locate
from sagewai_ops.snapshots import cards, catalog, database_check
from sagewai_ops.snapshots.omissions import Reason
from sagewai_ops.snapshots.trust import keys_of
from small_homes import everything_of, rows_of, small
from unprivileged import NO_USER, reachable_directory, unprivileged

SHM = Path("/dev/shm")


def _back_up(
    root: Path,
    options: BackupOptions | None = None,
    *,
    environment: dict[str, str] | None = None,
    directory: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> BackupReport:
    home = locate(root, environment or {})
    wanted = dataclasses.replace(options or BackupOptions(), key_environment=environment or {})
    return create_snapshot(home, directory or home.snapshots, wanted, progress=progress)


def _members(report: BackupReport) -> dict[str, bytes]:
    """Read the content of every file of a plain archive with only zstd and tar."""
    assert report.path is not None
    found = {}
    with tarfile.open(fileobj=tar_stream(report.path), mode="r:") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            if stream:
                found[member.name] = stream.read()
    return found


def _manifest(report: BackupReport, decryption: Decryption | None = None) -> Manifest:
    assert report.path is not None
    with open_archive(report.path, decryption) as reader:
        return reader.manifest


def _database(report: BackupReport, into: Path, member: str = "db/sagewai.db") -> Path:
    into.write_bytes(_members(report)[member])
    return into


def _losses(report: BackupReport) -> set[str]:
    return {item.path for item in report.omissions if item.reason.is_loss}


def _omissions(report: BackupReport) -> dict[str, Reason]:
    return {item.path: item.reason for item in report.omissions}


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_home_written_by_sagewai_is_stored_completely(tmp_path: Path, name: str) -> None:
    """Every file is in the archive with its bytes, mode and time; the home is unchanged."""
    root = real_homes.unpack(name, tmp_path)
    before = everything_of(root)
    keys = [path.read_bytes().strip() for path in root.rglob("master.key")]

    report = _back_up(root)

    assert everything_of(root) == before
    assert report.is_complete
    assert report.is_sound
    members = _members(report)
    entries = {entry.path: entry for entry in _manifest(report).entries}
    left = set(_omissions(report))
    for path, (mode, moment, content) in before.items():
        if path in left:
            continue
        assert (stat.S_IMODE(mode), moment) == (entries[path].mode, entries[path].mtime_ns)
        if isinstance(content, bytes) and not path.endswith(".db"):
            assert members[path] == content
    assert {*entries} == {"snapshot.json", *before} - left
    assert keys
    for key in keys:
        assert all(key not in content for content in members.values())
    if (root / "db/sagewai.db").exists():
        assert rows_of(_database(report, tmp_path / "copy.db")) == rows_of(root / "db/sagewai.db")


@pytest.mark.parametrize("journal", ["everything", "tail", "none"])
def test_copy_has_every_row_of_file_and_wal(tmp_path: Path, journal: str) -> None:
    """All data in the WAL, a part of it, or none: the archive has one whole file, without WAL."""
    built = small(tmp_path / "home", journal=journal, vectors=5)
    before = everything_of(built.root)

    report = _back_up(built.root)

    after = everything_of(built.root)
    if journal == "none":
        # To read a closed WAL database, SQLite creates a -shm next to it.
        assert after.pop("db")[::2] == before.pop("db")[::2]
    assert after == before
    copy = _database(report, tmp_path / "copy.db")
    assert not any("-wal" in name or "-shm" in name for name in _members(report))
    assert rows_of(copy) == rows_of(built.database)
    assert report.database is not None
    assert {table: report.database.tables[table] for table in built.rows} == dict(built.rows)


def test_odd_names_holes_and_links_are_stored(tmp_path: Path) -> None:
    """Newlines, bytes that are not UTF-8, 255 bytes, paths of 2000, sparse files, links."""
    built = small(
        tmp_path / "home",
        artifacts=True,
        newline_names=True,
        undecodable_names=True,
        long_names=True,
    )

    report = _back_up(built.root)

    entries = {entry.path: entry for entry in _manifest(report).entries}
    expected = {*everything_of(built.root)} - set(_omissions(report))
    assert expected <= {*entries}
    assert report.is_complete
    assert any("\n" in path for path in entries)
    assert any("\udcff" in path or "\udc80" <= max(path) <= "\udcff" for path in entries)
    assert any(len(os.fsencode(path.rpartition("/")[2])) == 255 for path in entries)
    assert any(entry.is_sparse for entry in entries.values())
    assert any(entry.type is EntryType.LINK for entry in entries.values())


def test_deeply_nested_directories_are_stored(tmp_path: Path) -> None:
    """Their manifest compresses like a bomb's, and is still read."""
    built = small(tmp_path / "home")
    for depth in range(1, 1201):
        (built.root / "data" / "/".join("d" * depth)).mkdir()

    report = _back_up(built.root)

    remove_tree(built.root)  # pytest's own clean-up calls itself for each level
    assert sum(entry.path.startswith("data/d") for entry in _manifest(report).entries) == 1200


def test_thousands_of_small_files_are_stored(tmp_path: Path) -> None:
    """3000 files, each under its own name with its own bytes."""
    built = small(tmp_path / "home", small_files=3000)

    report = _back_up(built.root)

    assert report.files > 3000
    members = _members(report)
    for path, (_mode, _moment, content) in everything_of(built.root).items():
        if path.startswith("data/") and isinstance(content, bytes) and content:
            assert members[path] == content


def test_backup_is_consistent_under_200_writes_a_second(tmp_path: Path) -> None:
    """The copy is one transaction boundary, and each state file is complete."""
    built = small(tmp_path / "home", artifacts=True)

    with home_writer.start(built.root) as writer:
        reports = [_back_up(built.root) for _ in range(3)]
        done = writer.stop()

    assert done.commits
    counts = []
    for number, report in enumerate(reports):
        ledger, spent = home_writer.pairs(_database(report, tmp_path / f"{number}.db"))
        assert ledger == spent
        counts.append(ledger)
        members = _members(report)
        for name in ("config/admin-state.json", "config/connections.json", "secrets/profiles.json"):
            json.loads(members[name])
        assert report.database is not None
        assert report.database.integrity == ()
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_wal_of_a_killed_writer_is_stored_to_its_last_commit(tmp_path: Path) -> None:
    """After SIGKILL the data is in the WAL, where the copy finds all of it."""
    built = small(tmp_path / "home")
    with home_writer.start(built.root) as writer:
        writer.kill()
    before = everything_of(built.root)

    report = _back_up(built.root)

    assert everything_of(built.root) == before
    copied = home_writer.pairs(_database(report, tmp_path / "copy.db"))
    assert copied == home_writer.pairs(built.database)
    assert copied[0] > 0


def _once(stage: str, act: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Return a progress callback that acts at the first report of a stage."""
    left = [act]

    def report(now: str, _done: int, _total: int) -> None:
        if now == stage and left:
            left.pop()()

    return report


def test_a_long_file_that_changes_once_is_read_again(tmp_path: Path) -> None:
    """The first attempt remains in the stream as superseded; the last one counts, for tar too."""
    built = small(tmp_path / "home")
    large = built.root / "data/large.bin"
    large.write_bytes(os.urandom(6_000_000))

    def grow() -> None:
        with large.open("ab") as stream:
            stream.write(b"more")

    report = _back_up(built.root, progress=_while_reading(large, grow, times=1))

    kinds = [entry.type for entry in _manifest(report).entries if entry.path == "data/large.bin"]
    assert kinds == [EntryType.SUPERSEDED, EntryType.FILE]
    assert report.is_complete
    assert _members(report)["data/large.bin"] == large.read_bytes()


@pytest.mark.parametrize("change", ["grow", "shrink"])
def test_long_file_that_keeps_changing_is_stored_and_named(tmp_path: Path, change: str) -> None:
    """After three attempts it is stored as last read; the report names it."""
    built = small(tmp_path / "home")
    large = built.root / "data/large.bin"
    large.write_bytes(os.urandom(9_000_000))

    def alter() -> None:
        size = large.stat().st_size
        os.truncate(large, size + 1000 if change == "grow" else max(size - 1_000_000, 4_200_000))

    report = _back_up(built.root, progress=_while_reading(large, alter, times=1000))

    kinds = [entry.type for entry in _manifest(report).entries if entry.path == "data/large.bin"]
    assert kinds == [EntryType.SUPERSEDED, EntryType.SUPERSEDED, EntryType.FILE]
    assert report.unstable == ("data/large.bin",)
    assert not report.is_complete
    assert (
        "data/large.bin: changed at every attempt to read it, stored as last read"
        in report.warnings()
    )


def _while_reading(
    path: Path, act: Callable[[], None], *, times: int
) -> Callable[[str, int, int], None]:
    """Return a progress callback that acts a few times while this process has the file open."""
    left = [act] * times

    def report(stage: str, _done: int, _total: int) -> None:
        if stage == "pack" and left and _is_open(path):
            left.pop()()

    return report


def _is_open(path: Path) -> bool:
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
                return True
    return False


@pytest.mark.parametrize(("changes", "unstable"), [(1, ()), (5, ("data/log",))])
def test_a_short_file_that_changes_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: int, unstable: tuple[str, ...]
) -> None:
    """Whole files are read again before anything of them is written."""
    built = small(tmp_path / "home")
    log = built.root / "data/log"
    log.write_text("line\n")
    left = [b"another line\n"] * changes
    really = archive_writer.is_unchanged

    def changing(stream: object, before: os.stat_result) -> bool:
        if left and before.st_ino == log.stat().st_ino:
            with log.open("ab") as file:
                file.write(left.pop())
        return really(stream, before)  # type: ignore[arg-type]

    monkeypatch.setattr(archive_writer, "is_unchanged", changing)

    report = _back_up(built.root)

    assert report.unstable == unstable
    stored = _members(report)["data/log"]
    assert log.read_bytes().startswith(stored)
    assert (stored == log.read_bytes()) is (not unstable)
    assert sum(entry.path == "data/log" for entry in _manifest(report).entries) == 1


def test_entry_removed_after_the_scan_is_named_and_no_loss(tmp_path: Path) -> None:
    """A file, and a directory with its content."""
    built = small(tmp_path / "home")
    data = built.root / "data"
    (data / "file").write_text("x")
    (data / "directory/deep").mkdir(parents=True)
    (data / "directory/deep/file").write_text("y")

    def vanish() -> None:
        (data / "file").unlink()
        (data / "directory").rename(data / "aside")

    report = _back_up(built.root, progress=_once("database", vanish))

    gone = {path for path, reason in _omissions(report).items() if reason is Reason.GONE}
    assert gone == {
        "data/file",
        "data/directory",
        "data/directory/deep",
        "data/directory/deep/file",
    }
    assert report.is_complete


def test_directory_that_reappears_does_not_spoil_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed when it was added: its content is omitted too, or the manifest would be wrong."""
    built = small(tmp_path / "home")
    directory = built.root / "data/directory"
    (directory / "below").mkdir(parents=True)
    (directory / "below/file").write_text("y")
    really = os.lstat

    def blinking(path: str, *, dir_fd: int | None = None) -> os.stat_result:
        if path == str(directory):
            raise FileNotFoundError(2, "gone for a moment", path)
        return really(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "lstat", blinking)
    report = _back_up(built.root)
    monkeypatch.undo()

    assert not any(path.startswith("data/directory") for path in _members(report))
    assert _omissions(report)["data/directory/below/file"] is Reason.GONE


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_file_whose_type_changes_is_a_named_loss(tmp_path: Path, kind: str) -> None:
    """A link in place of a file after the scan is not followed; a pipe does not block."""
    built = small(tmp_path / "home")
    secret = tmp_path / "outside"
    secret.write_text("not of this home")
    file = built.root / "data/file"
    file.write_text("x")

    def swap() -> None:
        file.unlink()
        if kind == "link":
            file.symlink_to(secret)
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            file.mkdir()

    report = _back_up(built.root, progress=_once("database", swap))

    assert _omissions(report)["data/file"] is Reason.UNREADABLE
    assert not report.is_complete
    assert b"not of this home" not in b"".join(_members(report).values())


def test_home_that_is_a_link_is_resolved(tmp_path: Path) -> None:
    """Its snapshots are next to the real one."""
    built = small(tmp_path / "disk/home")
    (tmp_path / "alias").symlink_to(built.root)

    report = _back_up(tmp_path / "alias")

    assert report.path is not None
    assert report.path.parent == tmp_path / "disk/home.snapshots"


@pytest.mark.parametrize("place", ["home", "home/data", "alias/new", "directory-link"])
def test_a_snapshot_directory_inside_the_home_is_refused(tmp_path: Path, place: str) -> None:
    """Also through a link, and nothing is created there."""
    built = small(tmp_path / "home")
    (tmp_path / "alias").symlink_to(built.root)
    (tmp_path / "directory-link").symlink_to(built.root / "data")
    before = everything_of(built.root)

    with pytest.raises(UsageError, match="inside the home"):
        _back_up(built.root, directory=tmp_path / place)

    assert everything_of(built.root) == before


@pytest.mark.skipif(
    not SHM.is_dir() or SHM.stat().st_dev == Path("/tmp").stat().st_dev,
    reason="/dev/shm is no file system of its own here",
)
def test_the_snapshot_directory_may_be_on_another_file_system(tmp_path: Path) -> None:
    """Staging and the partial file are in the snapshot directory, so the rename stays on it."""
    built = small(tmp_path / "home")
    directory = SHM / f"sagewai-ops-test-{os.getpid()}"
    try:
        report = _back_up(built.root, directory=directory)

        assert sorted(path.name for path in directory.iterdir()) == sorted(
            (report.path.name, f"{report.path.name}.json") if report.path else ()
        )
    finally:
        for path in directory.glob("*"):
            path.unlink()
        directory.rmdir()


def _change_owner(root: Path) -> None:
    """Change the owner of a directory, as root; any other user owns it already."""
    if os.getuid() == 0:
        for path in (*root.rglob("*"), root):
            os.chown(path, NO_USER, NO_USER, follow_symlinks=False)


def _import_all(directory: Path) -> None:
    """Import what a backup imports late: the interpreter may be readable by root only."""
    _back_up(small(directory / "first").root)


def test_read_only_home_is_backed_up_unchanged() -> None:
    """Without the right to write anywhere in it, as another user than root."""
    with reachable_directory() as directory:
        built = small(directory / "home", layout="canonical")
        _change_owner(built.root)
        for path in (*built.root.rglob("*"), built.root):
            if not path.is_symlink():
                path.chmod(0o500 if path.is_dir() else 0o400)
        before = everything_of(built.root)
        _import_all(directory)
        with unprivileged():
            report = _back_up(built.root, directory=directory / "snapshots")

            assert everything_of(built.root) == before
            assert report.is_complete
            assert rows_of(_database(report, directory / "copy.db"))["sessions"]


def test_unreadable_file_is_a_named_loss() -> None:
    """All else is stored; the report names what is missing."""
    with reachable_directory() as directory:
        built = small(directory / "home")
        _change_owner(built.root)
        (built.root / "data/closed").write_text("x")
        (built.root / "data/closed").chmod(0)
        (built.root / "data/shut").mkdir(mode=0)
        _import_all(directory)
        with unprivileged():
            report = _back_up(built.root, directory=directory / "snapshots")
        (built.root / "data/shut").chmod(0o700)  # or no one could remove it

    assert _omissions(report)["data/closed"] is Reason.UNREADABLE
    assert _losses(report) == {"data/closed", "data/shut"}


def test_cache_outside_is_named_and_omitted(tmp_path: Path) -> None:
    """Sagewai refills it; the report still names it."""
    built = small(tmp_path / "home")
    cache = tmp_path / "cache"
    cache.mkdir()

    report = _back_up(built.root, environment={"SAGEWAI_CACHE_DIR": str(cache)})

    (note,) = report.notes
    assert note.startswith(f"SAGEWAI_CACHE_DIR: {cache} is not in the snapshot")
    assert report.is_complete


def test_external_files_of_overrides_are_stored(tmp_path: Path) -> None:
    """Bytes of documents and rows of the database, under the variables' names."""
    built = small(tmp_path / "home")
    state = tmp_path / "state.json"
    built.admin_state.rename(state)
    connections = tmp_path / "connections.json"
    built.connections.rename(connections)
    for suffix in ("", "-wal", "-shm"):
        os.rename(f"{built.database}{suffix}", f"{tmp_path}/far.db{suffix}")
    environment = {
        "SAGEWAI_ADMIN_STATE_FILE": str(state),
        "SAGEWAI_CONNECTIONS_FILE": str(connections),
        "SAGEWAI_DATABASE_URL": f"sqlite:///{tmp_path}/far.db",
    }

    report = _back_up(built.root, environment=environment)

    members = _members(report)
    assert members["external/SAGEWAI_ADMIN_STATE_FILE"] == state.read_bytes()
    assert members["external/SAGEWAI_CONNECTIONS_FILE"] == connections.read_bytes()
    copy = _database(report, tmp_path / "copy.db", "external/SAGEWAI_DATABASE_URL")
    assert rows_of(copy) == rows_of(tmp_path / "far.db")
    assert report.database is not None
    assert report.keys.total == len(built.sealed)
    assert report.is_complete


def test_omitted_database_server_is_noted(tmp_path: Path) -> None:
    """The files of the home are stored."""
    built = small(tmp_path / "home")

    report = _back_up(
        built.root,
        BackupOptions(without_database=True),
        environment={"DATABASE_URL": "postgresql://u:p@h/d"},
    )

    assert "not in this snapshot" in report.notes[0]
    assert report.without_database


@pytest.mark.parametrize(
    "content",
    [b"SQLite format 3\0" + b"\xff" * 5000, b"not a database at all" * 300, b"\0" * 8192],
)
def test_invalid_database_is_damage_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    """No snapshot is written without its database, and nothing is left."""
    built = small(tmp_path / "home", journal="none")
    built.database.write_bytes(content)

    with pytest.raises(DamagedError) as raised:
        _back_up(built.root)

    assert "sagewai.db" in raised.value.message
    assert list((tmp_path / "home.snapshots").iterdir()) == []


def test_damage_inside_the_database_is_a_finding(tmp_path: Path) -> None:
    """The database is stored as far as it can be read; the report has the finding."""
    built = small(tmp_path / "home", journal="none")
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'prompt_logs'"
        ).fetchone()
    with built.database.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 100)

    report = _back_up(built.root)

    assert report.path is not None
    assert not report.is_sound
    assert report.database is not None
    assert report.database.integrity
    assert any(line.startswith("database: ") for line in report.warnings())


def _disagree(path: Path) -> None:
    """Change what an index of a database is on, so that it differs from its table."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE INDEX ours ON agent_runs (agent_name)")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, '(agent_name)', '(run_id)')"
            " WHERE name = 'ours'"
        )


def test_database_is_checked_whole_once_a_week(tmp_path: Path) -> None:
    """In between the indexes are not compared with their tables; the facts state when they were."""
    built = small(tmp_path / "home", journal="none")
    first = _back_up(built.root)
    second = _back_up(built.root)
    moment = f"{first.created_at:%Y-%m-%dT%H:%M:%SZ}"
    assert first.path
    assert second.path
    for report, check in ((first, "full"), (second, "quick")):
        assert report.database
        assert (report.database.check, report.database.full_check_at) == (check, moment)
        facts = _manifest(report).facts["database"]
        assert (facts["check"], facts["full_check_at"]) == (check, moment)
        assert cards.read_card(report.path or Path())["full_check_at"] == moment

    _disagree(built.database)
    quick = _back_up(built.root)
    assert quick.is_sound
    whole = _back_up(built.root, BackupOptions(check="full"))
    assert not whole.is_sound
    # Damage that was found once is not forgotten by a quick check of the next night.
    after = _back_up(built.root)
    assert not after.is_sound
    assert after.database
    assert after.database.check == "full"


@pytest.mark.parametrize("reason", ["age", "failed drill", "not authentic"])
def test_database_is_checked_whole_before_the_week_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """After seven days, damage, or a metadata file that anyone may have written."""
    built = small(tmp_path / "home", journal="none")
    first = _back_up(built.root)
    assert first.path
    card = dict(cards.read_card(first.path))
    if reason == "age":
        monkeypatch.setattr("sagewai_ops.snapshots.database_check.FULL_CHECK_EVERY", timedelta(0))
    elif reason == "failed drill":
        key = keys_of(locate(built.root, {}), {})[0]
        cards.write_card(first.path, {**card, "drill": {"outcome": "failed"}}, key)
    else:
        del card["mac"]
        cards.write_card(first.path, card)

    second = _back_up(built.root)

    assert second.database
    assert second.database.check == "full"


@pytest.mark.parametrize(
    ("last", "check"),
    [
        ("2026-11-29T02:30:00Z", "quick"),
        ("2026-11-22T02:30:01Z", "quick"),
        ("2026-11-22T02:30:00Z", "full"),
        ("2026-11-29T02:30:01Z", "full"),  # in the future: a clock was wrong
        ("", "full"),
        ("yesterday", "full"),
        ("2026-11-29", "full"),
    ],
)
def test_full_check_is_due_after_seven_days(last: str, check: str) -> None:
    """Whatever a metadata file states, a check is not omitted for longer."""
    now = datetime(2026, 11, 29, 2, 30, tzinfo=timezone.utc)
    assert database_check.next_check(last, now) == check


def test_broken_references_are_a_finding(tmp_path: Path) -> None:
    """The snapshot is created; the report has the number of rows and the table."""
    built = small(tmp_path / "home", orphans=3)

    report = _back_up(built.root)

    assert not report.is_sound
    assert report.is_complete
    assert report.database is not None
    assert report.database.foreign_key_violations == 3


def test_secret_that_no_key_opens_makes_it_incomplete(tmp_path: Path) -> None:
    """The report names it, never its content."""
    built = small(tmp_path / "home", keys=2)

    report = _back_up(built.root)

    unopened = report.keys.unopened
    assert unopened
    assert not report.is_complete
    lines = "\n".join(report.warnings())
    assert "sealed" in lines
    assert not any(value.token in lines for value in built.sealed)


def test_file_that_contains_the_key_is_omitted_as_a_loss(tmp_path: Path) -> None:
    """An environment file, a note: no plain archive contains the key in any of them."""
    built = small(tmp_path / "home")
    line = b"SAGEWAI_MASTER_KEY=" + built.master_keys[0] + b"\n"
    (built.root / ".env").write_bytes(b"# ours\n" + line)
    (built.root / "data/notes.md").write_bytes(b"remember " * 10_000 + line)
    recipient, identity = temporary_identity()

    report = _back_up(built.root)
    sealed = _back_up(
        built.root, BackupOptions(custody="sealed", encryption=Encryption(recipients=(recipient,)))
    )

    assert _losses(report) == {".env", "data/notes.md"}
    assert _omissions(report)[".env"] is Reason.HOLDS_KEY
    assert all(built.master_keys[0] not in content for content in _members(report).values())
    paths = {entry.path for entry in _manifest(sealed, Decryption(identities=(identity,))).entries}
    assert {".env", "data/notes.md"} <= paths
    assert sealed.is_complete


def test_key_is_included_only_with_encryption(tmp_path: Path) -> None:
    """Plain archives never contain it; sealed ones contain it once, in its place."""
    built = small(tmp_path / "home")
    recipient, identity = temporary_identity()

    with pytest.raises(UsageError, match="the archive is not encrypted"):
        _back_up(built.root, BackupOptions(custody="sealed"))
    assert not (tmp_path / "home.snapshots").exists()
    report = _back_up(
        built.root, BackupOptions(custody="sealed", encryption=Encryption(recipients=(recipient,)))
    )

    manifest = _manifest(report, Decryption(identities=(identity,)))
    assert [entry.path for entry in manifest.entries if "master.key" in entry.path] == [
        "secrets/master.key"
    ]


def test_key_of_the_environment_is_stored_under_its_own_name(tmp_path: Path) -> None:
    """The home has no file of it, so it is stored as `external/master.key`."""
    built = small(tmp_path / "home", key_file=False)
    recipient, identity = temporary_identity()
    decryption = Decryption(identities=(identity,))
    environment = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}
    options = BackupOptions(custody="sealed", encryption=Encryption(recipients=(recipient,)))

    report = _back_up(built.root, options, environment=environment)

    assert report.path is not None
    with open_archive(report.path, decryption) as reader:
        found = {
            entry.path: b"".join(map(bytes, content))
            for entry, content in reader.members(lambda entry: "master.key" in entry.path)
        }
    assert found == {"external/master.key": built.master_keys[0]}
    assert report.keys.unopened == ()


def test_sealed_custody_without_a_key_is_refused(tmp_path: Path) -> None:
    """An archive that promises a key must have one."""
    built = small(tmp_path / "home", keys=0)
    recipient, _identity = temporary_identity()

    with pytest.raises(KeyMissingError, match="no master key to include"):
        _back_up(
            built.root,
            BackupOptions(custody="sealed", encryption=Encryption(recipients=(recipient,))),
        )

    assert list((tmp_path / "home.snapshots").iterdir()) == []


def test_excluding_the_key_file_does_not_omit_a_sealed_key(tmp_path: Path) -> None:
    """`--exclude` applies to files; `--key sealed` includes the key."""
    built = small(tmp_path / "home")
    recipient, identity = temporary_identity()
    options = BackupOptions(
        custody="sealed", encryption=Encryption(recipients=(recipient,)), exclude=("secrets/*",)
    )

    report = _back_up(built.root, options)

    paths = {entry.path for entry in _manifest(report, Decryption(identities=(identity,))).entries}
    assert {path for path in paths if "master.key" in path} == {"external/master.key"}


def test_archive_that_fails_verification_is_not_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that flips between writing and reading is noticed, and nothing is left."""
    built = small(tmp_path / "home")

    def flipping(
        path: Path, decryption: Decryption | None
    ) -> contextlib.AbstractContextManager[ArchiveReader]:
        with path.open("r+b") as file:
            file.seek(-5000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        return open_archive(path, decryption)

    monkeypatch.setattr(create, "open_archive", flipping)

    with pytest.raises(DamagedError):
        _back_up(built.root)

    assert list((tmp_path / "home.snapshots").iterdir()) == []


def test_leftovers_of_dead_runs_are_swept_and_live_ones_remain(tmp_path: Path) -> None:
    """Partial files, staging and partial cards are removed, unless a process has them locked."""
    built = small(tmp_path / "home")
    directory = tmp_path / "home.snapshots"
    directory.mkdir()
    stem = ".sagewai-20260101T000000Z-00000"
    dead = [
        f"{stem}1.tar.zst.partial",
        f"{stem}2.tar.zst.age.partial",
        f"{stem}3.tar.zst.json.0123abcd.partial",
        f"{stem}4.staging",
    ]
    for name in dead[:3]:
        (directory / name).write_bytes(b"half")
    (directory / dead[3]).mkdir()
    (directory / dead[3] / "0.db").write_bytes(b"half")
    strangers = [".sagewai-notes", "sagewai-20260101T000000Z-000005.tar.zst.partial", "README"]
    for name in strangers:
        (directory / name).write_bytes(b"mine")
    os.mkfifo(directory / f"{stem}6.tar.zst.partial")
    live = f"{stem}7.tar.zst.partial"

    with (directory / live).open("wb") as stream:
        locks.mark_alive(stream.fileno())
        report = _back_up(built.root)

    assert set(report.swept) >= set(dead)
    names = {path.name for path in directory.iterdir()}
    assert names.isdisjoint(dead)
    assert {live, *strangers} <= names


def test_sequence_increases_although_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order is by sequence: the clock of the machine is not to be relied upon."""
    built = small(tmp_path / "home")
    first = _back_up(built.root)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Earlier":  # noqa: ARG003 - datetime's own
            return cls(2001, 1, 1, tzinfo=timezone.utc)

    monkeypatch.setattr("sagewai_ops.backup.run.datetime", Earlier)
    second = _back_up(built.root)

    assert (first.sequence, second.sequence) == (1, 2)
    assert second.id < first.id
    listed = [item.id for item in catalog.list_snapshots(tmp_path / "home.snapshots")]
    assert listed == [first.id, second.id]


def test_locked_home_is_not_backed_up_and_no_directory_is_created(tmp_path: Path) -> None:
    """One run at a time: the process that has the lock is named."""
    built = small(tmp_path / "home")

    with (
        locks.exclusive(built.root),
        pytest.raises(LockedError, match=f"pid {os.getpid()}"),
    ):
        _back_up(built.root)

    assert not (tmp_path / "home.snapshots").exists()


def test_missing_home_is_not_created(tmp_path: Path) -> None:
    """A mistyped path is an error, not an empty backup."""
    with pytest.raises(NotFoundError, match="not found"):
        _back_up(tmp_path / "nothing")

    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_modes_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    """Directory 0700, archive and card 0600; also parent directories that had to be created."""
    built = small(tmp_path / "home")
    directory = tmp_path / "new/snapshots"

    with _umask(mask):
        report = _back_up(built.root, directory=directory)

    assert report.path is not None
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (directory.parent, directory, report.path, cards.card_path(report.path))
    ]
    assert modes == [0o700, 0o700, 0o600, 0o600]


def test_a_compact_copy_has_the_same_rows_and_fewer_pages(tmp_path: Path) -> None:
    """Only free pages are omitted."""
    built = small(tmp_path / "home", database_bytes=3_000_000, journal="none")
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        connection.execute("DELETE FROM context_chunks")
        connection.commit()

    plain, compact = _back_up(built.root), _back_up(built.root, BackupOptions(compact=True))

    assert plain.database is not None
    assert compact.database is not None
    assert compact.database.page_count < plain.database.page_count
    copies = [
        rows_of(_database(report, tmp_path / f"{report.id}.db")) for report in (plain, compact)
    ]
    assert copies[0] == copies[1]


def test_key_that_opens_a_value_stays_out_wherever_it_is_from(tmp_path: Path) -> None:
    """A kept key, the data key of a project, and a key that no source has."""
    built = small(tmp_path / "home", keys=2)
    kept, unknown = built.master_keys
    secrets = built.root / "secrets"
    (secrets / "master.key").rename(secrets / "master.key.legacy-20260101")
    data = built.root / "data"
    data.mkdir(exist_ok=True)
    (data / "kept.txt").write_bytes(b"key: " + kept)
    (data / "unknown.txt").write_bytes(b"key: " + unknown + b"\n")
    (data / "other.txt").write_bytes(b"A" * 43 + b"=")

    report = _back_up(built.root)

    omitted = _omissions(report)
    assert omitted["data/kept.txt"] is Reason.HOLDS_KEY
    assert omitted["data/unknown.txt"] is Reason.HOLDS_KEY
    assert "data/other.txt" in _members(report)
    assert report.keys.opened
    assert not any(kept in content or unknown in content for content in _members(report).values())


@pytest.mark.parametrize("trouble", ["broken", "locked", "journal"])
def test_artifact_like_a_database_prevents_no_backup(tmp_path: Path, trouble: str) -> None:
    """It is included as it is, its log is reported, and nothing that it names is deleted."""
    built = small(tmp_path / "home")
    victim = tmp_path / "precious"
    victim.write_text("x")
    artifact = built.root / "data" / "x.db"
    artifact.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(artifact, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE t (x)")
        if trouble != "locked":
            other.close()
        if trouble == "broken":
            artifact.write_bytes(b"SQLite format 3\0garbage")
            artifact.with_name("x.db-wal").write_bytes(b"w")
        if trouble == "journal":
            name = os.fsencode(victim)
            tail = len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")
            magic = bytes.fromhex("d9d505f920a163d7")
            artifact.with_name("x.db-journal").write_bytes(magic + bytes(504) + name + tail + magic)
        report = _back_up(built.root)

    members = _members(report)
    assert members["data/x.db"].startswith(b"SQLite format 3")
    assert not any(path.startswith("data/x.db-") for path in members)
    lost = "data/x.db-journal" if trouble == "journal" else "data/x.db-wal"
    assert _omissions(report)[lost] is Reason.UNREADABLE
    assert not report.is_complete
    assert victim.exists()
