"""Real machines: file systems that lack operations, volumes, overlays, limits, odd terminals."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from program import COMMAND, PATIENCE_SECONDS, call
from refusals import LACKING, build_library, refusing
from sagewai_ops.archive.age import temporary_identity
from sagewai_ops.backup import mirror_record
from sagewai_ops.fs.given_files import open_given_file
from small_homes import small
from unprivileged import NO_USER, reachable_directory, unprivileged

# Runs one command after another in one process: their codes, outputs and errors, as JSON.
_SEVERAL = """
import contextlib, io, json, os, sys
from sagewai_ops.cli.main import run
os.umask(0o077)
answers = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that refuses, once."""
    return build_library(tmp_path_factory.mktemp("refusals"))


def _run_several(environment: dict[str, str], *commands: list[object]) -> list[tuple[int, str]]:
    """Run commands in one process; return their exit codes and what they printed."""
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", _SEVERAL, words],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return [(code, out + err) for code, out, err in json.loads(done.stdout)]


@pytest.mark.parametrize("lacking", LACKING)
def test_every_command_works_on_a_file_system_that_lacks_operations(
    tmp_path: Path, library: Path, lacking: str
) -> None:
    """A home, its snapshots and a restored home on one: nothing is refused that is not needed."""
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    home, copy = volume / "home", volume / "copy"
    archive = volume / "home.snapshots"
    at_home = ["--home", home]

    answers = _run_several(
        refusing(library, volume, LACKING[lacking]),
        [*at_home, "init"],
        [*at_home, "status"],
        [*at_home, "backup", "--keep-last", 2],
        [*at_home, "backup", "--format", "directory"],
        [*at_home, "backup", "--format", "directory"],
        [*at_home, "verify-perms"],
        [*at_home, "snapshots", "list"],
        [*at_home, "snapshots", "verify", "latest"],
        [*at_home, "drill"],
        [*at_home, "db", "current"],
        [*at_home, "db", "check"],
        [*at_home, "keys", "check"],
        ["restore", "latest", "--snapshots", archive, "--to", copy],
        [*at_home, "restore", "latest", "--replace", "--yes"],
        [*at_home, "restore", "--undo", "--yes"],
        ["snapshots", "extract", "latest", "--snapshots", archive, "--to", volume / "files"],
    )

    assert [(code, text) for code, text in answers if code] == []
    assert (copy / "db/sagewai.db").is_file()
    assert {path.name for path in archive.glob(".*")} <= {".trash", mirror_record.NAME}


def _volume(path: Path) -> Path:
    """Make the root of a volume: it has `lost+found`, which only root reads."""
    path.mkdir(mode=0o700)
    (path / "lost+found").mkdir(mode=0o000)
    return path


def test_lost_and_found_is_neither_archived_nor_moved_nor_content(tmp_path: Path) -> None:
    """A home that is the root of a volume is complete; a new volume is empty."""
    home, new, extracted = (_volume(tmp_path / name) for name in ("home", "new", "files"))
    snapshots = tmp_path / "snapshots"
    assert call("--home", home, "init").code == 0

    backup = call("--home", home, "backup", "--to", snapshots, "--json")
    assert backup.code == 0, backup.err
    assert "lost+found" not in backup.out
    assert call("restore", "latest", "--snapshots", snapshots, "--to", new).code == 0
    assert (new / "db/sagewai.db").exists()
    options = ("--snapshots", snapshots)
    assert call("snapshots", "extract", "latest", *options, "--to", extracted).code == 0
    assert call("--home", home, "restore", "latest", *options, "--replace", "--yes").code == 0
    assert call("--home", home, "restore", "--undo", "--yes").code == 0
    assert call("--home", home, "verify-perms").code == 0

    for volume in (home, new, extracted):
        assert (volume / "lost+found").stat().st_mode & 0o777 == 0
        assert not list(volume.glob("*/lost+found"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_home_in_a_lower_layer_is_restored_entry_by_entry(tmp_path: Path) -> None:
    """Directories of an image cannot be renamed: files are exchanged, and undone."""
    lower, upper, work, mount = (tmp_path / name for name in ("low", "up", "work", "mount"))
    for directory in (lower, upper, work, mount):
        directory.mkdir()
    home = mount / "home"
    small(lower / "home")
    (lower / "home/data/nested").mkdir(parents=True, exist_ok=True)
    (lower / "home/data/nested/note.txt").write_text("saved")
    assert call("--home", lower / "home", "backup", "--format", "directory").code == 0
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mounted: list[str | Path] = ["mount", "-t", "overlay", "overlay", "-o", layers, mount]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("this system has no overlay")
    try:
        snapshots = ("--snapshots", tmp_path / "snapshots")
        assert call("--home", home, "backup", *snapshots).code == 0
        (home / "data/nested/note.txt").write_text("changed")
        (home / "data/nested/added.txt").write_text("later")
        before = _texts(home)

        answer = call("--home", home, "restore", "latest", *snapshots, "--replace", "--yes")
        assert answer.code == 0, answer.err
        assert _texts(home / "data/nested") == {"note.txt": "saved"}
        assert call("--home", home, "db", "check").code == 0
        assert call("--home", home, "restore", "--undo", "--yes").code == 0
        assert _texts(home) == before
        mirror = ("--format", "directory", "--all-paths")
        assert call("--home", home, "backup", *mirror).code == 0
        tree = mount / "home.snapshots/tree"
        assert _texts(tree / "data/nested") == {"note.txt": "changed", "added.txt": "later"}
        assert [path.name for path in tree.parent.glob(".*")] == [mirror_record.NAME]
    finally:
        subprocess.run(["umount", mount], check=True)


def _texts(directory: Path) -> dict[str, str]:
    """Return the texts below a directory, without what this program keeps there."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*.txt")
        if ".sagewai-ops-" not in str(path)
    }


def _shell(home: Path, words: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell, in which `ops` is the program with this home."""
    environment = {**os.environ, "ops": COMMAND[0], "SAGEWAI_HOME": str(home)}
    return subprocess.run(
        ["sh", "-c", words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a new home."""
    root = tmp_path / "home"
    assert call("--home", root, "init").code == 0
    return root


@pytest.mark.parametrize("log", ["2>/dev/full", "2>&-"])
def test_backup_is_taken_where_stderr_takes_nothing(home: Path, log: str) -> None:
    """The log of a cron job is on a full disk: the snapshot and the exit code are as ever."""
    os.mkfifo(home / "data/pipe")  # omitted, and so exit 3 with a warning

    done = _shell(home, f'"$ops" backup --log-file - --debug {log}')

    assert done.returncode == 3
    assert len(list(home.with_name("home.snapshots").glob("*.zst"))) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--version >/dev/full", 13),
        ("--version >&-", 1),
        ("--json --version >/dev/full", 13),
        ("--help >/dev/full", 13),
        ("backup --help >/dev/full", 13),
        ("status >/dev/full", 13),
        ("status --json --home /nowhere/at/all >/dev/full", 10),
    ],
)
def test_output_that_cannot_be_written_is_two_lines(tmp_path: Path, words: str, code: int) -> None:
    """A disk that is full, and a stream that was closed, are no fault of the program."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "db").mkdir()

    done = _shell(home, f'"$ops" {words}')

    assert done.returncode == code
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["sagewai-ops", "error"],
        ["sagewai-ops", "hint"],
    ]


@pytest.mark.parametrize("words", ["--home home status", "backup --to snapshots", "db current"])
def test_removed_working_directory_is_two_lines_or_no_matter(home: Path, words: str) -> None:
    """Only a path that is relative needs the working directory."""
    gone = home.with_name("gone")

    done = _shell(home, f'mkdir "{gone}"; cd "{gone}"; rmdir "{gone}"; "$ops" {words}')

    is_relative = words != "db current"
    assert done.returncode == (10 if is_relative else 0)
    if is_relative:
        assert done.stderr.splitlines()[0] == "sagewai-ops: error: working directory: removed"


def test_root_of_all_directories_is_no_home() -> None:
    """`--home /` comes from an empty variable before a slash."""
    for words in (["status"], ["backup"], ["init"], ["restore", "latest", "--replace", "--yes"]):
        answer = call("--home", "/", *words)
        assert (answer.code, answer.err.count("\n")) == (2, 2)


def test_system_without_threads_is_two_lines(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of processes of a container; the partial snapshot is removed."""

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    answer = call("--home", home, "backup")

    assert (answer.code, answer.err.count("\n")) == (1, 2)
    assert "threads" in answer.err
    assert not list(home.with_name("home.snapshots").iterdir())


@pytest.mark.parametrize("name", ["passphrase-file", "recipients-file"])
def test_files_of_editors_are_read_or_refused_by_name(home: Path, name: str) -> None:
    """A byte order mark is no part of a passphrase; what is not UTF-8 is refused."""
    text = f"{temporary_identity()[0]}" if name == "recipients-file" else "correct horse battery"
    file = home.with_name("file")
    backup = ("--home", home, "backup", "--json", f"--{name}", file, "--snapshots")

    for content in (text.encode("utf-16"), text.encode("utf-16-le"), f"pä{text}".encode("latin1")):
        file.write_bytes(content)
        file.chmod(0o600)
        answer = call(*backup, home.with_name("none"))
        assert answer.code == 2
        assert str(file) in answer.document["error"]["message"]
        assert text not in answer.out

    file.write_bytes(text.encode("utf-8-sig") + b"\r\n")
    assert call(*backup, home.with_name("snapshots")).code == 0
    if name == "passphrase-file":
        file.write_text(text)
        snapshots = ("--snapshots", home.with_name("snapshots"))
        opened = call("snapshots", "verify", "latest", *snapshots, "--passphrase-file", file)
        assert opened.code == 0, opened.err


def test_other_given_files_may_have_a_mark(home: Path) -> None:
    """Keys, configuration and URLs are saved by the same editors."""
    key = (home / "secrets/master.key").read_bytes()
    mark = b"\xef\xbb\xbf"
    for name, content in (("key", key), ("config", b"quiet = true\n"), ("utf16", b"")):
        (home.with_name(name)).write_bytes(mark + content)
        home.with_name(name).chmod(0o600)
    assert call("--home", home, "backup").code == 0
    home.with_name("utf16").write_bytes("quiet = true".encode("utf-16"))

    to = home.with_name("restored")
    restore = ("restore", "latest", "--snapshots", home.with_name("home.snapshots"), "--to", to)
    assert call(*restore, "--install-key", home.with_name("key")).code == 0
    assert (to / "secrets/master.key").read_bytes() == key
    assert call("--config", home.with_name("config"), "--home", home, "status").code == 0
    refused = call("--config", home.with_name("utf16"), "--home", home, "status")
    assert refused.code == 2
    assert f"{home.with_name('utf16')}: not TOML: encoded in UTF-16" in refused.err


@pytest.mark.parametrize(
    "words",
    [
        ("schedule", "systemd", "--into", "DIR/missing"),
        ("verify-perms", "--undo", "DIR"),
        ("backup", "--passphrase-file", "DIR"),
        ("backup", "--recipients-file", "DIR"),
        ("snapshots", "verify", "latest", "--identity", "DIR"),
        ("restore", "latest", "--install-key", "DIR", "--to", "DIR/new"),
        ("--config", "DIR", "status"),
    ],
)
def test_errors_name_what_was_asked_for(home: Path, words: tuple[str, ...]) -> None:
    """Neither a partial file, a descriptor nor a bare name, and never exit 1."""
    directory = home.with_name("directory")
    directory.mkdir()
    assert call("--home", home, "backup").code == 0

    answer = call("--home", home, *(word.replace("DIR", str(directory)) for word in words))

    assert answer.code not in (0, 1)
    message, *hint = answer.err.splitlines()
    assert str(directory) in message
    assert ".partial" not in answer.err
    assert hint
    assert hint != ["sagewai-ops: hint: sagewai-ops status"]


@pytest.mark.parametrize("state", ["folded", "hot journal"])
def test_read_only_home_is_read_in_a_copy(state: str) -> None:
    """SQLite cannot read it in place: every command that only reads does it in a copy."""
    with reachable_directory() as directory:
        home = directory / "home"
        assert call("--home", home, "init").code == 0
        # What is imported late may be unreadable for the other user.
        readers = (["db", "check"], ["db", "current"], ["keys", "check"], ["status"])
        for words in (
            *readers,
            ["preflight", "--no-snapshot"],
            ["backup", "--snapshots", directory / "first"],
        ):
            assert call("--home", home, *words).code in (0, 4)
        database = home / "db/sagewai.db"
        with contextlib.closing(sqlite3.connect(database)) as connection:
            mode = "wal" if state == "folded" else "delete"
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.execute("CREATE TABLE mine(a)")
            connection.commit()
        if state == "hot journal":
            writer = (
                "import os,sqlite3,sys; c=sqlite3.connect(sys.argv[1]);"
                "c.execute('pragma cache_size=1'); c.execute('create table big(a)'); c.commit();"
                "c.executemany('insert into big values(?)', [('x'*3000,)]*500); os._exit(0)"
            )
            subprocess.run([sys.executable, "-c", writer, database], check=True)
            assert database.with_name("sagewai.db-journal").exists()
        if not os.geteuid():
            for entry in (home, *home.rglob("*")):
                os.chown(entry, NO_USER, NO_USER)
        for path in (home / "db", home):
            path.chmod(0o500)
        try:
            with unprivileged():
                for words in readers:
                    answer = call("--home", home, "--json", *words)
                    assert answer.code == 0, (words, answer.out)
                assert answer.result["database"]["problem"] == ""
                assert "mine" in answer.result["database"]["tables"]
                preflight = call("--home", home, "preflight", "--no-snapshot")
                assert preflight.code in (0, 4), preflight.out
                snapshots = ("--snapshots", directory / "snapshots")
                assert call("--home", home, "backup", *snapshots).code == 0
        finally:
            for path in (home, home / "db"):
                path.chmod(0o700)


@pytest.mark.parametrize("options", [[], ["--compact"]])
def test_limit_of_file_sizes_is_a_lack_of_space_of_the_copy(
    tmp_path: Path, options: list[str]
) -> None:
    """A quota is reported by SQLite as an input/output error; the home's database is sound."""
    built = small(tmp_path / "home", rows=200)
    limit = int(built.root.joinpath("db/sagewai.db-wal").stat().st_size * 0.8) // 1024

    done = _shell(built.root, f'ulimit -f {limit}; "$ops" backup {" ".join(options)}')

    assert done.returncode == 13, done.stderr
    assert "copy" in done.stderr
    assert "ulimit -f" in done.stderr
    assert not list(tmp_path.glob("home.snapshots/*"))


def test_functions_and_collations_of_another_program_are_no_damage(home: Path) -> None:
    """Their indexes cannot be checked here; everything else is."""
    _define_foreign(home / "db/sagewai.db")

    assert call("--home", home, "backup").code == 0
    compact = call("--home", home, "backup", "--compact")
    assert compact.code == 0
    assert "copied, not compacted" in compact.err
    assert call("--home", home, "drill").code == 0
    assert call("--home", home, "status").code == 0
    checked = call("--home", home, "db", "check", "--json")
    assert checked.code == 0
    notes = {note["table"] for note in checked.result["notes"] if note["kind"] == "unchecked"}
    assert notes == {"by_function", "by_collation", "by_key"}


def test_damage_next_to_a_foreign_index_is_still_found(home: Path) -> None:
    """Only what needs the other program is left out of the check."""
    database = home / "db/sagewai.db"
    _define_foreign(database)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(query, ("by_collation",)).fetchone()
    with database.open("r+b") as stream:
        stream.seek((page - 1) * page_size + page_size // 2)
        stream.seek((page - 1) * page_size)
        stream.write(b"\x07")  # no type of a page

    assert call("--home", home, "db", "check").code == 4
    assert call("--home", home, "backup").code == 4


def _define_foreign(database: Path) -> None:
    """Create tables whose indexes, keys and checks need what this program does not have."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.create_function("fold", 1, lambda value: value, deterministic=True)
        connection.create_collation(
            "unicase", lambda first, second: (first > second) - (first < second)
        )
        for statement in (
            "CREATE TABLE by_function(a)",
            "CREATE INDEX of_function ON by_function(fold(a)) WHERE fold(a) > 0",
            "CREATE TABLE by_collation(a TEXT COLLATE unicase)",
            "CREATE INDEX of_collation ON by_collation(a)",
            "CREATE TABLE by_key(a TEXT COLLATE unicase PRIMARY KEY) WITHOUT ROWID",
            "CREATE TABLE by_check(a CHECK (fold(a) IS NOT NULL))",
            "CREATE TABLE generated(a, b AS (fold(a)), c AS (fold(a)) STORED)",
        ):
            connection.execute(statement)
        for table in ("by_function", "by_collation", "by_key", "by_check", "generated"):
            connection.executemany(f"INSERT INTO {table} VALUES (?)", [("x",), ("y",)])
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_log_that_root_creates_for_a_user_is_the_users() -> None:
    """After one run as root, the user's own runs can append to it."""
    with reachable_directory() as directory:
        directory.chmod(0o755)
        os.chown(directory, NO_USER, NO_USER)
        log = directory / "log"

        os.close(open_given_file(log, os.O_WRONLY | os.O_APPEND, 0o600))

        assert log.stat().st_uid == NO_USER
        assert log.stat().st_mode & 0o777 == 0o600
