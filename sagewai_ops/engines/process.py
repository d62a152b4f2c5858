"""One run of an engine: restic or borg.

It is started without a shell, in a session of its own, with a file or nothing as its standard
input. Secrets reach it through its environment and a pipe, never through its arguments. What it
prints is data: bounded, and escaped where it is shown.
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from sagewai_ops.errors import DamagedError, NotFoundError, OpsError, PermissionDeniedError
from sagewai_ops.process.child import (
    OutputTooLongError,
    child,
    limit_files,
    pipe_with,
    read_streams,
)
from sagewai_ops.process.parent import parent_death_signal
from sagewai_ops.process.threads import is_ending
from sagewai_ops.records import dataclass
from sagewai_ops.remote.store import ENTRY_BYTES, Bounds
from sagewai_ops.text import printable

MOST_OUTPUT_BYTES = 64 * 1024 * 1024  # a list of 100,000 snapshots has some 40 MB
_MOST_MESSAGE_BYTES = 256 * 1024  # of stderr; what follows is read and dropped
_MOST_SHOWN = 300  # characters of a message
_END_SECONDS = 10.0  # from SIGTERM to SIGKILL: an engine removes its lock in a remote repository
_MEASURE_SECONDS = 1.0  # between two measurements of what it has written
_MEASURE_SHARE = 20  # times the duration of one
# What an engine and the programs that it starts (ssh, rclone) need, and no secret of Sagewai.
_NAMES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")
_PREFIXES = (
    *("RESTIC_", "BORG_", "RCLONE_", "XDG_", "LC_", "SSH_", "SSL_", "GO"),
    *("AWS_", "AZURE_", "GOOGLE_", "B2_", "OS_", "ST_"),
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_TOO_LONG = ("File too large", "file too large", "SIGXFSZ")  # of borg and restic
_LOGIN = re.compile(r"//[^/@\s]*:[^/\s]*@")  # user and password of a URL


@dataclass(frozen=True, slots=True)
class Access:
    """How an engine is started for a repository.

    Attributes:
        program: Its name, found in the PATH of `environment`.
        environment: Complete, from `engine_environment`.
        password: Of the repository; "" to leave it to the engine's own variables.
        password_variable: Names a descriptor, from which the engine reads the password.
        password_format: Of its value, with the number of the descriptor.
        end_signal: At which it ends and removes its lock.
        package: Of Debian, that installs it.
    """

    program: str
    environment: Mapping[str, str] = field(repr=False)
    password: str = field(default="", repr=False)
    password_variable: str = ""
    password_format: str = "{}"  # noqa: S105 - no password
    end_signal: signal.Signals = signal.SIGTERM
    package: str = "restic"


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that has ended.

    Attributes:
        code: Its exit code; minus the number of a signal that ended it.
        messages: The lines on stderr, as far as kept.
    """

    code: int
    output: bytes
    messages: tuple[str, ...]


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that an engine needs."""
    return {
        name: value
        for name, value in environment.items()
        if name in _NAMES or name.startswith(_PREFIXES) or name.upper() in _PROXIES
    }


def run_engine(
    access: Access,
    arguments: Sequence[str],
    *,
    directory: Path | None = None,
    content: bytes | None = None,
    passed: Sequence[int] = (),
    most_bytes: int = MOST_OUTPUT_BYTES,
    bounds: Bounds | None = None,
) -> Finished:
    """Run an engine to its end.

    Args:
        arguments: Without secrets.
        directory: Its working directory.
        content: Its standard input; None for an empty one.
        passed: Descriptors that it gets, with the same numbers.
        most_bytes: Of its output.
        bounds: Of each file that it writes, in its cache too, and of all in `directory`.

    Raises:
        NotFoundError, PermissionDeniedError: It cannot be started.
        DamagedError: It prints or writes more than allowed.
        InterruptedRunError: At a signal; the engine has ended.
    """
    growth = (
        _Growth(access.program, directory, bounds.total_bytes) if directory and bounds else None
    )

    def check() -> None:
        if is_ending():
            raise OpsError(f"{access.program}: ended with the run")
        if growth:
            growth.check()

    check()
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen[bytes]:
            return _start(*(stack, access, arguments, directory, content, passed, bounds))

        process = stack.enter_context(
            child(start, end_seconds=_END_SECONDS, number=access.end_signal)
        )
        try:
            finished = read_streams(
                process,
                most_bytes=most_bytes,
                most_message_bytes=_MOST_MESSAGE_BYTES,
                check=check,
            )
        except OutputTooLongError:
            raise DamagedError(f"{access.program}: prints more than {most_bytes} bytes") from None
    lines = finished.messages.decode("utf-8", "replace").splitlines()
    is_too_long = any(word in line for line in lines for word in _TOO_LONG)
    if finished.code and bounds and is_too_long:
        raise DamagedError(f"{access.program}: a file has more than {bounds.file_bytes} bytes")
    if growth:
        growth.check(is_last=True)
    shown = tuple(line for line in lines if line.strip())
    return Finished(finished.code, finished.output, shown)


def shown(text: str) -> str:
    """Return a line of an engine as a part of a message: escaped, short, without a password."""
    line = printable(_LOGIN.sub("//***@", text.strip()))
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


def _start(
    stack: contextlib.ExitStack,
    access: Access,
    arguments: Sequence[str],
    directory: Path | None,
    content: bytes | None,
    passed: Sequence[int],
    bounds: Bounds | None,
) -> "subprocess.Popen[bytes]":
    environment = dict(access.environment)
    descriptors = [*passed]
    if access.password:
        descriptor = stack.enter_context(pipe_with(access.password.encode()))
        environment[access.password_variable] = access.password_format.format(descriptor)
        descriptors.append(descriptor)
    source = stack.enter_context(_file_with(content)) if content is not None else subprocess.DEVNULL
    request, limit = (
        parent_death_signal(access.end_signal),
        limit_files(bounds.file_bytes if bounds else None),
    )

    def prepare() -> None:
        # One that waits for a pipe ends with it. At a signal, restic first writes a message to a
        # pipe without a reader, which ends it before it has removed its lock.
        if not passed:
            request()
        limit()

    try:
        return subprocess.Popen(
            (access.program, *arguments),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
            env=environment,
            pass_fds=descriptors,
            start_new_session=True,
            preexec_fn=prepare,
        )
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{access.program}: not installed", hint=f"apt install {access.package}"
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{access.program}: not executable") from error
    except OSError as error:
        raise OpsError(f"{access.program}: {(error.strerror or 'not started').lower()}") from error


class _Growth:
    """How much a directory grows while an engine writes to it.

    Args:
        directory: Private.
    """

    def __init__(self, program: str, directory: Path, most_bytes: int) -> None:
        self._program = program
        self._directory = directory
        self._most_bytes = most_bytes
        self._before = _size_of(directory)
        self._next = 0.0

    def check(self, *, is_last: bool = False) -> None:
        """Check the growth, if the last time is not just now.

        Raises:
            DamagedError: It is more than allowed.
        """
        started = time.monotonic()
        if started < self._next and not is_last:
            return
        if _size_of(self._directory) - self._before > self._most_bytes:
            raise DamagedError(f"{self._program}: writes more than {self._most_bytes} bytes")
        now = time.monotonic()
        self._next = now + max(_MEASURE_SECONDS, _MEASURE_SHARE * (now - started))


def _size_of(directory: Path) -> int:
    """Return what the entries of a directory have on the disk, each a block at least."""
    total, directories = 0, [os.fspath(directory)]
    while directories:
        with contextlib.suppress(OSError), os.scandir(directories.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # just renamed
                    found = entry.stat(follow_symlinks=False)
                    # Neither holes nor what a file system allocates in advance.
                    total += max(min(found.st_size, found.st_blocks * 512), ENTRY_BYTES)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
    return total


@contextlib.contextmanager
def _file_with(content: bytes) -> Iterator[int]:
    """Yield a file without a name with this content: a pipe would need a thread that fills it."""
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):  # a file in TMPDIR can have a name for a moment
            stream = stack.enter_context(open(os.memfd_create("content"), "w+b"))
        else:
            stream = stack.enter_context(tempfile.TemporaryFile())
        stream.write(content)
        stream.flush()
        os.lseek(stream.fileno(), 0, os.SEEK_SET)
        yield stream.fileno()
