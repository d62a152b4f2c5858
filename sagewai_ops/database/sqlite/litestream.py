"""Run litestream: its version, the databases of its configuration, and restores of a replica.

It is started without a shell, in a session of its own. Its configuration, which can contain
secrets, reaches it as standard input; of the environment it gets what it and the libraries of its
stores read, and what the configuration names. What it prints is data: bounded, and escaped where it
is shown.
"""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.errors import (
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)
from sagewai_ops.fs.given_files import read_given_file
from sagewai_ops.home.companions import NAME
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.text import printable, shell_word

DEFAULT_CONFIGURATION = "/etc/litestream.yml"
# Earlier versions contain SQLite 3.51.2 or older, with the WAL-reset bug of `version_notes`, and
# checkpoint while Sagewai writes. Source: litestream's issue 1432 and pull request 1436.
OLDEST = (0, 5, 17)
_VERSION_SECONDS = 30.0
_PLAN_SECONDS = 300.0  # it lists the replica
_RESTORE_SECONDS = 6 * 3600.0
_MOST_OUTPUT_BYTES = 16 * 1024 * 1024  # a plan has some 200 bytes for each file of the replica
_MOST_CONFIGURATION_BYTES = 60 * 1024  # a pipe has space for 64 KiB
_MOST_MESSAGE_CHARACTERS = 300
_END_SECONDS = 2.0  # from SIGTERM to SIGKILL
_POLL_SECONDS = 0.2
_NAMES = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR")
_PREFIXES = ("LITESTREAM_", "AWS_", "AZURE_", "GOOGLE_", "SSL_", "SSH_", "LC_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_VARIABLE = re.compile(rb"\$(?:\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))")  # as Go's os.Expand reads it
_NOTHING_THERE = "no matching backup files available"


@dataclass(frozen=True, slots=True)
class Replica:
    """A database of litestream's configuration, at a moment.

    Attributes:
        configuration: Path of the file.
        database: The home's own, which the configuration names.
        moment: UTC; None for the newest state.
        environment: Of the run.
    """

    configuration: Path
    database: Path
    moment: datetime | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        """The replica in words."""
        at = f" at {format_moment(self.moment)}" if self.moment else ""
        return f"litestream's replica of {self.database}{at}"


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The state of a database that a replica has.

    Attributes:
        name: Of the database in the configuration.
        at: Of its last change; UTC, as litestream writes it.
        transaction: The number of its last change, in hexadecimal digits.
        size_bytes: Of the files that a restore reads.
    """

    name: str
    at: str
    transaction: str
    size_bytes: int


def parse_source(option: str, text: str) -> datetime | None:
    """Return the moment of `litestream` or `litestream:TIMESTAMP`; None for the newest state.

    Raises:
        UsageError: It is something else, or the time has no zone.
    """
    name, separator, stamp = text.partition(":")
    if name == NAME and not separator:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", stamp))
        if name == NAME and moment.tzinfo:
            return moment.astimezone(timezone.utc)
    raise UsageError(
        f"{option} {printable(text)}: neither litestream nor litestream:TIMESTAMP",
        hint=f"{option} litestream:2026-11-29T03:30:00Z",
    )


def format_moment(moment: datetime) -> str:
    """Return a moment as litestream reads it: RFC 3339, in seconds."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def find_program(environment: Mapping[str, str], program: Path | None = None) -> Path:
    """Return the path of litestream, of a version that may work next to Sagewai.

    Args:
        program: None for the one on PATH.

    Raises:
        NotFoundError: It is not installed.
        UsageError: It is too old, or not litestream.
    """
    found = program or shutil.which(NAME, path=environment.get("PATH", os.defpath))
    if not found:
        raise NotFoundError(
            f"{NAME}: not installed, or not on PATH",
            hint="https://litestream.io/install/  # 0.5.17 or newer",
        )
    path = Path(os.path.abspath(found))
    ended = _run(path, ["version"], _select(environment, frozenset()), b"", _VERSION_SECONDS)
    text = ended.output.decode("utf-8", "replace").strip()
    match = re.fullmatch(r"v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:[-+][\w.+-]*)?", text)
    if ended.code or not match:
        raise UsageError(
            f"{path}: does not print a version of litestream, but {_shown(text) or 'nothing'}",
            hint=f"{shell_word(path)} version",
        )
    if tuple(map(int, match.groups())) < OLDEST:
        raise UsageError(
            f"{path}: version {text}, older than 0.5.17: its SQLite has the WAL-reset bug, which"
            " can damage a database that Sagewai writes while litestream checkpoints it",
            hint="https://litestream.io/install/  # 0.5.17 or newer",
        )
    return path


def read_state(replica: Replica) -> ReplicaState:
    """Return the state that a restore would restore; nothing is written.

    Raises:
        NotFoundError: litestream, the configuration, the database in it, or a state at the moment
            does not exist.
        UsageError: litestream is too old, or refuses its configuration.
        RemoteError: The replica cannot be read.
    """
    return _Session.open(replica).read_state()


def restore_replica(replica: Replica, target: Path) -> ReplicaState:
    """Restore a replica to a new file, with mode 0600.

    Args:
        target: In a private directory.

    Raises:
        NoSpaceError: There is no space for it.
        OpsError: As `read_state`.
    """
    session = _Session.open(replica)
    state = session.read_state()
    session.run(["restore", "-o", os.fspath(target), *session.moment, state.name], _RESTORE_SECONDS)
    return state


@dataclass(frozen=True, slots=True)
class _Session:
    replica: Replica
    program: Path
    content: bytes = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def open(cls, replica: Replica) -> "_Session":
        """Read the configuration and find the program."""
        program = find_program(replica.environment)
        path = replica.configuration
        try:
            limit = _MOST_CONFIGURATION_BYTES
            content = read_given_file(path, limit, public="litestream's configuration")
        except FileNotFoundError as error:
            raise NotFoundError(
                f"configuration {path}: not found", hint="--litestream-config FILE"
            ) from error
        except PermissionError as error:
            raise PermissionDeniedError(
                f"configuration {path}: not readable", hint=f"ls -l {shell_word(path)}"
            ) from error
        except OSError as error:
            raise UsageError(f"configuration {path}: {error.strerror}") from error
        named = {os.fsdecode(b"".join(pair)) for pair in _VARIABLE.findall(content)}
        return cls(replica, program, content, _select(replica.environment, named))

    @property
    def moment(self) -> list[str]:
        """Return the option for the moment."""
        moment = self.replica.moment
        return ["-timestamp", format_moment(moment)] if moment else []

    def run(self, arguments: Sequence[str], seconds: float) -> bytes:
        """Run a command of litestream with the configuration; return what it prints."""
        command, *rest = arguments
        words = [command, "-config", "/dev/stdin", *rest]
        ended = _run(self.program, words, self.environment, self.content, seconds)
        if ended.code:
            raise self.error(command, ended)
        return ended.output

    def read_state(self) -> ReplicaState:
        """Return the state that a restore would restore."""
        name = self.find_name()
        words = ["restore", "-dry-run", "-json", "-o", "/nonexistent/database", *self.moment, name]
        plan = _parse(self.run(words, _PLAN_SECONDS))
        try:
            files = plan["files"]
            return ReplicaState(
                name=name,
                at=str(files[-1]["timestamp"])[:40],
                transaction=str(plan["max_txid"])[:40],
                size_bytes=sum(int(file["size"]) for file in files),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _unknown_output("restore -dry-run") from error

    def find_name(self) -> str:
        """Return the name that the configuration has for the database of the home."""
        wanted = os.path.realpath(self.replica.database)
        found = _parse(self.run(["databases", "-json"], _PLAN_SECONDS))
        try:
            names = [str(item["path"]) for item in found]
        except (KeyError, TypeError) as error:
            raise _unknown_output("databases") from error
        for name in names:
            if os.path.realpath(name) == wanted:
                return name
        path = self.replica.configuration
        raise NotFoundError(
            f"configuration {path}: database {self.replica.database} not found in it",
            hint=f"litestream databases -config {shell_word(path)}",
        )

    def error(self, command: str, ended: "_Ended") -> OpsError:
        """Return the error for a run that failed."""
        lines = [line for line in ended.messages.splitlines() if line.strip()]
        message = _shown(re.sub(r"^Error: ", "", lines[-1])) if lines else f"code {ended.code}"
        if _NOTHING_THERE in message:
            return NotFoundError(
                f"{self.replica.shown}: no state found",
                hint=f"litestream ltx -level all -config {shell_word(self.replica.configuration)}"
                f" {shell_word(self.replica.database)}",
            )
        if "no space left on device" in message:
            return NoSpaceError(f"{self.replica.shown}: {message}")
        if command == "databases":
            return UsageError(
                f"configuration {self.replica.configuration}: {message}",
                hint=f"litestream databases -config {shell_word(self.replica.configuration)}",
            )
        return RemoteError(
            f"{self.replica.shown}: {message}",
            hint=f"litestream restore -dry-run -config {shell_word(self.replica.configuration)}"
            f" {shell_word(self.replica.database)}",
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    code: int
    output: bytes
    messages: str


def _select(environment: Mapping[str, str], named: Collection[str]) -> dict[str, str]:
    """Return the variables that litestream gets."""
    return {
        name: value
        for name, value in environment.items()
        if name in _NAMES or name in named or name.startswith(_PREFIXES) or name.upper() in _PROXIES
    }


def _parse(output: bytes) -> Any:
    try:
        return json.loads(output)
    except (ValueError, RecursionError) as error:
        raise _unknown_output("litestream") from error


def _unknown_output(command: str) -> RemoteError:
    return RemoteError(f"litestream {command}: output not understood", hint="litestream version")


def _shown(text: str) -> str:
    line = printable(text)
    is_short = len(line) <= _MOST_MESSAGE_CHARACTERS
    return line if is_short else f"{line[:_MOST_MESSAGE_CHARACTERS]}..."


def _run(
    program: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    content: bytes,
    seconds: float,
) -> _Ended:
    """Run litestream to its end.

    Raises:
        NotFoundError, PermissionDeniedError, OpsError: It cannot be started.
        RemoteError: It does not end in time, or prints too much; it has ended.
        InterruptedRunError: At a signal; it has ended.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_pipe_with(content))
        with uninterrupted():  # a signal must not lose the process
            process = _start(program, arguments, environment, source)
            stack.enter_context(process)
            stack.callback(_end, process)
        output, messages = _read(process, time.monotonic() + seconds, seconds)
        return _Ended(process.wait(), output, messages.decode("utf-8", "replace"))


def _start(
    program: Path, arguments: Sequence[str], environment: Mapping[str, str], source: int
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            [os.fspath(program), *arguments],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
            umask=0o077,
        )
    except FileNotFoundError as error:
        raise NotFoundError(f"{program}: not found") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{program}: not executable") from error
    except OSError as error:
        raise UsageError(f"{program}: {(error.strerror or 'not started').lower()}") from error


@contextlib.contextmanager
def _pipe_with(content: bytes) -> Iterator[int]:
    """Yield the end of a pipe with this content, of at most `_MOST_CONFIGURATION_BYTES`."""
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, content)
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _read(
    process: "subprocess.Popen[bytes]", deadline: float, seconds: float
) -> tuple[bytes, bytes]:
    output, messages = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, kept in ((process.stdout, output), (process.stderr, messages)):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, kept)
        while selector.get_map():
            # Another process that it started can keep its output open.
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else _POLL_SECONDS)
            if has_ended and not ready:
                break
            for key, _events in ready:
                piece = os.read(key.fd, 64 * 1024)
                if piece:
                    key.data.extend(piece)
                else:
                    selector.unregister(key.fileobj)
            if len(output) + len(messages) > _MOST_OUTPUT_BYTES:
                raise RemoteError(f"{NAME}: prints more than {_MOST_OUTPUT_BYTES} bytes, ended")
            if time.monotonic() >= deadline:
                raise RemoteError(f"{NAME}: not ended within {seconds:g} s, ended")
    return bytes(output), bytes(messages)


@uninterrupted()
def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a litestream that still runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
