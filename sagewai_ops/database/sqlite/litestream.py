"""Run litestream: its version, the databases of its configuration, and restores of a replica.

It is started without a shell, in a session of its own. Its configuration, which can contain
secrets, reaches it as standard input; of the environment it gets what it and the libraries of its
stores read, and what the configuration names. Where root works with the rights of a home's owner,
that user can read both in /proc: then it gets no credentials of root's environment, and only a
configuration that the user can read. What it prints is data: bounded, without the secrets of the
configuration, and escaped where it is shown.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.errors import (
    DamagedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)
from sagewai_ops.fs.free_space import require_free_bytes, usable_bytes
from sagewai_ops.fs.given_files import is_routed, read_given_file
from sagewai_ops.home.companions import NAME
from sagewai_ops.process.child import (
    OutputTooLongError,
    TimedOutError,
    child,
    limit_files,
    pipe_with,
    read_streams,
)
from sagewai_ops.process.parent import parent_death_signal
from sagewai_ops.records import dataclass
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
_SECOND = timedelta(seconds=1)  # litestream writes times in seconds, rounded down
_NAMES = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR")
_PREFIXES = ("LITESTREAM_", "AWS_", "AZURE_", "GOOGLE_", "SSL_", "SSH_", "LC_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_VARIABLE = re.compile(rb"\$(?:\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))")  # as Go's os.Expand reads it
_USER_IN_URL = re.compile(r"//[^/@\s]*@")
_SECRET = re.compile(
    rb"(?:password|passphrase|secret|key|token|url)[\w-]*[\"']?[ \t]*:[ \t]*"
    rb"(?=(?:([^\s,}]+)|))(?:\"([^\"\n]+)\"|'([^'\n]+)'|([^\n]+?)(?=[ \t]*(?:\s#|\r?\n|\Z)))",
    re.IGNORECASE,
)
_LEAST_SECRET_CHARACTERS = 6
# A connection that ends within a file is one of these and, after it, one of the others.
_NETWORK = re.compile("operation error|response error|max retries exceeded|reopen ltx file")
_DAMAGE = re.compile("checksum mismatch|decode database|decode page|must start with page number")
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
        is_behind: Whether a moment was given, and the replica has nothing of that moment or later.
    """

    name: str
    at: str
    transaction: str
    size_bytes: int
    is_behind: bool = False

    @property
    def moment(self) -> datetime | None:
        """The time of its last change; None if litestream writes it in an unknown form."""
        return parse_moment(self.at)

    @property
    def next_moment(self) -> str:
        """The first second after its last change: the moment that names it."""
        return format_moment(self.moment + _SECOND) if self.moment else "TIMESTAMP"


def parse_source(option: str, text: str) -> datetime | None:
    """Return the moment of `litestream` or `litestream:TIMESTAMP`; None for the newest state.

    Raises:
        UsageError: It is something else, or the time has no zone.
    """
    name, separator, stamp = text.partition(":")
    if name == NAME and not separator:
        return None
    moment = parse_moment(stamp) if name == NAME else None
    if moment:
        return moment
    raise UsageError(
        f"{option} {printable(text)}: neither litestream nor litestream:TIMESTAMP",
        hint=f"{option} litestream:2026-11-29T03:30:00Z",
    )


def parse_moment(text: str) -> datetime | None:
    """Return a time in UTC; None for another text, or one without a zone."""
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
        if moment.tzinfo:
            return moment.astimezone(timezone.utc)
    return None


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
        DamagedError: A file of the replica is damaged.
        RemoteError: The replica cannot be read.
    """
    return _Session.open(replica).read_state()


def restore_replica(
    replica: Replica, target: Path, *, most_bytes: int | None = None, option: str = "--to DIR"
) -> ReplicaState:
    """Restore a replica to a new file, with mode 0600; return the state that the file has.

    Args:
        target: In a private directory.
        most_bytes: The size at which the restore ends, because a replica is compressed and may
            become any (default: what the disk has, less a reserve).
        option: The option that names another directory, for the hint.

    Raises:
        NoSpaceError: There is no space for it.
        OpsError: As `read_state`.
    """
    session = _Session.open(replica)
    state = session.read_state()
    require_free_bytes(target.parent, state.size_bytes, option=option)
    usable = usable_bytes(target.parent)
    session.run(
        ["restore", "-o", os.fspath(target), "-txid", state.transaction, state.name],
        _RESTORE_SECONDS,
        most_bytes=min(usable, most_bytes or usable),
        option=option,
    )
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
        if is_routed() and not os.access(path, os.R_OK):
            raise PermissionDeniedError(
                f"configuration {path}: not readable by uid {os.getuid()}, whose rights litestream"
                " gets: that user could read it in /proc",
                hint="sudo -u USER sagewai-ops ...  # with a configuration that USER can read",
            )
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
            raise UsageError(
                f"configuration {path}: {error.strerror}",
                hint="name a file: --litestream-config FILE",
            ) from error
        named = {os.fsdecode(b"".join(pair)) for pair in _VARIABLE.findall(content)}
        return cls(replica, program, content, _select(replica.environment, named))

    @property
    def secrets(self) -> set[str]:
        """Return what no message shows: values of the configuration that may be secrets."""
        values = {
            os.fsdecode(part) for parts in _SECRET.findall(self.content) for part in parts if part
        }
        for value in tuple(values):  # what is wrong in an URL is shown without the rest of it
            if match := re.search("//(.*)@", value):
                values.update(re.split("[:/@]", match[1]))
        names = {os.fsdecode(b"".join(pair)) for pair in _VARIABLE.findall(self.content)}
        values |= {self.environment.get(name, "") for name in names if name not in _NAMES}
        return {value for value in values if len(value) >= _LEAST_SECRET_CHARACTERS}

    @property
    def moment(self) -> list[str]:
        """Return the option for the moment."""
        moment = self.replica.moment
        return ["-timestamp", format_moment(moment)] if moment else []

    def run(
        self,
        arguments: Sequence[str],
        seconds: float,
        *,
        most_bytes: int | None = None,
        option: str = "",
    ) -> bytes:
        """Run a command of litestream with the configuration; return what it prints."""
        command, *rest = arguments
        words = [command, "-config", "/dev/stdin", *rest]
        ended = _run(self.program, words, self.environment, self.content, seconds, most_bytes)
        if ended.code:
            raise self.error(command, ended, option)
        return ended.output

    def read_state(self) -> ReplicaState:
        """Return the state that a restore would restore."""
        name = self.find_name()
        state = self.plan(name, self.moment)
        moment, last = self.replica.moment, state.moment
        if moment is None or last is None or moment <= last + _SECOND:
            return state
        newest = self.plan(name, [])
        return replace(state, is_behind=newest.transaction == state.transaction)

    def plan(self, name: str, moment: Sequence[str]) -> ReplicaState:
        """Return the state of a database at a moment."""
        words = ["restore", "-dry-run", "-json", "-o", "/nonexistent/database", *moment, name]
        plan = _parse(self.run(words, _PLAN_SECONDS), "restore -dry-run")
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
        found = _parse(self.run(["databases", "-json"], _PLAN_SECONDS), "databases")
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

    def masked(self, text: str) -> str:
        """Return a message of litestream without secrets of the configuration."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return _USER_IN_URL.sub("//***@", text)

    def error(self, command: str, ended: "_Ended", option: str) -> OpsError:
        """Return the error for a run that failed."""
        lines = [line for line in ended.messages.splitlines() if line.strip()]
        last = self.masked(re.sub(r"^Error: ", "", lines[-1])) if lines else f"code {ended.code}"
        message = _shown(last)
        if _NOTHING_THERE in message:
            return NotFoundError(
                f"{self.replica.shown}: no state found",
                hint=f"litestream ltx -level all -config {shell_word(self.replica.configuration)}"
                f" {shell_word(self.replica.database)}",
            )
        if "no space left on device" in message or "file too large" in message:
            hint = f"name another directory: {option}" if option else ""
            return NoSpaceError(f"{self.replica.shown}: {message}", hint=hint)
        if _DAMAGE.search(message) and not _NETWORK.search(message):
            return DamagedError(
                f"{self.replica.shown}: damaged, {message}",
                hint="run it again, or choose an earlier moment: litestream:TIMESTAMP",
            )
        if command == "databases":
            return UsageError(
                f"configuration {self.replica.configuration}: {message}",
                hint=f"litestream databases -config {shell_word(self.replica.configuration)}",
            )
        if is_routed():
            return RemoteError(
                f"{self.replica.shown}: {message}",
                hint="sudo -u USER sagewai-ops ...  # credentials of root's environment are not"
                " passed to a process of the home's owner",
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
    if is_routed():  # it runs as a user who must not see what root's environment has
        return {name: environment[name] for name in _NAMES if name in environment}
    return {
        name: value
        for name, value in environment.items()
        if name in _NAMES or name in named or name.startswith(_PREFIXES) or name.upper() in _PROXIES
    }


def _parse(output: bytes, command: str) -> Any:
    try:
        return json.loads(output)
    except (ValueError, RecursionError) as error:
        raise _unknown_output(command) from error


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
    most_bytes: int | None = None,
) -> _Ended:
    """Run litestream to its end.

    Args:
        most_bytes: The size at which a file that it writes ends; None for no limit.

    Raises:
        NotFoundError, PermissionDeniedError, OpsError: It cannot be started.
        RemoteError: It does not end in time, or prints too much; it has ended.
        InterruptedRunError: At a signal; it has ended.
    """
    with pipe_with(content) as source:

        def start() -> subprocess.Popen[bytes]:
            return _start(program, arguments, environment, source, most_bytes)

        try:
            with child(start, end_seconds=_END_SECONDS) as process:
                finished = read_streams(
                    process,
                    most_bytes=_MOST_OUTPUT_BYTES,
                    most_message_bytes=_MOST_OUTPUT_BYTES,
                    seconds=seconds,
                )
        except OutputTooLongError:
            raise RemoteError(
                f"{NAME}: prints more than {_MOST_OUTPUT_BYTES} bytes, ended"
            ) from None
        except TimedOutError:
            raise RemoteError(f"{NAME}: not ended within {seconds:g} s, ended") from None
    messages = finished.messages.decode("utf-8", "replace")
    return _Ended(finished.code, finished.output, messages)


def _start(
    program: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    source: int,
    most_bytes: int | None,
) -> "subprocess.Popen[bytes]":
    request, limit = parent_death_signal(signal.SIGTERM), limit_files(most_bytes)

    def prepare() -> None:
        """Between fork and exec."""
        request()
        limit()

    try:
        return subprocess.Popen(
            [os.fspath(program), *arguments],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=prepare,
            umask=0o077,
        )
    except FileNotFoundError as error:
        raise NotFoundError(f"{program}: not found") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{program}: not executable") from error
    except OSError as error:
        raise UsageError(f"{program}: {(error.strerror or 'not started').lower()}") from error
