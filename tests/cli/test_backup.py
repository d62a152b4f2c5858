"""`backup` as users and scripts run it: streams, exit codes, signals, locks, encryption."""

import base64
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from home_builder import BuiltHome
from program import COMMAND, PATIENCE_SECONDS, Answer, call, run, started, taken
from pseudo_terminal import watched
from sagewai_ops.archive import manifest
from sagewai_ops.backup.report import BackupReport
from sagewai_ops.backup.results import BackupResult
from sagewai_ops.fs import beneath, locks
from small_homes import everything_of, small

ENVELOPE = {
    "schema",
    "command",
    "status",
    "exit_code",
    "home",
    "started_at",
    "seconds",
    "result",
    "warnings",
    "error",
}
SEEK_TABLE_END = struct.pack("<I", 0x8F92EAB1)  # the last bytes of a whole clear archive


@pytest.fixture
def home(tmp_path: Path) -> BuiltHome:
    """A home of 1.4 MB."""
    return small(tmp_path / "home")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of 44 MB, whose backup can be stopped while it runs; only read."""
    directory = tmp_path_factory.mktemp("large")
    return small(directory / "home", database_bytes=12_000_000, artifact_bytes=32_000_000,
                 artifacts=True).root  # fmt: skip


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def _error_lines(answer: Answer) -> list[str]:
    return [line.split(": ")[1] for line in answer.err.splitlines()]


def test_success_without_a_terminal_is_silent(home: BuiltHome) -> None:
    """Cron sends mail for any output: there is no output."""
    answer = run("--home", home.root, "backup")

    assert answer == Answer(0, "", "")
    assert len(_names(home.root.with_name("home.snapshots"))) == 2


def test_verbose_reports_the_snapshot_and_the_key(home: BuiltHome) -> None:
    """The summary names the archive and the key, which is not in it."""
    answer = call("--home", home.root, "backup", "-v")

    assert answer.code == 0
    assert "created and verified" in answer.out
    assert "NOT in the archive" in answer.out
    assert answer.err == ""


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_hides_warnings_but_not_errors(home: BuiltHome, flag: str) -> None:
    """The exit code remains, and errors are still printed."""
    os.mkfifo(home.root / "data/pipe")

    incomplete = call("--home", home.root, "backup", flag)
    failed = call("--home", home.root / "missing", "backup", flag)

    assert incomplete == Answer(3, "", "")
    assert failed.code == 10
    assert _error_lines(failed) == ["error", "hint"]


@pytest.mark.parametrize("place", ["before", "after", "variable", "sagewai"])
def test_the_home_is_named_before_or_after_or_by_a_variable(
    home: BuiltHome, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names the same home."""
    words: list[object] = ["backup", "--json"]
    if place == "before":
        words = ["--home", home.root, *words]
    elif place == "after":
        words = [*words, "--home", home.root]
    else:
        name = "SAGEWAI_OPS_HOME" if place == "variable" else "SAGEWAI_HOME"
        monkeypatch.setenv(name, str(home.root))

    assert call(*words).document["home"] == str(home.root)


def test_every_option_has_a_variable(
    home: BuiltHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory, a pattern, the output form and encryption, all from the environment."""
    recipients = tmp_path / "recipients"
    recipients.write_text(f"# the team\n{_identity(tmp_path)[0]}\n")
    for name, value in {
        "HOME": home.root,
        "SNAPSHOTS": tmp_path / "elsewhere",
        "BACKUP_EXCLUDE": "data/* fleet*",
        "BACKUP_RECIPIENTS_FILE": recipients,
        "BACKUP_KEY": "sealed",
        "JSON": "1",
    }.items():
        monkeypatch.setenv(f"SAGEWAI_OPS_{name}", str(value))

    answer = call("backup")

    assert taken(answer).parent == tmp_path / "elsewhere"
    assert answer.result["encrypted"] is True
    assert answer.result["key_custody"] == "sealed"
    assert {"path": "fleet", "reason": "excluded", "detail": ""} in answer.result["left_out"]


def test_success_prints_a_single_json_object(home: BuiltHome) -> None:
    """Every field of the envelope is there, and nothing on stderr."""
    answer = run("backup", "--json", "--home", home.root)

    document = answer.document
    assert set(document) == ENVELOPE
    assert (document["schema"], document["command"]) == ("sagewai-ops/1", "backup")
    assert (document["status"], document["exit_code"], document["error"]) == ("ok", 0, None)
    assert document["warnings"] == []
    assert answer.err == ""
    assert taken(answer).stat().st_size == document["result"]["archive_bytes"]
    assert document["result"]["files"] > 5


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (["--home", "/nowhere/at/all", "backup"], 10, "not-found"),
        (["backup", "--no-such-option"], 2, "usage"),
        (["backup", "--level", "high"], 2, "usage"),
        (["backup", "--wait", "-1"], 2, "usage"),
        (["backup", "--key", "sealed"], 2, "usage"),
        (["backup", "--key", "clear"], 2, "usage"),
        (["backup", "--recipient", "age1nonsense"], 2, "usage"),
        (["backup", "--recipients-file", "/nowhere"], 10, "not-found"),
        (["backup", "--passphrase-file", "/nowhere"], 10, "not-found"),
        (["backup", "--output", "file"], 2, "usage"),
        (["backup", "--output", "-"], 2, "usage"),
        (["no-such-command"], 2, "usage"),
        ([], 2, "usage"),
    ],
)
def test_failure_prints_a_single_json_object(
    home: BuiltHome, words: list[str], code: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same envelope, with the error in it; the exit code is the process's."""
    monkeypatch.setenv("SAGEWAI_HOME", str(home.root))

    answer = call(*words, "--json")

    document = answer.document
    assert set(document) == ENVELOPE
    assert (answer.code, document["exit_code"]) == (code, code)
    assert document["status"] == "error"
    assert document["result"] is None
    assert document["error"]["code"] == name
    assert document["command"] == ("backup" if "backup" in words else "")
    assert document["home"] == ("/nowhere/at/all" if "--home" in words else str(home.root))
    assert answer.err == ""
    assert _names(home.root.with_name("home.snapshots")) == []


@pytest.mark.parametrize(
    "words",
    [
        ["backup", "--no-such-option"],
        ["backup", "--level", "99"],
        ["backup", "--key", "sealed"],
        ["backup", "surplus"],
        ["no-such-command"],
    ],
)
def test_usage_errors_are_two_lines_and_exit_2(home: BuiltHome, words: list[str]) -> None:
    """An error and a hint; nothing on stdout."""
    answer = run("--home", home.root, *words)

    assert answer.code == 2
    assert answer.out == ""
    assert _error_lines(answer) == ["error", "hint"]


@pytest.mark.parametrize("option", ["--home", "--to", "--snapshots", "--recipients-file"])
def test_an_empty_path_is_not_the_working_directory(home: BuiltHome, option: str) -> None:
    """`--to "$UNSET"` in a script is an error."""
    answer = call("--home", home.root, "backup", f"{option}=")

    assert answer.code == 2
    assert f"{option}" in answer.err
    assert "is empty" in answer.err


def test_closed_streams_do_not_matter(home: BuiltHome) -> None:
    """Some schedulers close them; the snapshot is still created."""
    words = [*COMMAND, "--home", str(home.root), "backup", "-v"]

    done = subprocess.run(["/bin/sh", "-c", '"$@" >&- 2>&- <&-', "sh", *words], check=False)

    assert done.returncode == 0
    assert len(_names(home.root.with_name("home.snapshots"))) == 2


def test_name_outside_the_locale_is_escaped(home: BuiltHome) -> None:
    """Under cron the locale is often plain ASCII."""
    (home.root / "config/löschen").symlink_to("/etc/hostname")
    environment = {"PYTHONIOENCODING": "ascii"}

    answer = run("--home", home.root, "backup", environment=environment)
    shown = run("--home", home.root, "snapshots", "show", "latest", environment=environment)

    assert (answer.code, shown.code) == (3, 0)
    assert "config/l\\xf6schen" in answer.err
    assert "config/l\\xf6schen" in shown.out


def test_losses_are_named_and_exit_3_unless_excluded(home: BuiltHome) -> None:
    """A pipe and a link out: one line each; excluded, they are no loss."""
    os.mkfifo(home.root / "data/pi\npe")
    (home.root / "config/out").symlink_to("/etc/hostname")

    answer = run("--home", home.root, "backup")
    excluded = run("--home", home.root, "backup", "--exclude", "data/pi*", "--exclude", "*/out")

    assert answer.code == 3
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if ": omitted, " in line]
    assert len(lines) == 2
    assert any("config/out" in line and "/etc/hostname" in line for line in lines)
    assert any("data/pi\\npe" in line and "FIFO" in line for line in lines)
    assert excluded == Answer(0, "", "")


def test_database_findings_exit_4_after_the_snapshot(tmp_path: Path) -> None:
    """Rows with a broken reference are reported, and backed up."""
    built = small(tmp_path / "home", orphans=2)

    answer = call("--home", built.root, "backup", "--json")

    assert answer.code == 4
    assert answer.document["status"] == "findings"
    assert "2 rows with a broken reference" in answer.document["warnings"][0]
    assert taken(answer).exists()


def test_unopened_secret_exits_3_by_name(tmp_path: Path) -> None:
    """Each value of a missing key is reported with its place."""
    built = small(tmp_path / "home", keys=2)

    answer = call("--home", built.root, "backup")

    assert answer.code == 3
    assert "connections.json" in answer.err
    for value in (*built.sealed, *built.foreign):
        assert value.token not in answer.err
        assert value.plaintext not in answer.err


def test_invalid_database_exits_16_with_a_hint(tmp_path: Path) -> None:
    """Two lines, and the directory stays empty."""
    built = small(tmp_path / "home", journal="none")
    built.database.write_bytes(b"this is no database" * 1000)

    answer = run("--home", built.root, "backup")

    assert answer.code == 16
    assert "sagewai.db" in answer.err
    assert _names(tmp_path / "home.snapshots") == []


def test_key_is_in_no_output_of_a_plain_backup(tmp_path: Path) -> None:
    """Not in the archive, the card, the output, verbose or JSON, also under another file name."""
    built = small(tmp_path / "home")
    key = built.master_keys[0]
    for name in ("secrets/master.key.old", "data/copy", "key.txt"):
        (built.root / name).write_bytes(key + b"\n")
    environment = {"SAGEWAI_MASTER_KEY": key.decode()}

    answers = [
        run("--home", built.root, "backup", *words, environment=environment)
        for words in (["--json"], ["-v"], ["--key", "sealed"], ["--output", "nonsense"])
    ]

    assert [answer.code for answer in answers] == [0, 0, 2, 2]
    output = "".join(answer.out + answer.err for answer in answers).encode()
    directory = tmp_path / "home.snapshots"
    kept = b"".join(path.read_bytes() for path in directory.glob("*.json"))
    tar = subprocess.run(["zstd", "-dc", taken(answers[0])], capture_output=True, check=True).stdout
    for secret in (key, base64.urlsafe_b64decode(key), base64.b64encode(key)):
        assert secret not in output
        assert secret not in kept
        assert secret not in tar
    assert answers[0].result["key_fingerprint"].encode() in kept


def _identity(directory: Path) -> tuple[str, Path]:
    """Create an age identity file; return its recipient and its path."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    path = directory / "identity.txt"
    path.write_text(f"# a test's\n{identity}\n")
    return str(identity.to_public()), path


def _opened(commands: Sequence[Sequence[object]], source: Path) -> list[str]:
    """Run a pipe of programs on a file and list what tar finds at its end."""
    data = source.read_bytes()
    for command in commands:
        data = subprocess.run(
            [str(word) for word in command], input=data, capture_output=True, check=True
        ).stdout
    return data.decode("utf-8", "replace").splitlines()


def test_an_encrypted_snapshot_opens_with_age_zstd_and_tar(tmp_path: Path) -> None:
    """The documented commands do not need this program."""
    if not all(map(shutil.which, ("age", "zstd", "tar"))):
        pytest.skip("age, zstd or tar is not installed")
    built = small(tmp_path / "home")
    recipient, identity = _identity(tmp_path)
    answer = call("--home", built.root, "backup", "--json", "--recipient", recipient,
                  "--key", "sealed")  # fmt: skip

    listed = _opened([["age", "-d", "-i", identity], ["zstd", "-dc"], ["tar", "-t"]], taken(answer))

    assert {"snapshot.json", "db/sagewai.db", "secrets/master.key", "manifest.json"} <= {*listed}
    assert taken(answer).read_bytes().startswith(b"age-encryption.org/v1\n")
    assert built.master_keys[0] not in taken(answer).read_bytes()


def test_an_ssh_recipient_opens_it_with_its_private_key(tmp_path: Path) -> None:
    """An existing ssh key suffices."""
    if not all(map(shutil.which, ("ssh-keygen", "age", "zstd", "tar"))):
        pytest.skip("ssh-keygen, age, zstd or tar is not installed")
    built = small(tmp_path / "home")
    private = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", private], check=True)
    public = private.with_suffix(".pub").read_text().strip()

    answer = call("--home", built.root, "backup", "--json", "--recipient", public)

    commands: list[list[object]] = [["age", "-d", "-i", private], ["zstd", "-dc"], ["tar", "-t"]]
    assert "db/sagewai.db" in _opened(commands, taken(answer))
    verified = call("--home", built.root, "snapshots", "verify", "latest", "--identity", private)
    assert verified.code == 0


def test_a_passphrase_comes_from_a_file_or_standard_input(tmp_path: Path) -> None:
    """Its first line counts; it is never an argument."""
    built = small(tmp_path / "home")
    file = tmp_path / "passphrase"
    file.write_text("correct horse\nsecond line\n")

    answer = run("--home", built.root, "backup", "--json", "--passphrase-file", "-",
                 stdin="correct horse\n")  # fmt: skip

    assert answer.code == 0
    words = ["--home", built.root, "snapshots", "verify", "latest"]
    assert call(*words, "--passphrase-file", file).code == 0
    assert call(*words).code == 12
    file.write_text("wrong\n")
    assert call(*words, "--passphrase-file", file).code == 12
    both = call("--home", built.root, "backup", "--passphrase-file", file,
                "--recipient", _identity(tmp_path)[0])  # fmt: skip
    assert both.code == 2


def test_a_passphrase_is_asked_for_on_a_terminal_and_not_shown(home: BuiltHome) -> None:
    """Twice, because a typing error would make it useless; two that differ are refused."""
    command = [*COMMAND, "--home", str(home.root), "backup", "--passphrase-file", "-"]

    code, shown = watched(
        command, os.environ, answers=[("Passphrase: ", "battery"), ("Again: ", "battery")]
    )
    refused, _shown = watched(
        command, os.environ, answers=[("Passphrase: ", "battery"), ("Again: ", "staple")]
    )

    assert (code, refused) == (0, 2)
    assert "battery" not in shown
    verified = run("--home", home.root, "snapshots", "verify", "latest", "--passphrase-file", "-",
                   stdin="battery")  # fmt: skip
    assert verified.code == 0


def test_archive_is_written_to_a_pipe(home: BuiltHome, tmp_path: Path) -> None:
    """No directory, no card, nothing on stderr, and stdout is a complete archive."""
    if not all(map(shutil.which, ("zstd", "tar"))):
        pytest.skip("zstd or tar is not installed")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = " ".join(COMMAND)

    piped = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c",
         f"{command} --home {home.root} backup --output - | tee copy.tar.zst | zstd -d | tar -t"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, check=True,
    )  # fmt: skip

    assert {b"snapshot.json", b"db/sagewai.db", b"manifest.json"} <= {*piped.stdout.splitlines()}
    assert piped.stderr == b""
    assert _names(scratch) == []
    assert not home.root.with_name("home.snapshots").exists()
    assert call("snapshots", "verify", tmp_path / "copy.tar.zst").code == 0


def test_the_summary_of_an_archive_in_a_pipe_goes_to_stderr(home: BuiltHome) -> None:
    """It names the key too; without -v and a terminal it is not printed."""
    answers = [
        subprocess.run(
            [*COMMAND, "--home", home.root, "backup", "--output", "-", *flags],
            capture_output=True,
            check=True,
        )
        for flags in ([], ["-v"])
    ]

    assert answers[0].stderr == b""
    assert b"NOT in the archive" in answers[1].stderr
    assert b"archive   on stdout" in answers[1].stderr
    assert {answer.stdout[:4] for answer in answers} == {b"\x28\xb5\x2f\xfd"}  # zstd's magic


def test_closed_pipe_ends_quietly(large: Path, tmp_path: Path) -> None:
    """`| head` is the reader's decision: 141 as a shell reports it, no traceback, no staging."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with started("--home", large, "backup", "--output", "-", env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(PATIENCE_SECONDS) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""

    assert _names(tmp_path) == []


def test_an_archive_is_not_written_to_a_terminal(home: BuiltHome) -> None:
    """Binary output is useless on a screen."""
    code, shown = watched([*COMMAND, "--home", str(home.root), "backup", "--output", "-"],
                          os.environ)  # fmt: skip

    assert code == 2
    assert "stdout is a terminal" in shown


# Bars appear once a run turns out to take a while: here, at once.
_IMPATIENT = """
from sagewai_ops.cli import main as cli, terminal
terminal._BEFORE_PROGRESS_SECONDS = 0
cli.main()
"""


def test_a_terminal_sees_progress_and_the_summary(home: BuiltHome) -> None:
    """Progress bars, then the summary."""
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)

    code, shown = watched(
        [sys.executable, "-I", "-c", _IMPATIENT, "--home", str(home.root), "backup"], environment
    )

    assert code == 0
    assert "━" in shown
    assert "\x1b[" in shown
    assert "verify" in shown
    assert "created and verified" in shown


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"NO_COLOR": "1"}, []), ({"TERM": "dumb"}, []), ({"TERM": "xterm"}, ["-q"])],
    ids=["NO_COLOR", "dumb", "quiet"],
)
def test_a_plain_terminal_gets_plain_text(
    home: BuiltHome, changed: dict[str, str], words: list[str]
) -> None:
    """No colours, no bars, no control sequences; the summary unless quiet."""
    environment = {**os.environ, "TERM": "xterm", **changed}

    code, shown = watched(
        [sys.executable, "-I", "-c", _IMPATIENT, "--home", str(home.root), "backup", *words],
        environment,
    )

    assert code == 0
    assert "\x1b" not in shown
    assert "━" not in shown
    assert ("created and verified" in shown) is (not words)


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "what is waited for did not come"
        time.sleep(0.001)


def _size(directory: Path, pattern: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return max((path.stat().st_size for path in directory.glob(pattern)), default=-1)
    return -1


def _ends_whole(directory: Path) -> bool:
    for path in directory.glob(".*.partial"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            return file.read() == SEEK_TABLE_END
    return False


def test_damaged_database_is_named_by_its_path(tmp_path: Path) -> None:
    """Its copy is removed; nothing is left, and the hint backs up the rest of the home."""
    home = small(tmp_path / "home", journal="none").root
    database = home / "db" / "sagewai.db"
    content = bytearray(database.read_bytes())
    content[100:4096] = bytes(3996)  # the root of the schema
    database.write_bytes(content)
    directory = tmp_path / "snapshots"

    refused = run("--home", home, "backup", "--to", directory)
    rest = run("--home", home, "backup", "--to", directory, "--exclude", "db/*", "--json")

    assert refused.code == 16
    assert str(database) in refused.err
    assert ".staging" not in refused.err
    assert "--exclude 'db/*'" in refused.err
    assert rest.code == 0
    assert _names(directory) == [taken(rest).name, f"{taken(rest).name}.json"]


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "copying": lambda directory: _size(directory, ".*.staging/*.db") >= 0,
    "packing": lambda directory: _size(directory, ".*.partial") > 0,
    "half-commands": lambda directory: _size(directory, ".*.partial") > 5_000_000,
    "verifying": _ends_whole,
}


@contextlib.contextmanager
def _stopped(
    large: Path, directory: Path, moment: str, *words: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a backup and stop it at a moment; again if it was too fast."""
    while True:
        with started("--home", large, "backup", "--to", directory, *words) as process:
            _wait(lambda: MOMENTS[moment](directory) or process.poll() is not None)
            process.send_signal(signal.SIGSTOP)
            if _is_halted(process) and MOMENTS[moment](directory):
                yield process
                return
        process.wait()
        for left in directory.glob("*sagewai-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_halted(process: subprocess.Popen[bytes]) -> bool:
    """Wait until it has stopped, or ended before that."""
    if process.poll() is not None:
        return False
    change = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return change is not None and change.si_code == os.CLD_STOPPED


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        ("copying", signal.SIGTERM, 143),
        ("packing", signal.SIGINT, 130),
        ("half-commands", signal.SIGTERM, 143),
        ("half-commands", signal.SIGHUP, 129),
        ("verifying", signal.SIGINT, 130),
    ],
)
def test_a_signal_removes_the_partials(
    large: Path, tmp_path: Path, moment: str, number: signal.Signals, code: int
) -> None:
    """At any moment: nothing is left, the exit code is the shell's, the message is one line."""
    with _stopped(large, tmp_path, moment) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        _out, error = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == code
    assert _names(tmp_path) == []
    assert error.decode().splitlines() == [
        f"sagewai-ops: error: interrupted by signal {number.value}, partial files are removed"
    ]


def test_signal_after_the_rename_waits_for_the_card_and_reports_the_snapshot(
    home: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of `interrupted` must not conclude that no snapshot exists."""
    rename = beneath.rename

    def rename_and_stop(source: Path | str, target: Path | str, **directories: int) -> None:
        rename(source, target, **directories)
        if os.fspath(target).endswith(".zst"):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(beneath, "rename", rename_and_stop)

    answer = call("--home", home.root, "backup", "--json")

    (listed,) = call("--home", home.root, "snapshots", "list", "--json").result["snapshots"]
    assert answer.code == 143
    assert answer.document["error"]["message"].endswith(f"snapshot {listed['id']} is complete")
    assert listed["has_card"]


def test_signal_after_the_card_reports_the_snapshot(
    home: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the report is made, and older snapshots are pruned."""
    build = BackupResult.build

    def stop_and_build(report: BackupReport) -> BackupResult:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(report)

    monkeypatch.setattr(BackupResult, "build", stop_and_build)

    answer = call("--home", home.root, "backup", "--json")

    (listed,) = call("--home", home.root, "snapshots", "list", "--json").result["snapshots"]
    assert answer.code == 143
    assert answer.document["error"]["message"].endswith(f"snapshot {listed['id']} is complete")


def test_a_signal_removes_the_partials_of_an_encrypted_run(large: Path, tmp_path: Path) -> None:
    """Threads that encrypt end with the run; the JSON envelope is still the one object."""
    recipient, _path = _identity(tmp_path)
    directory = tmp_path / "snapshots"
    with _stopped(large, directory, "half-commands", "--recipient", recipient, "--json") as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        out, error = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 143
    document = json.loads(out)
    assert (document["exit_code"], document["error"]["code"]) == (143, "interrupted")
    assert error == b""
    assert _names(directory) == []


def test_a_signal_at_the_start_of_encryption_ends_its_thread(
    home: BuiltHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for plaintext until the program exits."""
    recipient, _path = _identity(tmp_path)
    start = threading.Thread.start

    def start_and_stop(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "age-encrypt":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(threading.Thread, "start", start_and_stop)

    answer = call("--home", home.root, "backup", "--recipient", recipient)

    assert answer.code == 143
    assert [thread for thread in threading.enumerate() if "age" in thread.name] == []


def test_more_files_than_a_reader_accepts_are_refused(
    home: BuiltHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the manifest is too long, not when the archive is read back."""
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 2000)

    answer = call("--home", home.root, "backup", "--to", tmp_path / "snapshots")

    assert answer.code == 2
    assert "lists more files than" in answer.err
    assert "--exclude GLOB" in answer.err
    assert _names(tmp_path / "snapshots") == []


@pytest.mark.parametrize("moment", ["copying", "half-commands", "verifying"])
def test_leftovers_of_a_kill_are_not_listed_and_swept_by_the_next_run(
    large: Path, home: BuiltHome, tmp_path: Path, moment: str
) -> None:
    """A killed run cannot clean up; the next backup into the directory does, and reports it."""
    directory = tmp_path / "snapshots"
    with _stopped(large, directory, moment) as process:
        process.kill()
        process.wait()
    left = _names(directory)

    listed = call("--home", large, "snapshots", "list", "--snapshots", directory, "--json")
    answer = call("--home", home.root, "backup", "--to", directory, "--json")

    assert left
    assert all(name.startswith(".sagewai-") for name in left)
    assert listed.result["snapshots"] == []
    assert sorted(answer.result["swept"]) == left
    assert _names(directory) == [taken(answer).name, f"{taken(answer).name}.json"]


def test_leftovers_of_a_killed_pipe_are_swept_by_the_next_pipe(
    large: Path, home: BuiltHome, tmp_path: Path
) -> None:
    """Its copy of the database, which holds secrets, does not stay in the working directory."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(0o700)
    words = ("backup", "--output", "-", "--work-dir", scratch)
    with started("--home", large, *words) as process:
        _wait(lambda: _size(scratch, ".*.staging/*.db") >= 0)
        process.kill()
        process.wait()
    assert _names(scratch)

    subprocess.run([*COMMAND, "--home", home.root, *words], stdout=subprocess.DEVNULL, check=True)

    assert _names(scratch) == []


def test_pipe_makes_its_copy_where_a_backup_may(home: BuiltHome, tmp_path: Path) -> None:
    """Not in the home, and in a directory that exists."""
    for directory, code in ((home.root / "data", 2), (tmp_path / "missing", 10)):
        words = ("backup", "--output", "-", "--work-dir", directory)
        assert run("--home", home.root, *words).code == code


def test_second_run_is_refused_and_names_the_first(large: Path, tmp_path: Path) -> None:
    """Exit 11 names the process and its command; nothing of the first is disturbed."""
    with _stopped(large, tmp_path / "first", "copying") as process:
        refused = run("--home", large, "backup", "--to", tmp_path / "second")
        process.send_signal(signal.SIGCONT)
        assert process.wait(PATIENCE_SECONDS) == 0

    assert refused.code == 11
    assert f"pid {process.pid}" in refused.err
    assert "sagewai-ops --home" in refused.err
    assert "--wait" in refused.err
    assert _names(tmp_path / "second") == []


def test_a_run_that_waits_can_be_stopped(home: BuiltHome, tmp_path: Path) -> None:
    """SIGTERM does not wait for the lock."""
    with (
        locks.exclusive(home.root),
        started("--home", home.root, "backup", "--to", tmp_path, "--wait", "600") as process,
    ):
        _wait(lambda: _is_waiting(process.pid))
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 143

    assert _names(tmp_path) == ["home"]


def test_a_second_run_that_waits_gets_its_turn(large: Path, tmp_path: Path) -> None:
    """`--wait` waits until the first ends; both snapshots exist."""
    with (
        _stopped(large, tmp_path, "copying") as first,
        started("--home", large, "backup", "--to", tmp_path, "--wait", "60") as second,
    ):
        _wait(lambda: _is_waiting(second.pid))
        assert second.poll() is None
        first.send_signal(signal.SIGCONT)
        assert first.wait(PATIENCE_SECONDS) == 0
        assert second.wait(PATIENCE_SECONDS) == 0

    cards = [json.loads(path.read_bytes()) for path in tmp_path.glob("*.json")]
    assert sorted(card["sequence"] for card in cards) == [1, 2]


def _is_waiting(pid: int) -> bool:
    """Check whether a process sleeps with its signal handlers set: it polls for the lock."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@contextlib.contextmanager
def _tmpfs(directory: Path, size: str) -> Iterator[Path]:
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("size", ["1m", "5m"])
@pytest.mark.parametrize("form", ["clear", "encrypted"])
def test_a_full_disk_exits_13_and_nothing_is_left(tmp_path: Path, size: str, form: str) -> None:
    """Refused before the start if possible, else when a write fails."""
    built = small(tmp_path / "home")
    (built.root / "data/noise.bin").write_bytes(os.urandom(8_000_000))
    words = ["--recipient", _identity(tmp_path)[0]] if form == "encrypted" else []

    with _tmpfs(tmp_path / "disk", size) as directory:
        answer = run("--home", built.root, "backup", "--to", directory, *words)
        left = _names(directory)

    assert answer.code == 13
    assert _error_lines(answer) == ["error", "hint"]
    assert str(directory) in answer.err
    assert left == []


def test_a_home_mounted_read_only_is_backed_up(tmp_path: Path) -> None:
    """Not even root can write there; the data in the WAL is still stored."""
    built = small(tmp_path / "home")
    view = tmp_path / "view"
    view.mkdir()
    bound = subprocess.run(["mount", "--bind", built.root, view], capture_output=True)
    if bound.returncode:
        pytest.skip(f"cannot bind a directory here: {bound.stderr.decode().strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
        before = everything_of(view)

        answer = run("--home", view, "backup", "--json", "--to", tmp_path / "snapshots")
        status = run("--home", view, "status", "--json")

        assert everything_of(view) == before
    finally:
        subprocess.run(["umount", view], check=True)
    assert answer.code == 0
    assert answer.result["database"]["tables"]["sessions"] == 1
    assert status.code == 0


@pytest.mark.parametrize("is_json", ["--json", "-v"])
def test_full_stdout_is_reported_as_an_error(home: BuiltHome, is_json: str) -> None:
    """Results that could not be delivered are a failure, as a full disk is."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, "--home", home.root, "backup", is_json], stdout=full,
                              stderr=subprocess.PIPE, check=False)  # fmt: skip

    assert done.returncode == 13
    assert done.stderr.decode().startswith("sagewai-ops: error: standard output: no space left")


def test_file_as_snapshot_directory_is_refused(tmp_path: Path) -> None:
    """A file in its place is a usage error; an error of the system is named."""
    built = small(tmp_path / "home")
    (tmp_path / "file").touch()

    answer = run("--home", built.root, "backup", "--to", tmp_path / "file")
    below = run("--home", built.root, "backup", "--to", tmp_path / "file/below")
    refused = run("--home", built.root, "backup", "--to", "/proc/snapshots")

    assert below.code == 2
    assert f"error: {tmp_path}/file: not a directory" in below.err
    assert answer.code == 2
    assert f"{tmp_path}/file: not a directory" in answer.err
    assert refused.code in (10, 14)
    assert "error: /proc/snapshots: " in refused.err


def test_tar_sees_the_same_bytes_as_the_home(home: BuiltHome, tmp_path: Path) -> None:
    """Unpacked by tar alone, every state file is unchanged, with its mode and time."""
    if not all(map(shutil.which, ("zstd", "tar"))):
        pytest.skip("zstd or tar is not installed")
    answer = call("--home", home.root, "backup", "--json")
    subprocess.run(f"zstd -dc {taken(answer)} | tar -x -C {tmp_path}", shell=True, check=True)

    for path in ("config/admin-state.json", "config/connections.json", "secrets/profiles.json"):
        assert (tmp_path / path).read_bytes() == (home.root / path).read_bytes()
        modes = {at.stat().st_mode for at in (tmp_path / path, home.root / path)}
        assert len(modes) == 1
    assert tarfile.is_tarfile(taken(answer)) is False
