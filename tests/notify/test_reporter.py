"""Reports of a run: pings, metrics, a log; none of them can make it fail."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from program import PATIENCE_SECONDS, Answer, call, started
from sagewai_ops.fs import locks
from sagewai_ops.notify import prometheus
from small_homes import small
from watchdog import Watchdog, watchdog

_LINE = re.compile(r'(\w+)\{command="((?:[^"\\]|\\.)*)",home="((?:[^"\\]|\\.)*)"\} (\S+)')


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect without the proxy of the developer's network."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home."""
    return small(tmp_path / "home").root


def _samples(path: Path, command: str = "backup") -> dict[str, float]:
    """Read the samples of one command, as Prometheus does."""
    found = {}
    typed = set()
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif line and not line.startswith("#"):
            sample = _LINE.fullmatch(line)
            assert sample, line
            assert sample[1] in typed
            if sample[2] == command:
                found[sample[1].removeprefix("sagewai_ops_")] = float(sample[4])
    return found


def _logged(text: str) -> list[dict[str, str]]:
    """Parse a log as a shell splits it."""
    words = [shlex.split(line)[2:] for line in text.splitlines()]
    return [dict(word.split("=", 1) for word in line) for line in words]


def _backup(home: Path, dog: Watchdog, *words: object) -> Answer:
    return call("--home", home, "backup", "--ping-url", dog.url, *words)


def test_success_is_reported_and_silent(home: Path) -> None:
    """Start, then the URL itself, with the line of the log as the body."""
    with watchdog() as dog:
        answer = _backup(home, dog)

    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert dog.paths == ["/secret-uuid/start", "/secret-uuid"]
    assert "event=end" in dog.output[1][1]
    assert "exit=0" in dog.output[1][1]


@pytest.mark.parametrize("words", [[], ["--json"], ["--quiet"]])
def test_failure_is_reported_with_its_reason(tmp_path: Path, words: list[str]) -> None:
    """The error, in any output format, and the exit code."""
    with watchdog() as dog:
        answer = _backup(tmp_path / "missing", dog, *words)

    assert answer.code == 10
    assert dog.paths == ["/secret-uuid/start", "/secret-uuid/fail"]
    assert f"error: home {tmp_path}/missing: not found" in dog.output[1][1]
    assert "exit=10" in dog.output[1][1]


def test_findings_and_omissions_are_failures(home: Path) -> None:
    """Exit codes 3 and 4 are not 0."""
    os.mkfifo(home / "data" / "pipe")
    (home / "secrets/master.key").chmod(0o644)
    with watchdog() as dog:
        assert _backup(home, dog).code == 3
        found = call("--home", home, "verify-perms", "--ping-url", dog.url)

    assert found.code == 4
    assert dog.paths == ["/secret-uuid/start", "/secret-uuid/fail"] * 2
    assert "pipe" in dog.output[1][1]


def test_failing_monitoring_service_is_a_warning(home: Path) -> None:
    """A warning for each ping; the backup succeeds, and the URL is not shown."""
    with watchdog(answer=500) as dog:
        answer = _backup(home, dog)

    assert (answer.code, answer.out) == (0, "")
    assert answer.err.splitlines() == [
        "sagewai-ops: warning: ping of 127.0.0.1 (start): answered 500",
        "sagewai-ops: warning: ping of 127.0.0.1 (success): answered 500",
    ]


def test_the_url_is_never_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in errors, not in JSON, not by `config show`."""
    with watchdog(answer=404) as dog:
        monkeypatch.setenv("SAGEWAI_OPS_BACKUP_PING_URL", dog.url)
        answers = [
            call("--home", home, "backup", "--json", "-v"),
            call("--home", home, "backup", "--level", "99"),
            call("config", "show", "--origin"),
            call("config", "show", "--json"),
            call("--home", home / "none", "verify-perms"),
        ]

    assert all("secret-uuid" not in answer.out + answer.err for answer in answers)
    assert "(hidden)" in answers[2].out


def test_the_url_from_a_file(home: Path, tmp_path: Path) -> None:
    """Its first line; --ping-url is refused with it."""
    file = tmp_path / "url"
    with watchdog() as dog:
        file.write_text(f"{dog.url}\nnot this\n")
        assert call("--home", home, "backup", "--ping-url-file", file).code == 0
        both = _backup(home, dog, "--ping-url-file", file)

    assert dog.paths == ["/secret-uuid/start", "/secret-uuid"]
    assert (both.code, "not possible with --ping-url-file" in both.err) == (2, True)


@pytest.mark.parametrize("content", [None, "", "hunter2\n", "https://h/hunter2 x"])
def test_a_file_without_a_url_is_a_warning(home: Path, tmp_path: Path, content: str | None) -> None:
    """The snapshot matters more than the report of it."""
    if content is not None:
        (tmp_path / "url").write_text(content)

    answer = call("--home", home, "backup", "--ping-url-file", tmp_path / "url")

    assert answer.code == 0
    assert f"no ping: --ping-url-file {tmp_path / 'url'}: " in answer.err
    assert "hunter2" not in answer.err


def test_url_is_refused_in_the_configuration(home: Path, tmp_path: Path) -> None:
    """A configuration is shown, copied and committed."""
    file = tmp_path / "config.toml"
    file.write_text('[backup]\nping-url = "https://h/hunter2"\n')
    file.chmod(0o600)

    answer = call("--config", file, "--home", home, "backup")

    assert answer.code == 2
    assert "ping-url: secrets are not allowed" in answer.err
    assert "hint: use ping-url-file" in answer.err
    assert "hunter2" not in answer.err


def test_an_interrupted_run_is_a_failure(home: Path) -> None:
    """Exit 143 is reported; the run waits where it reads a passphrase from a pipe."""
    with watchdog() as dog:
        words = ("--ping-url", dog.url, "--passphrase-file", "/dev/stdin")
        with started("--home", home, "backup", *words, stdin=subprocess.PIPE) as process:
            while not dog.paths:  # the start is sent before the passphrase is read
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE_SECONDS)

    assert code == 143
    assert dog.paths == ["/secret-uuid/start", "/secret-uuid/fail"]
    assert "interrupted by signal 15" in dog.output[1][1]


def test_bug_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its message, which could contain anything."""

    def broken(*_words: object, **_options: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr("sagewai_ops.backup.create.create_snapshot", broken)
    with watchdog() as dog, pytest.raises(RuntimeError):
        _backup(home, dog)

    assert dog.paths == ["/secret-uuid/start", "/secret-uuid/fail"]
    assert "unexpected failure: RuntimeError" in dog.output[1][1]
    assert "hunter2" not in dog.output[1][1]


def test_metrics_contain_the_numbers_of_the_result(home: Path, tmp_path: Path) -> None:
    """Sizes and counts as in --json, readable for the exporter's user."""
    file = tmp_path / "m.prom"

    result = call("--home", home, "backup", "--metrics-file", file, "--json").result

    found = _samples(file)
    assert found["result_archive_bytes"] == result["archive_bytes"]
    assert found["result_files"] == result["files"]
    assert found["result_rows"] == sum(result["database"]["tables"].values())
    assert found["last_run_exit_code"] == 0
    assert found["last_success_timestamp_seconds"] == found["last_run_timestamp_seconds"]
    assert found["last_run_duration_seconds"] > 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.glob("*m.prom*")] == ["m.prom"]


def test_metrics_of_a_failure_keep_the_last_success(home: Path, tmp_path: Path) -> None:
    """An alarm needs its age."""
    file = tmp_path / "m.prom"
    call("--home", home, "backup", "--metrics-file", file)
    before = _samples(file)

    with locks.exclusive(home):
        assert call("--home", home, "backup", "--metrics-file", file).code == 11

    after = _samples(file)
    assert after["last_run_exit_code"] == 11
    assert after["last_run_timestamp_seconds"] >= before["last_run_timestamp_seconds"]
    for name in ("last_success_timestamp_seconds", "result_archive_bytes"):
        assert after[name] == before[name]


def test_metrics_of_several_commands_and_homes_share_a_file(home: Path, tmp_path: Path) -> None:
    """Each run replaces its own samples alone."""
    file = tmp_path / "m.prom"
    call("--home", home, "backup", "--metrics-file", file)
    call("--home", home, "verify-perms", "--metrics-file", file)
    call("--home", tmp_path / "missing", "backup", "--metrics-file", file)

    assert _samples(file, "verify-perms")["result_entries"] > 0
    assert file.read_text().count("sagewai_ops_last_run_exit_code{") == 3
    assert f'sagewai_ops_last_run_exit_code{{command="backup",home="{home}"}} 0' in file.read_text()


def test_metrics_of_concurrent_runs_are_complete(tmp_path: Path) -> None:
    """They lock the directory in turn."""
    file = tmp_path / "m.prom"

    def write(number: int) -> None:
        prometheus.write_metrics(
            file, command=f"c{number}", home="/h", exit_code=0, seconds=1.0, figures={}, ended_at=1
        )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(_samples(file, f"c{number}")["last_run_exit_code"] == 0 for number in range(12))


@settings(max_examples=30)
@given(home=st.text(max_size=20))
def test_metrics_of_any_home_can_be_parsed(
    home: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Quotes, backslashes and line breaks in a name stay inside its label."""
    file = tmp_path_factory.mktemp("metrics") / "m.prom"
    for exit_code in (0, 3):
        prometheus.write_metrics(
            file,
            command="backup",
            home=home,
            exit_code=exit_code,
            seconds=1.0,
            figures={"files": 1},
            ended_at=5,
        )

    lines = [line for line in file.read_bytes().split(b"\n") if b"exit_code{" in line]
    assert len(lines) == 1
    assert lines[0].endswith(b"} 3")


@pytest.mark.parametrize("content", [b"node_load1 0.5\n", b"#!/bin/sh\nrm -rf /\n", b"x" * 2000000])
def test_file_with_other_content_is_not_changed(home: Path, tmp_path: Path, content: bytes) -> None:
    """A wrong path must not overwrite a file; the backup succeeds."""
    file = tmp_path / "m.prom"
    file.write_bytes(content)

    answer = call("--home", home, "backup", "--metrics-file", file)

    assert (answer.code, file.read_bytes()) == (0, content)
    assert "metrics not written" in answer.err


@pytest.mark.parametrize("option", ["--metrics-file", "--log-file"])
def test_report_that_cannot_be_written_is_a_warning(home: Path, option: str) -> None:
    """With a missing directory the snapshot is complete and the exit code 0."""
    answer = call("--home", home, "backup", option, "/nowhere/at/all")

    assert answer.code == 0
    assert answer.err.count("not written: /nowhere/at") == 1
    assert list(home.with_name("home.snapshots").glob("*.tar.zst"))


def test_the_log_has_a_line_for_start_and_end(home: Path, tmp_path: Path) -> None:
    """key=value, quoted where a shell needs it, appended, private."""
    log = tmp_path / "log"
    call("--home", home, "backup", "--log-file", log)
    odd = tmp_path / 'a "b\\ c=d\n'
    call("--home", odd, "backup", "--log-file", log)

    begun, ended, _begun, failed = _logged(log.read_text())
    assert (begun["event"], ended["event"]) == ("start", "end")
    assert begun["pid"] == ended["pid"]
    assert (ended["command"], ended["home"], ended["exit"]) == ("backup", str(home), "0")
    assert int(ended["archive_bytes"]) > 0
    assert failed["exit"] == "10"
    assert failed["home"] == f'{tmp_path}/a "b\\ c=d\\n'
    assert failed["error"].endswith("not found")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_partial_line_of_a_killed_run_does_not_affect_others(home: Path, tmp_path: Path) -> None:
    """The next run begins a new line."""
    log = tmp_path / "log"
    call("--home", home, "backup", "--log-file", log)
    whole = log.read_bytes()
    log.write_bytes(whole[:-30])

    call("--home", home, "backup", "--log-file", log)

    lines = log.read_bytes().removeprefix(whole[:-30]).decode()
    assert lines[0] == "\n"
    assert [line["event"] for line in _logged(lines[1:])] == ["start", "end"]


def test_log_on_stderr_is_printed_with_quiet(home: Path) -> None:
    """It was requested: journald stores stderr."""
    answer = call("--home", home, "backup", "--log-file", "-", "--quiet")

    assert [line["event"] for line in _logged(answer.err)] == ["start", "end"]


def test_runs_without_reports_do_not_load_the_reporter(home: Path) -> None:
    """It would cost start-up time."""
    code = (
        "import sys; from sagewai_ops.cli.main import run\n"
        f"run(['--home', {str(home)!r}, 'verify-perms'])\n"
        "sys.exit(bool({'sagewai_ops.notify.reporter', 'urllib.request'} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert done.returncode == 0


def test_every_command_for_timers_is_logged(home: Path, tmp_path: Path) -> None:
    """A start and an end for each."""
    log = tmp_path / "log"
    call("--home", home, "backup")
    for words in (["verify-perms"], ["keys", "check"], ["db", "check"], ["drill"],
                  ["snapshots", "verify", "latest"]):  # fmt: skip
        call("--home", home, *words, "--log-file", log)

    assert [line["command"] for line in _logged(log.read_text())][::2] == [
        "verify-perms", "keys check", "db check", "drill", "snapshots verify",
    ]  # fmt: skip
