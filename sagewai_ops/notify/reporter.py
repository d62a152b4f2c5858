"""Report runs to a monitoring service, to people, a metrics file and a log.

None of them can make the run fail: their errors are warnings.
"""

import contextlib
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.errors import InterruptedRunError, OpsError, UsageError, error_class
from sagewai_ops.fs.given_files import decode_given, open_given_file, read_given_file
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.notify.failures import record_failure, take_failure
from sagewai_ops.notify.healthcheck import Event, check_url, describe_host, ping
from sagewai_ops.notify.notification import build_message, check_notify_url, describe_target, send
from sagewai_ops.notify.prometheus import extract_figures, write_metrics
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable

_MOST_URL_BYTES = 4096
_MOST_URLS_BYTES = 65_536
_ERROR = "error: "  # begins an error on the terminal
_PLAIN = re.compile(r"[^\s\"=\\]+")


@dataclass(frozen=True, slots=True)
class Reporter:
    """The places to which a run is reported.

    Attributes:
        warn: Called with each error of a report.
        print_log: Called with each line of a log on stderr.
        ping_url: "" for none; a secret.
        log_file: "" for none, `-` for stderr.
        notify_urls: Secrets.
        notify_on: `failure`, `recovery` (failures too), or `always`.
        environment: Names the user's state directory, where a failure is recorded for `recovery`.
    """

    command: str
    home: str
    warn: Callable[[str], None]
    print_log: Callable[[str], None]
    ping_url: str = ""
    metrics_file: Path | None = None
    log_file: str = ""
    notify_urls: tuple[str, ...] = field(default=(), repr=False)
    notify_on: str = "failure"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def begin(self) -> None:
        """Report the start."""
        self._log("start", {})
        self._ping(Event.START, "")

    def end(self, envelope: Mapping[str, Any], seconds: float, lines: list[str]) -> None:
        """Report the end.

        Args:
            envelope: The JSON object of the run.
            lines: The last lines on stderr, for the monitoring service.
        """
        exit_code, result = envelope["exit_code"], envelope["result"]
        figures = extract_figures(result) if result else {}
        facts: dict[str, object] = {"exit": exit_code, "seconds": f"{seconds:.3f}", **figures}
        if error := next((text for text in lines if text.startswith(_ERROR)), ""):
            facts["error"] = error.removeprefix(_ERROR)
        line = self._log("end", facts)
        if self.metrics_file is not None:
            self._record(exit_code, seconds, figures)
        event = Event.SUCCESS if exit_code == 0 else Event.FAIL
        self._ping(event, "\n".join([*lines, line]))
        if self.notify_urls:
            self._notify(envelope)

    def _record(self, exit_code: int, seconds: float, figures: Mapping[str, float]) -> None:
        assert self.metrics_file is not None
        try:
            write_metrics(
                self.metrics_file,
                command=self.command,
                home=self.home,
                exit_code=exit_code,
                seconds=seconds,
                figures=figures,
                ended_at=time.time(),
            )
        except OpsError as error:
            self.warn(f"metrics not written: {error.message}")
        except OSError as error:
            self.warn(f"metrics not written: {from_os_error(error, self.metrics_file).message}")

    def _notify(self, envelope: Mapping[str, Any]) -> None:
        has_failed = envelope["exit_code"] != 0
        recovered = self.notify_on == "recovery" and self._was_failing(has_failed=has_failed)
        if not (has_failed or recovered or self.notify_on == "always"):
            return
        message = build_message(envelope, socket.gethostname(), recovered=recovered)
        for url in self.notify_urls:
            if problem := send(url, message):
                self.warn(f"{describe_target(url)}: {problem}")

    def _was_failing(self, *, has_failed: bool) -> bool:
        """Record a failure, or forget one; return whether the last run failed and this did not."""
        try:
            if not has_failed:
                return take_failure(self.environment, self.command, self.home)
            record_failure(self.environment, self.command, self.home)
        except OpsError as error:
            self.warn(f"recovery will not be notified of: {error.message}")
        except OSError as error:
            problem = from_os_error(error, "state directory").message
            self.warn(f"recovery will not be notified of: {problem}")
        return False

    def _ping(self, event: Event, body: str) -> None:
        if self.ping_url and (problem := ping(self.ping_url, event, body)):
            self.warn(f"{describe_host(self.ping_url)} ({event.value or 'success'}): {problem}")

    def _log(self, event: str, facts: Mapping[str, object]) -> str:
        """Append a line to the log, and return it."""
        line = log_line(event, {"command": self.command, "home": self.home, **facts})
        try:
            if self.log_file == "-":
                self.print_log(line)
            elif self.log_file:
                _append(self.log_file, line)
        except OSError as error:
            self.warn(f"log not written: {from_os_error(error, self.log_file).message}")
        return line


def read_ping_url(option: str | None, file: Path | None, warn: Callable[[str], None]) -> str:
    """Return the URL of the option, or the first line of the file; "" without either.

    Args:
        warn: Called if the file has no URL: a report never prevents the run.

    Raises:
        UsageError: Both are set, or the URL of the option is not valid.
    """
    if option and file:
        raise UsageError("--ping-url: not possible with --ping-url-file")
    if option:
        return check_url(option)
    if file is None:
        return ""
    try:
        text = decode_given(read_given_file(file, _MOST_URL_BYTES), "content")
        return check_url(text.strip().partition("\n")[0])
    except OSError as error:
        problem = from_os_error(error, file).message
    except OpsError as error:
        problem = f"{file}: {error.message}"
    warn(f"no ping: --ping-url-file {problem}")
    return ""


def parse_lines(
    exit_code: int, lines: Sequence[str], *, is_error: bool
) -> tuple[tuple[str, ...], dict[str, Any] | None]:
    """Return the warnings and the error of the JSON object of a run, from its last lines."""
    texts: dict[str, list[str]] = {"error": [], "hint": [], "warning": []}
    for line in lines:
        kind, _, text = line.partition(": ")
        texts.get(kind, []).append(text)
    warnings = tuple(texts["warning"])
    if not is_error:
        return warnings, None
    by_signal = exit_code > InterruptedRunError.LEAST_CODE
    return warnings, {
        "code": InterruptedRunError.code if by_signal else error_class(exit_code).code,
        "message": "".join(texts["error"][-1:]) or f"ended, exit code {exit_code}",
        "hint": texts["hint"],
    }


def read_notify_urls(
    options: Sequence[str], file: Path | None, warn: Callable[[str], None]
) -> tuple[str, ...]:
    """Return the URLs of the options and of the lines of the file, each once.

    Args:
        warn: Called if a line of the file is no URL: a report never prevents the run.

    Raises:
        UsageError: The URL of an option is not valid.
    """
    urls = dict.fromkeys(map(check_notify_url, options))
    try:
        content = read_given_file(file, _MOST_URLS_BYTES) if file else b""
        for line in decode_given(content, "content").splitlines():
            if (text := line.strip()) and not text.startswith("#"):
                urls[check_notify_url(text)] = None
    except OSError as error:
        warn(f"not all are notified: --notify-file {from_os_error(error, file or '').message}")
    except OpsError as error:
        warn(f"not all are notified: --notify-file {file}: {error.message}")
    return tuple(urls)


def _append(path: str, line: str) -> None:
    """Append a line in one write, so that the lines of two runs do not mix."""
    descriptor = open_given_file(Path(path), os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        content = f"{line}\n".encode()
        if _is_torn(descriptor, path):
            content = b"\n" + content
        if rest := content[os.write(descriptor, content) :]:
            os.write(descriptor, rest)  # on a full disk, this raises the reason
    finally:
        os.close(descriptor)


def _is_torn(descriptor: int, path: str) -> bool:
    """Return whether a log ends within a line: a run was killed, or the disk was full."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    with contextlib.suppress(OSError), open(open_given_file(Path(path)), "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
    return False  # writable, but not readable


def log_line(event: str, facts: Mapping[str, object]) -> str:
    """Return a line of logfmt: the time, then key=value, quoted where necessary."""
    moment = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    words = [moment, "sagewai-ops", f"event={event}", f"pid={os.getpid()}"]
    return " ".join([*words, *(f"{key}={_word(value)}" for key, value in facts.items())])


def _word(value: object) -> str:
    text = printable(str(value))
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
