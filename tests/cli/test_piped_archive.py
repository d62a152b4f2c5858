"""`restore -` and `drill -`: an archive that another program writes to standard input."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyrage
import pytest

from program import COMMAND, Answer, call, run, started, taken
from pseudo_terminal import watched
from round_trips import assert_same_home
from small_homes import everything_of, small
from unprivileged import NO_USER, reachable_directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home in a directory of its own."""
    return small(tmp_path / "here/home").root


@pytest.fixture
def archive(home: Path) -> bytes:
    """The bytes of a plain archive of the home; there is no snapshot directory."""
    return _stream(home)


def _stream(home: Path, *words: object) -> bytes:
    command = [*COMMAND, "--home", str(home), "backup", "--output", "-", *map(str, words)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _pipe(content: bytes, *words: object) -> Answer:
    done = subprocess.run(
        [*COMMAND, *map(str, words)], input=content, capture_output=True, timeout=60, check=False
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_backup_is_piped_into_a_restore(home: Path, tmp_path: Path) -> None:
    """No file between the two programs, and none remains."""
    target = tmp_path / "there/copy"
    with (
        started("--home", home, "backup", "--output", "-") as backup,
        started("--home", home, "restore", "-", "--to", target, stdin=backup.stdout) as restore,
    ):
        out, err = restore.communicate(timeout=60)
        backup.wait(60)

    assert (backup.returncode, restore.returncode, out) == (0, 0, b""), err
    assert_same_home(home, target)
    assert os.listdir(tmp_path / "there") == ["copy"]
    assert os.listdir(tmp_path / "here") == ["home"]


def test_a_restore_reports_standard_input(home: Path, archive: bytes, tmp_path: Path) -> None:
    """It is authentic by the key of the home, as a file without a metadata file is."""
    words = ("--to", tmp_path / "copy", "--dry-run", "--json")
    (tmp_path / "home.tar.zst").write_bytes(archive)

    answer = _pipe(archive, "--home", home, "restore", "-", *words)
    by_path = run("--home", home, "restore", tmp_path / "home.tar.zst", *words)

    assert answer.code == 0, answer.out
    assert answer.result["archive"] == "/dev/stdin"
    assert answer.result["authenticity"] == "authentic"
    assert answer.document["warnings"] == by_path.document["warnings"]


def test_replace_only_and_a_dry_run(home: Path, archive: bytes) -> None:
    """The options of any restore; a plan writes nothing."""
    (home / "data/note").write_text("x")
    before = everything_of(home.parent)

    plan = _pipe(archive, "--home", home, "restore", "-", "--replace", "--dry-run", "--json")
    unchanged = everything_of(home.parent)
    part = _pipe(archive, "--home", home, "restore", "-", "--only", "secrets")
    kept = (home / "data/note").exists()
    whole = _pipe(archive, "--home", home, "restore", "-", "--replace")

    assert (plan.code, part.code, whole.code) == (0, 0, 0), plan.out + part.err + whole.err
    assert plan.result["target_state"] == "not empty"
    assert unchanged == before
    assert (kept, (home / "data/note").exists()) == (True, False)
    assert not [name for name in os.listdir(home) if "input" in name or "restore-" in name[:30]]


def test_an_encrypted_archive(home: Path, tmp_path: Path) -> None:
    """It needs its identity, and is stored as it comes: never in plaintext."""
    identity = pyrage.x25519.Identity.generate()
    file = tmp_path / "identity"
    file.write_text(str(identity))
    file.chmod(0o600)
    content = _stream(home, "--recipient", identity.to_public())
    words = ("--home", home, "restore", "-", "--to", tmp_path / "copy")

    without = _pipe(content, *words)
    answer = _pipe(content, *words, "--identity", file)

    assert (without.code, answer.code) == (12, 0), without.err + answer.err
    assert_same_home(home, tmp_path / "copy")


def test_a_drill_records_nothing(home: Path, archive: bytes) -> None:
    """There is no metadata file; everything else is as for a file."""
    before = everything_of(home.parent)

    plan = _pipe(archive, "--home", home, "drill", "-", "--dry-run", "--json")
    answer = _pipe(archive, "--home", home, "drill", "-", "--json")

    assert (plan.code, answer.code) == (0, 0), plan.out + answer.out
    assert not any("record the outcome" in step for step in plan.result["steps"])
    assert (answer.result["outcome"], answer.result["recorded"]) == ("proved", False)
    assert answer.result["archive"] == "/dev/stdin"
    assert everything_of(home.parent) == before
    assert not [name for name in os.listdir("/dev") if "sagewai" in name]


@pytest.mark.parametrize("command", ["restore", "drill"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:0], "standard input: empty"),
        (lambda content: b"Permission denied" + content, "standard input: neither zstd nor age"),
        (lambda content: content[: len(content) // 2], "/dev/stdin: archive: seek table not found"),
        (lambda content: content[:9000] + b"\xff" + content[9001:], "/dev/stdin: "),
    ],
)
def test_a_bad_stream_is_16(
    home: Path, archive: bytes, command: str, spoil: object, message: str
) -> None:
    """The target is unchanged, and nothing is left of what was stored."""
    assert callable(spoil)
    before = everything_of(home.parent)

    answer = _pipe(
        spoil(archive), "--home", home, command, "-", *["--replace"] * (command == "restore")
    )

    assert answer.code == 16, answer.err
    assert message in answer.err
    assert ("pipefail" in answer.err) == message.startswith("/dev/stdin")
    assert everything_of(home.parent) == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("restore", "-"), 15, "not empty"),
        (("restore", "-", "--replace", "--passphrase-file", "-"), 2, "--passphrase-file: standard"),
        (("restore", "-", "--replace", "--identity", "/dev/stdin"), 2, "--identity: standard"),
        (("drill", "-", "--install-key", "/dev/fd/0"), 2, "--install-key: standard input is the"),
    ],
)
def test_a_refusal_does_not_wait_for_the_stream(
    home: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    """The writer has not written anything, and may need an hour for it."""
    with started("--home", home, *words, stdin=subprocess.PIPE) as process:
        code_of_process = process.wait(60)
        assert process.stderr
        err = process.stderr.read().decode()

    assert (code_of_process, message in err) == (code, True), err


@pytest.mark.parametrize("command", ["restore", "drill"])
def test_a_terminal_is_no_archive(home: Path, command: str) -> None:
    """It would wait until one is typed."""
    code, shown = watched([*COMMAND, "--home", str(home), command, "-"], os.environ)

    assert (code, "standard input is a terminal" in shown) == (2, True), shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_remains_of_an_interrupted_one(home: Path, archive: bytes, number: int) -> None:
    """While it still waits for the rest of the stream; SIGKILL too leaves no file."""
    before = everything_of(home.parent)
    with started("--home", home, "restore", "-", "--replace", stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(archive[:-1000])
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not _has_unnamed_file(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _has_unnamed_file(process.pid)
        process.send_signal(number)
        process.wait(60)

    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert everything_of(home.parent) == before


def _has_unnamed_file(pid: int) -> bool:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in between
            if "(deleted)" in os.readlink(entry):
                return True
    return False


def test_a_limit_of_the_size_of_files_is_13(home: Path, archive: bytes) -> None:
    """As a full disk; nothing is left, and the target is unchanged."""
    before = everything_of(home.parent)
    words = [*COMMAND, "--home", str(home), "restore", "-", "--replace", "--json"]
    limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "-", *words]

    done = subprocess.run(limited, input=archive, capture_output=True, check=False)

    assert done.returncode == 13, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "no-space"
    assert everything_of(home.parent) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="root works on another user's home")
def test_root_restores_it_to_another_users_home() -> None:
    """The child with that user's rights reads the pipe; the result is the user's."""
    with reachable_directory() as place:
        place.chmod(0o755)
        (place / "user").mkdir()
        os.chown(place / "user", NO_USER, NO_USER)
        home = place / "user/home"
        assert run("--home", home, "init").code == 0
        content = _stream(home)

        answer = _pipe(content, "--home", home, "restore", "-", "--replace")
        proved = _pipe(content, "--home", home, "drill", "-")

        assert (answer.code, proved.code) == (0, 0), answer.err + proved.err
        assert {path.lstat().st_uid for path in home.rglob("*")} == {NO_USER}


def test_a_name_that_is_a_minus_is_no_snapshot_of_other_commands(home: Path) -> None:
    """Only these two read standard input."""
    assert taken(call("--home", home, "backup", "--json"))

    assert call("--home", home, "snapshots", "verify", "-").code == 10
