"""Notifications: to whom, about what, and no secret in any message."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from json_schemas import problems
from program import Answer, call
from sagewai_ops.errors import UsageError
from sagewai_ops.notify.notification import (
    build_message,
    check_notify_url,
    describe_target,
    send,
)
from small_homes import small
from watchdog import Watchdog, watchdog

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Connect without the proxy of the developer's network, and record in a directory of ours."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home."""
    return small(tmp_path / "home").root


def _backup(home: Path, dog: Watchdog, *words: object) -> Answer:
    return call("--home", home, "backup", "--notify", dog.url, *words)


def _envelopes(dog: Watchdog) -> list[dict[str, Any]]:
    return [json.loads(body) for _path, body in dog.output]


def _message(**more: Any) -> Any:
    envelope = {"command": "backup", "exit_code": 1, "home": "/h", "seconds": 1, **more}
    return build_message(envelope, "host", recovered=False)


@pytest.mark.parametrize("words", [[], ["--json"], ["--quiet"]])
def test_a_failure_is_posted_as_its_envelope(tmp_path: Path, words: list[str]) -> None:
    """The same object that --json prints, in any output format, valid by its schema."""
    with watchdog() as dog:
        answer = _backup(tmp_path / "missing", dog, *words)

    (envelope,) = _envelopes(dog)
    assert answer.code == envelope["exit_code"] == 10
    assert envelope["error"]["code"] == "not-found"
    assert envelope["error"]["message"] == f"home {tmp_path}/missing: not found"
    assert envelope["error"]["hint"]
    assert problems("envelope", envelope) == []
    if words == ["--json"]:
        same = {"error", "warnings", "status", "command", "home", "started_at"}
        assert {key: envelope[key] for key in same} == {key: answer.document[key] for key in same}


def test_a_success_is_notified_of_only_if_requested(home: Path) -> None:
    """With its result."""
    with watchdog() as dog:
        assert _backup(home, dog).code == 0
        assert dog.output == []
        assert _backup(home, dog, "--notify-on", "always").code == 0

    (envelope,) = _envelopes(dog)
    assert envelope["status"] == "ok"
    assert envelope["result"]["archive_bytes"] > 0


def test_an_incomplete_snapshot_is_a_failure(home: Path) -> None:
    """Exit code 3; the warnings name what is missing."""
    import os

    os.mkfifo(home / "data/pipe")
    with watchdog() as dog:
        assert _backup(home, dog).code == 3

    (envelope,) = _envelopes(dog)
    assert (envelope["status"], envelope["error"]) == ("incomplete", None)
    assert any("pipe" in text for text in envelope["warnings"])


def test_a_recovery_is_the_first_success_after_a_failure(home: Path) -> None:
    """Each failure, then one message that it works again, then none."""
    away = home.with_name("away")
    recovery = ("--notify-on", "recovery")
    with watchdog() as dog:
        assert _backup(home, dog, *recovery).code == 0
        home.rename(away)
        assert _backup(home, dog, *recovery).code == 10
        away.rename(home)
        assert _backup(home, dog, *recovery).code == 0
        assert _backup(home, dog, *recovery).code == 0

    assert [envelope["exit_code"] for envelope in _envelopes(dog)] == [10, 0]


def test_a_state_directory_that_cannot_be_written_is_a_warning(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is notified of."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with watchdog() as dog:
        answer = _backup(home / "none", dog, "--notify-on", "recovery")

    assert answer.code == 10
    assert "recovery will not be notified of: " in answer.err
    assert len(dog.output) == 1


def test_a_failed_notification_is_a_warning(home: Path) -> None:
    """The backup succeeds; the warning names the host alone."""
    with watchdog(answer=500) as dog:
        answer = _backup(home, dog, "--notify-on", "always")

    assert (answer.code, answer.out) == (0, "")
    assert answer.err == "sagewai-ops: warning: notification to 127.0.0.1: answered 500\n"


def test_the_body_of_a_redirect_is_not_read() -> None:
    """It can be endless: this one never comes."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.path)
            self.send_response(200 if self.path == "/there" else 307)
            self.send_header("Location", "/there")
            self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
            if self.path != "/there":
                ended.wait(60)

        def log_message(self, *_words: object) -> None:
            """Log nothing."""

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        problem = send(f"http://127.0.0.1:{server.server_port}/here", _message())
    finally:
        ended.set()
        server.shutdown()
        server.server_close()

    assert (problem, posted) == ("", ["/here", "/there"])


@pytest.mark.parametrize("answer", [301, 302, 307, 308])
def test_a_redirect_is_followed_to_the_same_host_only(answer: int) -> None:
    """With the message: a GET would be taken for a delivery."""
    with watchdog() as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        with watchdog(answer=answer, location=elsewhere) as dog:
            assert send(dog.url, _message()) == "redirected to another host, not followed"
        with watchdog(answer=answer, location="/again") as dog:
            looped = send(dog.url, _message())

    assert other.output == []
    assert looped == f"answered {answer}"  # it redirects without end
    assert set(dog.paths) == {"/secret-uuid", "/again"}
    assert all(json.loads(body)["home"] == "/h" for _path, body in dog.output)


def test_a_result_that_is_too_large_is_omitted_and_named() -> None:
    """The message arrives, the rest is in the log of the run."""
    with watchdog() as dog:
        assert send(dog.url, _message(result={"paths": ["x" * 100] * 5000})) == ""

    (envelope,) = _envelopes(dog)
    assert envelope["result"] is None
    assert "is not in this notification" in envelope["warnings"][0]


def test_urls_of_a_file_and_of_options_are_all_notified(tmp_path: Path) -> None:
    """One a line, with comments; each once."""
    file = tmp_path / "urls"
    with watchdog() as first, watchdog() as second:
        file.write_text(f"# on call\n{first.url}\n\n{second.url}\n{first.url}\n")
        _backup(tmp_path / "none", first, "--notify-file", file)

    assert (len(first.output), len(second.output)) == (1, 1)


@pytest.mark.parametrize("content", [None, f"{SECRET}\n", f"https://u:{SECRET}@h/x"])
def test_a_file_without_a_url_is_a_warning(home: Path, tmp_path: Path, content: str | None) -> None:
    """The snapshot matters more than the report of it."""
    if content is not None:
        (tmp_path / "urls").write_text(content)

    answer = call("--home", home, "backup", "--notify-file", tmp_path / "urls")

    assert answer.code == 0
    assert f"not all are notified: --notify-file {tmp_path / 'urls'}: " in answer.err
    assert SECRET not in answer.err


@pytest.mark.parametrize(
    "url", ["", SECRET, f"https://u:{SECRET}@h/x", f"https:///{SECRET}", f"ntfy://h/{SECRET} x",
            f"https://h/{SECRET}\nx", f"https://h:0/{SECRET}", f"1x://{SECRET}"]
)  # fmt: skip
def test_what_is_no_url_is_refused_without_showing_it(home: Path, url: str) -> None:
    """Before the run: a typo must not wait for the first failure."""
    with pytest.raises(UsageError) as refusal:
        check_notify_url(url)
    answer = call("--home", home, "backup", f"--notify={url}")

    assert SECRET not in refusal.value.message
    assert (answer.code, SECRET in answer.err + answer.out) == (2, False)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"https://hooks.example.org/{SECRET}?k={SECRET}", "notification to hooks.example.org"),
        (f"tgram://123:{SECRET}/chat", "notification by tgram"),
        (f"mailtos://u:{SECRET}@example.org", "notification by mailtos"),
    ],
)
def test_messages_name_no_part_that_can_be_secret(url: str, words: str) -> None:
    """Tokens are where other URLs have a host."""
    assert describe_target(check_notify_url(url)) == words


def test_the_urls_are_never_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not in errors, not in JSON, not by `config show`; in the configuration it is refused."""
    config = tmp_path / "config.toml"
    config.write_text(f'[backup]\nnotify = ["https://h/{SECRET}"]\n')
    config.chmod(0o600)
    in_file = call("--config", config, "--home", home, "backup")
    with watchdog(answer=404) as dog:
        monkeypatch.setenv("SAGEWAI_OPS_BACKUP_NOTIFY", f"{dog.url} json://{dog.url[7:]}")
        answers = [
            call("--home", home, "backup", "--json", "-v", "--debug", "--notify-on", "always"),
            call("--home", home / "none", "backup"),
            call("config", "show", "--origin"),
            call("config", "show", "--json"),
            call("notify", "test", "--json"),
            call("notify", "test", "--dry-run"),
        ]

    assert len(dog.output) > 4
    assert all("secret-uuid" not in answer.out + answer.err for answer in answers)
    assert "(hidden)" in answers[2].out
    assert (in_file.code, SECRET in in_file.err) == (2, False)
    assert "notify: secrets are not allowed" in in_file.err
    assert "use notify-file" in in_file.err


def test_apprise_sends_what_it_knows(tmp_path: Path) -> None:
    """By its own plug-in for JSON, to a server of this machine."""
    pytest.importorskip("apprise")
    with watchdog() as dog:
        url = dog.url.replace("http://", "json://")
        answer = call("--home", tmp_path / "none", "backup", "--notify", url)

    assert answer.code == 10
    assert "warning" not in answer.err
    ((_path, body),) = dog.output
    sent = json.loads(body)
    assert sent["title"].startswith("sagewai-ops on ")
    assert sent["title"].endswith(": backup failed, exit 10")
    assert f"error: home {tmp_path}/none: not found" in sent["message"]
    assert sent["type"] == "failure"


def test_apprise_refuses_what_it_does_not_know() -> None:
    """And prints nothing itself: its messages can contain the URL."""
    pytest.importorskip("apprise")

    assert send(f"unknown://{SECRET}", _message()) == "not a URL of Apprise"


def test_without_apprise_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run itself does not need it."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)

    assert "pip install 'sagewai-ops[notify]'" in send("ntfy://h/x", _message())


def test_nothing_is_imported_for_nothing(home: Path) -> None:
    """Neither Apprise nor urllib.request, unless something is sent."""
    script = (
        "import sys; from sagewai_ops.cli.main import run\n"
        f"run(['--home', {str(home)!r}, 'backup', '--notify', 'ntfy://h/x'])\n"
        "print({'apprise', 'urllib.request'} & sys.modules.keys())"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert done.stdout == b"set()\n"


def test_notify_test_uses_the_urls_of_backup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of its variable, of the file in the configuration, or of its own options."""
    config, urls = tmp_path / "config.toml", tmp_path / "urls"
    config.write_text('[backup]\nnotify-file = "urls"\n')
    config.chmod(0o600)
    with watchdog() as dog, watchdog(answer=403) as forbidden:
        urls.write_text(f"{dog.url}\n")
        by_file = call("--config", config, "notify", "test")
        monkeypatch.setenv("SAGEWAI_OPS_BACKUP_NOTIFY", dog.url)
        by_variable = call("notify", "test", "--json")
        failed = call("notify", "test", "--notify", forbidden.url, "--notify", dog.url, "--json")

    assert (by_file.code, by_file.out) == (0, "notification to 127.0.0.1: sent\n")
    assert by_variable.code == 0
    assert problems("notify-test", by_variable.result) == []
    assert failed.code == 19
    assert [each["problem"] for each in failed.result["deliveries"]] == ["answered 403", ""]
    assert len(dog.output) == 3


def test_notify_test_without_a_url_is_refused() -> None:
    """Nothing would be tested."""
    answer = call("notify", "test")

    assert answer.code == 2
    assert "no URL is given" in answer.err
