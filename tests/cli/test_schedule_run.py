"""`schedule run`: real runs, their lines, and signals."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from json_schemas import problems
from program import PATIENCE_SECONDS, call, run, started
from small_homes import small
from watchdog import watchdog

NOW = ("--every", "1s", "--runs")


def _facts(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(line)[2:])


def test_each_run_is_one_line_and_a_failed_one_is_retried(tmp_path: Path) -> None:
    """The second fails, as the home is gone; the third succeeds."""
    home = small(tmp_path / "home").root
    away = home.with_name("away")
    lines = []
    with started("--home", home, "schedule", "run", *NOW, 3, "--", "backup", text=True) as process:
        for number in range(3):
            assert process.stdout
            lines.append(process.stdout.readline())
            if number < 2:
                home.rename(away) if number == 0 else away.rename(home)
        code = process.wait(PATIENCE_SECONDS)
        rest, err = process.communicate()

    assert (code, rest, err) == (3, "", "")
    first, second, third = map(_facts, lines)
    assert (first["command"], first["exit"], second["exit"], third["exit"]) == (
        "backup", "0", "10", "0",
    )  # fmt: skip
    assert int(first["archive_bytes"]) > 1000
    assert second["error"] == f"home {home}: not found"
    assert len(list((tmp_path / "home.snapshots").glob("*.tar.zst"))) == 2


def test_json_is_the_document_of_each_run(tmp_path: Path) -> None:
    """One a line, and that of the schedule at the end; the options of the program are passed on."""
    home = small(tmp_path / "home").root
    config = tmp_path / "config.toml"
    config.write_text('[backup]\ntag = "nightly"\n')
    config.chmod(0o600)

    answer = run(
        "--home", home, "--config", config, "--json", "schedule", "run", *NOW, 1, "--", "backup"
    )

    backup, whole = map(json.loads, answer.out.splitlines())
    assert (answer.code, answer.err) == (0, "")
    assert (backup["command"], backup["home"]) == ("backup", str(home))
    assert problems("backup", backup["result"]) == []
    assert (whole["command"], whole["result"]) == ("schedule run", {"runs": 1, "failed": 0})
    listed = call("--home", home, "snapshots", "list", "--json").result
    assert listed["snapshots"][0]["tags"] == ["nightly"]


def test_a_log_that_takes_no_line_prevents_no_run(tmp_path: Path) -> None:
    """A full disk under the log: a warning for each run, and the schedule goes on."""
    home = small(tmp_path / "home").root
    words = ("--home", home, "schedule", "run", *NOW, 2, "--", "backup")
    with open("/dev/full", "wb") as full, started(*words, stdout=full, text=True) as process:
        _, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 13
    assert err.count("warning: run of backup: no line: standard output: no space left") == 2
    assert err.splitlines()[2].startswith("sagewai-ops: error: standard output: no space left")
    assert len(list((tmp_path / "home.snapshots").glob("*.tar.zst"))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_waits_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    """At once, with the exit code of the signal and no traceback."""
    command = ("-v", "schedule", "run", "--every", "day@02:30", "--", "backup")
    with started("--home", tmp_path / "home", *command, text=True) as process:
        assert process.stderr
        assert "next run of backup: 2" in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, out) == (128 + number, "")
    assert err == f"sagewai-ops: error: interrupted by signal {number}, the schedule ends\n"


def test_a_signal_ends_the_run_too_and_reports_it(tmp_path: Path) -> None:
    """The run has a process that waits; it ends, leaves nothing, and has its line."""
    home = small(tmp_path / "home").root
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    wait = f"sh -c 'echo $$ > {tmp_path}/pid; cat {pipe}'"  # a passphrase that never comes
    command = ("schedule", "run", *NOW, 1, "--", "backup", "--passphrase-command", wait)
    with started("--home", home, *command, text=True) as process:
        until = time.monotonic() + PATIENCE_SECONDS
        while not (tmp_path / "pid").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 143
    assert _facts(out)["exit"] == "143"
    assert "the schedule ends" in err
    assert not list(tmp_path.glob("home.snapshots/*"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def _kill_once_started(tmp_path: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    pid.unlink()


def test_a_killed_run_is_reported_once(tmp_path: Path) -> None:
    """To all that it would have reported to itself: the options, variables and configuration."""
    home = small(tmp_path / "home").root
    pipe, metrics = tmp_path / "pipe", tmp_path / "metrics.prom"
    os.mkfifo(pipe)
    config = tmp_path / "config.toml"
    config.write_text(f'[backup]\nmetrics-file = "{metrics}"\n')
    config.chmod(0o600)
    wait = f"sh -c 'echo $PPID > {tmp_path}/pid; cat {pipe}'"  # a passphrase that never comes
    with watchdog() as receiver:
        urls = tmp_path / "urls"
        urls.write_text(f"{receiver.url}/hook")
        urls.chmod(0o600)
        command = ("schedule", "run", *NOW, 1, "--", "backup", "--passphrase-command", wait)
        with started(
            *("--home", home, "--config", config, *command, "--ping-url-file", urls),
            env={**os.environ, "SAGEWAI_OPS_BACKUP_NOTIFY_FILE": str(urls)},
            text=True,
        ) as process:
            _kill_once_started(tmp_path)
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
    with contextlib.suppress(OSError):  # ends the command, which nothing waits for
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    facts = _facts(out)
    assert (process.returncode, err) == (3, "")
    assert (facts["exit"], facts["error"]) == (
        "137",
        "killed by signal 9, perhaps for lack of memory",
    )
    root = receiver.url.partition("//")[2].partition("/")[2]
    ways = [path.removeprefix(f"/{root}") for path in receiver.paths]
    assert ways == ["/hook/start", "/hook/fail", "/hook"]
    document = json.loads(receiver.output[2][1])
    assert (document["command"], document["home"]) == ("backup", str(home))
    assert (document["exit_code"], document["status"]) == (137, "error")
    assert document["error"]["message"] == facts["error"]
    assert f'last_run_exit_code{{command="backup",home="{home}"}} 137' in metrics.read_text()


def test_a_failed_run_is_reported_by_itself_alone(tmp_path: Path) -> None:
    """The loop adds no second message."""
    with watchdog() as receiver:
        urls = tmp_path / "urls"
        urls.write_text(receiver.url)
        command = ("schedule", "run", *NOW, 1, "--", "backup", "--notify-file", urls)
        answer = run("--home", tmp_path / "none", *command)

    assert answer.code == 3
    assert [json.loads(body)["exit_code"] for _path, body in receiver.output] == [10]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "not a command for timers"),
        (("restore", "latest"), "restore: not a command for timers"),
        (("schedule", "run"), "schedule run: not a command for timers"),
        (("nonsense",), "nonsense: not a command"),
        (("backup", "--levle", "3"), "no such option: --levle"),
        (("backup", "--output=-"), "--output: not possible"),
        (("backup", "--dry-run"), "--dry-run: not possible"),
        (("backup", "--also", "s3://u:hunter2@h/p"), "a URL contains a password"),
        (("backup", "--ping-url", "https://h/hunter2"), "--ping-url: is a secret"),
    ],
)
def test_what_would_fail_each_night_is_refused_at_the_start(
    words: tuple[str, ...], message: str
) -> None:
    """Nothing is run, and no secret is shown."""
    answer = call("schedule", "run", "--", *words)

    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert "hunter2" not in answer.err


def test_a_run_that_finds_no_memory_is_retried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It does not end the loop, and is reported; nor does an invalid URL end it."""

    def fail(_words: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("sagewai_ops.schedule.loop.run_once", fail)
    with watchdog() as receiver:
        urls = tmp_path / "urls"
        urls.write_text(receiver.url)
        command = ("schedule", "run", *NOW, 2, "--", "backup")
        answer = call(*command, "--notify-file", urls)
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_NOTIFY", "hunter2")
    unusable = call(*command)

    assert (answer.code, len(answer.out.splitlines())) == (3, 2)
    assert "not started" in answer.err
    assert [json.loads(body)["exit_code"] for _path, body in receiver.output] == [1, 1]
    assert (unusable.code, len(unusable.out.splitlines())) == (3, 2)
    assert "not reported: notify URL" in unusable.err
    assert "hunter2" not in unusable.err


def test_a_program_that_cannot_be_started_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not a loop of failures."""
    from importlib import import_module

    schedule_run = import_module("sagewai_ops.commands.schedule_run")
    monkeypatch.setattr(schedule_run, "this_program", lambda: tmp_path / "none")

    answer = call("schedule", "run", *NOW, 1, "--", "backup")

    assert answer.code == 10
