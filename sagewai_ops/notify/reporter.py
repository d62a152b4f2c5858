"""Who is told of a run besides its terminal: a watchdog, a metrics file, a log.

None of them can fail the run: what goes wrong with them is a warning.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.errors import OpsError, UsageError
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.notify.healthcheck import Event, checked, ping, shown
from sagewai_ops.notify.prometheus import figures_of, record
from sagewai_ops.text import printable

_MOST_URL_BYTES = 4096
_ERROR = "error: "  # how a terminal begins such a line
_PLAIN = re.compile(r"[^\s\"=\\]+")


@dataclass(frozen=True, slots=True)
class Watchers:
    """Who is told.

    Attributes:
        ping_url: "" for nobody; a secret.
        log_file: `-` for stderr.
        warn: Takes what went wrong with one of them.
        say: Takes a line of the log that goes to stderr.
    """

    command: str
    home: str
    warn: Callable[[str], None]
    say: Callable[[str], None]
    ping_url: str = ""
    metrics_file: Path | None = None
    log_file: str = ""

    def begin(self) -> None:
        """Tell that the run begins."""
        self._log("start", {})
        self._ping(Event.START, "")

    def end(
        self, exit_code: int, seconds: float, result: Mapping[str, Any] | None, said: list[str]
    ) -> None:
        """Tell how it ended.

        Args:
            result: Of the JSON envelope; None after an error.
            said: The last lines that stderr got, for the watchdog.
        """
        figures = figures_of(result) if result else {}
        facts: dict[str, object] = {"exit": exit_code, "seconds": f"{seconds:.3f}", **figures}
        if wrong := next((text for text in said if text.startswith(_ERROR)), ""):
            facts["error"] = wrong.removeprefix(_ERROR)
        line = self._log("end", facts)
        if self.metrics_file is not None:
            self._record(exit_code, seconds, figures)
        is_good = exit_code == 0
        self._ping(Event.SUCCESS if is_good else Event.FAIL, "\n".join([*said, line]))

    def _record(self, exit_code: int, seconds: float, figures: Mapping[str, float]) -> None:
        assert self.metrics_file is not None
        try:
            record(
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

    def _ping(self, event: Event, body: str) -> None:
        if self.ping_url and (problem := ping(self.ping_url, event, body)):
            self.warn(f"{shown(self.ping_url)} ({event.value or 'success'}): {problem}")

    def _log(self, event: str, facts: Mapping[str, object]) -> str:
        """Add a line to the log, and give it."""
        line = _line(event, {"command": self.command, "home": self.home, **facts})
        try:
            if self.log_file == "-":
                self.say(line)
            elif self.log_file:
                _append(self.log_file, line)
        except OSError as error:
            self.warn(f"log not written: {from_os_error(error, self.log_file).message}")
        return line


def url_of(option: str | None, file: Path | None) -> str:
    """Give the watchdog's URL from the option or from the first line of a file; "" for none.

    Raises:
        UsageError: Both are given, the file cannot be read, or it is no URL.
    """
    if option and file:
        raise UsageError("--ping-url and --ping-url-file: both are given", hint="leave one out")
    if option:
        return checked(option)
    if file is None:
        return ""
    try:
        with open(file, "rb") as stream:
            text = stream.read(_MOST_URL_BYTES).decode("utf-8", "replace")
    except OSError as error:
        refused = from_os_error(error, file)
        raise UsageError(refused.message, hint="write the URL into it, mode 0600") from error
    return checked(text.strip().partition("\n")[0])


def _append(path: str, line: str) -> None:
    """Write a whole line at once, so that the lines of two runs do not mix."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    descriptor = os.open(path, flags, 0o600)
    try:
        content = f"{line}\n".encode()
        if _is_torn(descriptor, path):
            content = b"\n" + content
        if rest := content[os.write(descriptor, content) :]:
            os.write(descriptor, rest)  # of a full disk, this tells why
    finally:
        os.close(descriptor)


def _is_torn(descriptor: int, path: str) -> bool:
    """Tell whether a log ends in half a line: the run was killed, or the disk was full."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
    return False  # one may be allowed to write to it and not to read it


def _line(event: str, facts: Mapping[str, object]) -> str:
    """Write logfmt: a time, then key=value, quoted where it must be."""
    moment = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    words = [moment, "sagewai-ops", f"event={event}", f"pid={os.getpid()}"]
    return " ".join([*words, *(f"{key}={_word(value)}" for key, value in facts.items())])


def _word(value: object) -> str:
    text = printable(str(value))
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
