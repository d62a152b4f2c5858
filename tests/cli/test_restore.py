"""What people and scripts see of `restore`: exit codes, JSON, words, signals."""

import os
import shutil
import signal
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from archives import DIRECTORY, forge
from archives import small as small_archive
from other_process import running
from program import Answer, call, run, taken
from round_trips import assert_same_home, leftovers_beside
from sagewai_ops.archive.manifest import Header, encode_header
from sagewai_ops.fs import beneath, locks
from sagewai_ops.restore import extractor as extracting
from sagewai_ops.restore import plan
from sagewai_ops.restore import restore as restoring
from sagewai_ops.swap import journal as swap_journal
from sagewai_ops.swap import mounts, staging
from small_homes import SCRATCH, everything_of, small
from step_counter import counting, killed, killed_at


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Build a home and take a snapshot of it."""
    built = small(tmp_path / "home")
    taken(call("--home", built.root, "backup", "--json"))
    return built.root


def test_home_comes_back_in_place(home: Path) -> None:
    """Silent without a terminal, and the home is what it was."""
    (home / "extra").write_text("x")

    answer = call("--home", home, "restore", "latest", "--replace")

    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert not (home / "extra").exists()


def test_home_comes_back_elsewhere(home: Path, tmp_path: Path) -> None:
    """`--to` leaves the home alone and finds the key in it."""
    answer = call("--home", home, "restore", "latest", "--to", tmp_path / "a/b", "--json")

    assert answer.code == 0
    assert_same_home(home, tmp_path / "a/b")
    assert answer.result["target"] == str(tmp_path / "a/b")
    assert answer.result["key_source"] == "secrets/master.key"
    assert answer.result["key_installed"] is True
    assert answer.result["before"] is None


def test_verbose_report_shows_the_restored_content(home: Path) -> None:
    """`-v` shows files, rows, the key, valid access, and the command to undo it."""
    answer = call("--home", home, "restore", "latest", "--replace", "-v")

    assert answer.code == 0
    for text in ("all verified", "rows, as in", "secrets", "sessions", "restore --undo"):
        assert text in answer.out


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(home: Path, tmp_path: Path, umask: int) -> None:
    """Run as a program, with the loosest and the tightest umask."""
    answer = run("--home", home, "restore", "latest", "--to", tmp_path / "there", umask=umask)

    assert answer.code == 0, answer.err
    assert_same_home(home, tmp_path / "there")
    mode = (tmp_path / "there").stat().st_mode
    assert stat.S_IMODE(mode) == stat.S_IMODE(home.stat().st_mode)


def _error(answer: Answer, code: int, name: str) -> str:
    assert answer.code == code, answer.out
    error = answer.document["error"]
    assert error["code"] == name
    assert isinstance(error["message"], str)
    return error["message"]


def test_directory_that_is_not_empty_is_15(home: Path) -> None:
    """Two lines for people: what is wrong, and what to paste."""
    before = everything_of(home)

    answer = call("--home", home, "restore", "latest")

    assert answer.code == 15
    lines = answer.err.splitlines()
    assert lines[0] == f"sagewai-ops: error: {home}: not empty"
    assert "--replace" in lines[1]
    assert everything_of(home) == before


def test_a_directory_of_snapshots_is_no_target(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an old SAGEWAI_OPS_TO, which named the directory for `backup`."""
    directory = home.with_name("home.snapshots")
    before = everything_of(directory)
    monkeypatch.setenv("SAGEWAI_OPS_RESTORE_TO", str(directory))

    answer = call("--home", home, "restore", "latest", "--replace")

    assert answer.code == 15
    assert answer.err.startswith(
        f"sagewai-ops: error: {directory}: a snapshot directory, not a home\n"
    )
    assert everything_of(directory) == before


def test_home_in_use_is_15_and_names_the_process(home: Path) -> None:
    """An idle connection in another process is enough."""
    hold = (
        "import sqlite3\nc = sqlite3.connect(sys.argv[1])\n"
        "c.execute('SELECT count(*) FROM sqlite_master').fetchall()\npause()\npause()\n"
    )
    with running(hold, str(home / "db/sagewai.db")) as other:
        answer = call("--home", home, "restore", "latest", "--replace", "--json")

    assert f"pid {other.pid} " in _error(answer, 15, "target-busy")


def test_file_above_the_target_is_2(home: Path, tmp_path: Path) -> None:
    """It is named, and not a directory of ours that could not be made below it."""
    (tmp_path / "file").touch()

    answer = call("--home", home, "restore", "latest", "--to", tmp_path / "file/copy", "--json")

    _error(answer, 2, "usage")
    assert answer.document["error"]["message"] == f"{tmp_path}/file: not a directory"


def test_no_such_snapshot_is_10(home: Path) -> None:
    """An id that no snapshot has, and a path that is not there."""
    for name in ("19990101", "/nowhere/x.tar.zst"):
        _error(call("--home", home, "restore", name, "--json"), 10, "not-found")


def test_no_such_part_is_10(home: Path) -> None:
    """A part that the snapshot does not hold."""
    answer = call("--home", home, "restore", "latest", "--only", "config,nothing", "--json")

    assert "nothing" in _error(answer, 10, "not-found")


def test_locked_home_is_11(home: Path) -> None:
    """Another run holds it; this one does not wait."""
    with locks.exclusive(home):
        _error(call("--home", home, "restore", "latest", "--replace", "--json"), 11, "locked")


def test_missing_key_is_12_and_without_key_is_asked_for(home: Path, tmp_path: Path) -> None:
    """The hint reports both ways out; the second is a warning."""
    (home / "secrets/master.key").unlink()
    words = ("--home", home, "restore", "latest", "--to", tmp_path / "there", "--json")

    refused = call(*words)
    allowed = call(*words, "--without-key")

    _error(refused, 12, "key-missing")
    assert any("--without-key" in line for line in refused.document["error"]["hint"])
    assert allowed.code == 0
    assert any("before Sagewai starts" in warning for warning in allowed.document["warnings"])


def test_missing_key_file_is_10(home: Path, tmp_path: Path) -> None:
    """A key file that is not there is reported as such."""
    answer = call(
        "--home", home, "restore", "latest", "--to", tmp_path / "there",
        "--key-file", tmp_path / "none", "--json",
    )  # fmt: skip

    _error(answer, 10, "not-found")


def test_damaged_archive_is_16(tmp_path: Path) -> None:
    """The message names the archive; nothing comes to be."""
    content = small_archive(tmp_path / "a.tar.zst").read_bytes()
    damaged = tmp_path / "b.tar.zst"
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    damaged.write_bytes(content[:middle] + flipped + content[middle + 1 :])

    answer = call("--home", tmp_path / "home", "restore", damaged, "--json")

    assert "b.tar.zst" in _error(answer, 16, "damaged")
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "b.tar.zst"]


def test_newer_format_is_18(tmp_path: Path) -> None:
    """An archive of a later program is refused with the way to one."""
    archive = forge(
        tmp_path / "a.tar.zst",
        [(DIRECTORY, b"")],
        header=encode_header(Header("t", format_version=9)),
    )

    _error(call("--home", tmp_path / "home", "restore", archive, "--json"), 18, "schema-ahead")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("latest", "--undo"),
        ("--undo", "--recover"),
        ("latest", "--only", "../x"),
        ("latest", "--only", "", "--replace"),
        ("latest", "--only", "config,,db"),
    ],
    ids=" ".join,
)
def test_contradictions_are_2(home: Path, words: tuple[str, ...]) -> None:
    """What cannot be meant is not guessed."""
    before = everything_of(home)

    answer = call("--home", home, "restore", *words, "--json")

    _error(answer, 2, "usage")
    assert everything_of(home) == before


def test_dry_run_prints_the_plan_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    """The plan is the one that the run reports."""
    before = everything_of(tmp_path)

    words = (
        "--home",
        home,
        "restore",
        "latest",
        "--replace",
        "--revoke-sessions",
        "--rebind-fleet",
    )

    planned = call(*words, "--dry-run", "--json")
    assert everything_of(tmp_path) == before
    shown = call(*words, "--dry-run")
    done = call(*words, "--json")

    for text in ("would be restored to", "revokes   all sessions", f"rows to {home}"):
        assert text in shown.out
    assert planned.result["revokes_sessions"]
    assert planned.result["rebinds_fleet"]
    changed = {"target_state", "warnings"}
    for field in planned.result.keys() - changed:
        assert planned.result[field] == done.result[field], field


def test_a_variable_that_would_cost_the_restored_key_is_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sagewai refuses it, does not fall back to the file, and writes a new key there."""
    monkeypatch.setenv("SAGEWAI_MASTER_KEY", "x" * 43)

    answer = call("--home", home, "restore", "latest", "--replace")

    assert answer.code == 0
    assert f"Sagewai would replace {home / 'secrets/master.key'} with a new key" in answer.err


def test_undo_twice_is_the_identity(home: Path) -> None:
    """Back to before the restore, and forth again."""
    (home / "extra").write_text("x")
    before = everything_of(home)
    call("--home", home, "restore", "latest", "--replace")
    after = everything_of(home)

    tried = call("--home", home, "restore", "--undo", "--dry-run")
    assert "would be restored from" in tried.out
    assert everything_of(home) == after
    for expected in (before, after):
        answer = call("--home", home, "restore", "--undo", "--json")
        assert answer.code == 0
        assert everything_of(home) == expected
    assert leftovers_beside(home) == []


def test_undo_without_a_restore_is_10(home: Path) -> None:
    """There is nothing to go back to."""
    _error(call("--home", home, "restore", "--undo", "--json"), 10, "not-found")


def test_recover_without_need_says_so(home: Path) -> None:
    """It can be run at any time."""
    answer = call("--home", home, "restore", "--recover", "--json")

    assert (answer.code, answer.result["recovery"]) == (0, "nothing to do")


def test_interrupted_restore_stops_every_other_command_until_recovered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backup, init, restore and undo refuse with 11 and name the way on."""
    (home / "extra").write_text("x")
    monkeypatch.setattr(beneath, "exchange", lambda _first, _second: False)
    rename = beneath.rename

    def last(source: Any, target: Any, **directories: int) -> None:
        rename(source, target, **directories)
        if "before-restore" in os.fspath(target):
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(beneath, "rename", last)
        assert killed(lambda: call("--home", home, "restore", "latest", "--replace"))

    for words in (("init",), ("restore", "latest"), ("restore", "--undo")):
        answer = call("--home", home, *words, "--json")
        _error(answer, 11, "locked")
        assert f"sagewai-ops --home {home} recover" in answer.document["error"]["hint"]
    assert call("--home", home, "restore", "--recover", "--json").result["recovery"] == "finished"

    assert not (home / "extra").exists()
    assert sorted(name for name in os.listdir(tmp_path) if "before" not in name) == [
        "home",
        "home.snapshots",
    ]


def _signalled(number: int) -> Callable[..., Any]:
    def step(*_arguments: Any, **_options: Any) -> Any:
        os.kill(os.getpid(), number)

    return step


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["extracting", "extracted", "moving", "moved"])
def test_signal_in_the_middle_leaves_the_target_and_nothing_else(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, moment: str
) -> None:
    """Whatever was done is undone; the exit code is the signal's."""
    before, names = everything_of(home), os.listdir(tmp_path)
    if moment == "extracting":
        monkeypatch.setattr(extracting, "file_mode", _signalled(number))
    elif moment == "extracted":
        monkeypatch.setattr(restoring, "count_access", _signalled(number))
    elif moment == "moving":
        exchange = beneath.exchange

        def exchange_and_stop(first: Path, second: Path) -> bool:
            answer = exchange(first, second)
            monkeypatch.setattr(beneath, "exchange", exchange)
            os.kill(os.getpid(), number)
            return answer

        monkeypatch.setattr(beneath, "exchange", exchange_and_stop)
    else:
        complete = swap_journal.complete

        def move_and_stop(journal: swap_journal.Journal) -> None:
            complete(journal)
            os.kill(os.getpid(), number)

        monkeypatch.setattr(swap_journal, "complete", move_and_stop)

    answer = call("--home", home, "restore", "latest", "--replace", "--json")

    _error(answer, code, "interrupted")
    assert everything_of(home) == before
    assert sorted(os.listdir(tmp_path)) == sorted(names)


@pytest.mark.parametrize(
    "words", [("latest", "--replace"), ("latest", "--only", "config"), ("--undo",)]
)
def test_signal_after_the_exchange_is_too_late(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The home is the other one by then, and the answer reports it."""
    (home / "config/extra").write_text("x")
    if words == ("--undo",):
        call("--home", home, "restore", "latest", "--replace")
    conclude = staging.conclude

    def stop_and_conclude(journal: swap_journal.Journal) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return conclude(journal)

    monkeypatch.setattr(staging, "conclude", stop_and_conclude)

    answer = call("--home", home, "restore", *words, "--json")

    assert answer.code == 0
    assert answer.result["before"]
    assert (home / "config/extra").exists() == (words == ("--undo",))


def test_recovery_is_not_left_between_by_a_signal(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes moments, and what it repairs is worse than waiting for it."""
    (home / "extra").write_text("x")
    monkeypatch.setattr(beneath, "exchange", lambda _first, _second: False)
    rename = beneath.rename

    def stopping(number: int) -> Callable[..., None]:
        def step(source: Any, target: Any, **directories: int) -> None:
            rename(source, target, **directories)
            if "before-restore" in os.fspath(target) or os.fspath(target) == home.name:
                os.kill(os.getpid(), number)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(beneath, "rename", stopping(signal.SIGKILL))
        assert killed(lambda: call("--home", home, "restore", "latest", "--replace"))
    with monkeypatch.context() as patch:
        patch.setattr(beneath, "rename", stopping(signal.SIGTERM))
        answer = call("--home", home, "restore", "--recover", "--json")

    assert answer.code == 0
    assert answer.result["recovery"] == "finished"
    assert not (home / "extra").exists()


def test_only_takes_several_parts_and_undo_brings_them_back(home: Path) -> None:
    """Parts are separated by commas or named again."""
    with closing(sqlite3.connect(home / "db/sagewai.db")) as connection:
        connection.execute("DELETE FROM prompt_logs")
        connection.commit()
    (home / "config/admin-state.json").write_text("{}")
    (home / "note").write_text("mine")

    answer = call("--home", home, "restore", "latest", "--only", "config,db", "--json")
    undone = call("--home", home, "restore", "--undo")

    assert answer.code == 0
    assert answer.result["exchanged"] == ["config", "db"]
    assert undone.code == 0
    assert (home / "config/admin-state.json").read_text() == "{}"
    assert (home / "note").read_text() == "mine"


def test_latest_of_another_path_is_warned_of(home: Path, tmp_path: Path) -> None:
    """A copy of a home has its administrator, and may share its directory: it is the same home."""
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    directory = f"{home}.snapshots"
    taken(call("--home", copy, "backup", "--to", directory, "--json"))

    words = ("--home", home, "restore", "latest", "--replace", "--snapshots", directory)
    planned = call(*words, "--dry-run", "--json")
    done = call(*words)
    own = call("--home", copy, "restore", "latest", "--replace", "--snapshots", directory)
    beside = call(*words[:4], "--snapshots", directory, "--to", tmp_path / "next")

    warning = f"created from {copy}, not from {home}"
    assert warning in planned.document["warnings"][0]
    assert planned.result["warnings"] == planned.document["warnings"]
    assert warning in done.err
    assert warning not in own.err
    assert warning not in beside.err  # nothing is at risk there


def _emptied(home: Path) -> Path:
    """Return the key of a home whose volume is empty but for `lost+found`."""
    key = home.with_name("key")
    key.write_bytes((home / "secrets/master.key").read_bytes())
    key.chmod(0o600)
    shutil.rmtree(home)
    home.mkdir(mode=0o700)
    (home / "lost+found").mkdir(mode=0o700)
    return key


def test_an_init_container_restores_to_an_empty_volume_only(home: Path) -> None:
    """The first start restores, the next one reports the home and changes nothing."""
    before = everything_of(home)
    start = ("--home", home, "restore", "latest", "--if-empty", "--install-key", _emptied(home))

    first = call(*start)
    (home / "lost+found").rmdir()
    restored = everything_of(home)
    second = call(*start)

    assert (first.code, first.err) == (0, "")
    assert "restored to" in first.out
    assert before.keys() - set(SCRATCH) <= restored.keys()
    assert (second.code, second.err) == (0, "")
    assert second.out == f"home {home}: exists, unchanged; nothing is restored\n"
    assert everything_of(home) == restored


def test_a_home_is_reported_before_the_snapshots_are_read(home: Path, tmp_path: Path) -> None:
    """A start does not depend on a store that may not be reachable."""
    answer = call(
        *("--home", home, "restore", "latest", "--if-empty", "--json"),
        *("--snapshots", tmp_path / "none"),
    )

    assert (answer.code, answer.result) == (0, {"present": str(home)})


@pytest.mark.parametrize("is_mounted", [False, True])
def test_a_volume_of_empty_directories_is_restored(
    home: Path, monkeypatch: pytest.MonkeyPatch, *, is_mounted: bool
) -> None:
    """An image created them: nothing is lost. They are kept, and the next start finds the home."""
    start = ("--home", home, "restore", "latest", "--if-empty", "--install-key", _emptied(home))
    for name in ("config", "db", "data/files", "secrets"):
        (home / name).mkdir(parents=True, mode=0o700)
    if is_mounted:
        monkeypatch.setattr(mounts, "is_mount", lambda path: path.name == "home")

    planned = call(*start, "--dry-run")
    first = call(*start, "--json")
    second = call(*start)

    assert (planned.code, planned.err) == (0, "")
    assert (first.code, first.err) == (0, "")
    assert (Path(first.result["before"]) / "data/files").is_dir()
    assert (home / "db/sagewai.db").is_file()
    assert second.out == f"home {home}: exists, unchanged; nothing is restored\n"


@pytest.mark.parametrize("name", ["data/file", "data/link"])
def test_one_entry_below_the_directories_is_a_home(home: Path, name: str) -> None:
    """A file without a byte, and a link to an empty directory: neither is replaced."""
    _emptied(home)
    for part in ("config", "db", "data", "secrets"):
        (home / part).mkdir()
    (home / name).symlink_to("../db") if name.endswith("link") else (home / name).touch()
    before = everything_of(home)

    answer = call("--home", home, "restore", "latest", "--if-empty")

    assert (answer.code, answer.err) == (0, "")
    assert "nothing is restored" in answer.out
    assert everything_of(home) == before


@pytest.mark.parametrize("is_mounted", [False, True])
def test_what_appears_during_a_restore_if_empty_is_not_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch, *, is_mounted: bool
) -> None:
    """Sagewai starts, and creates its key, between the first look and the exchange."""
    start = ("--home", home, "restore", "latest", "--if-empty", "--install-key", _emptied(home))
    (home / "secrets").mkdir(mode=0o700)
    if is_mounted:
        monkeypatch.setattr(mounts, "is_mount", lambda path: path.name == "home")
    check = plan.require_target_unused

    def create(*arguments: Any) -> None:
        check(*arguments)
        (home / "secrets/master.key").write_bytes(b"new")

    monkeypatch.setattr(restoring, "require_target_unused", create)

    answer = call(*start)

    assert answer.code == 15
    assert "not empty any more" in answer.err
    assert sorted(path.name for path in home.iterdir()) == ["lost+found", "secrets"]
    assert (home / "secrets/master.key").read_bytes() == b"new"


def test_an_empty_volume_without_snapshots_is_10(tmp_path: Path) -> None:
    """A new installation begins with `init`: an unreachable place must not become an empty home."""
    volume = tmp_path / "home"
    volume.mkdir(mode=0o700)

    answer = call("--home", volume, "restore", "latest", "--if-empty")

    assert answer.code == 10
    assert list(volume.iterdir()) == []


def test_other_files_are_neither_a_home_nor_empty(home: Path) -> None:
    """The wrong volume is mounted: 15, and nothing is written to it."""
    _emptied(home)
    (home / "photo.jpg").write_bytes(b"x")

    answer = call("--home", home, "restore", "latest", "--if-empty")

    assert (answer.code, answer.out) == (15, "")
    assert sorted(path.name for path in home.iterdir()) == ["lost+found", "photo.jpg"]


@pytest.mark.parametrize("option", ["--replace", "--only=db", "--undo"])
def test_if_empty_contradicts_what_overwrites(home: Path, option: str) -> None:
    """Nothing is run."""
    before = everything_of(home)
    snapshot = [] if option == "--undo" else ["latest"]

    assert call("--home", home, "restore", *snapshot, "--if-empty", option).code == 2
    assert everything_of(home) == before


def _own(home: Path) -> list[str]:
    """List the paths of a home without what the program keeps, or the next run sweeps."""
    return sorted(path for path in everything_of(home) if not path.startswith(".sagewai-ops-"))


def test_an_init_container_recovers_what_its_kill_interrupted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at steps spread over a restore to a mount point: the next start has a whole home."""
    key = _emptied(home)
    (home / "lost+found").rmdir()
    monkeypatch.setattr(mounts, "is_mount", lambda path: path.name == "home")
    start = ("--home", home, "restore", "latest", "--if-empty", "--install-key", key)
    with counting() as steps:
        assert call(*start).code == 0
    whole = _own(home)

    for number in range(steps.count // 8, steps.count, steps.count // 8):
        shutil.rmtree(home)
        home.mkdir(mode=0o700)
        assert killed_at(number, lambda: call(*start))

        answer = call(*start)

        assert answer.code == 0, answer.err
        assert _own(home) == whole, number
