"""One run of an engine: restic or borg.

It is started without a shell, in a session of its own, with a file or nothing as its standard
input. Secrets reach it through its environment and a pipe, never through its arguments. What it
prints is data: bounded, and escaped where it is shown.
"""

import contextlib
import os
import re
import resource
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sagewai_ops.errors import DamagedError, NotFoundError, OpsError, PermissionDeniedError
from sagewai_ops.process.parent import parent_death_signal
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.process.threads import is_ending
from sagewai_ops.text import printable

MOST_OUTPUT_BYTES = 64 * 1024 * 1024  # a list of 100,000 snapshots has some 40 MB
_MOST_MESSAGE_BYTES = 256 * 1024  # of stderr; what follows is read and dropped
_MOST_SHOWN = 300  # characters of a message
_PIECE_BYTES = 64 * 1024
_POLL_SECONDS = 0.2  # between two looks whether the engine ended with its output still open
_END_SECONDS = 10.0  # from SIGTERM to SIGKILL: an engine removes its lock in a remote repository
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
    most_bytes: int = MOST_OUTPUT_BYTES,
    most_file_bytes: int | None = None,
) -> Finished:
    """Run an engine to its end.

    Args:
        arguments: Without secrets.
        directory: Its working directory.
        content: Its standard input; None for an empty one.
        most_bytes: Of its output.
        most_file_bytes: Of each file that it writes, in its cache too; None for no limit.

    Raises:
        NotFoundError, PermissionDeniedError: It cannot be started.
        DamagedError: It prints more than `most_bytes`, or writes a longer file.
        InterruptedRunError: At a signal; the engine has ended.
    """
    if is_ending():
        raise OpsError(f"{access.program}: not started, the run ends")
    with contextlib.ExitStack() as stack:
        with uninterrupted():  # a signal must not lose the process
            process = _start(stack, access, arguments, directory, content, most_file_bytes)
            stack.enter_context(process)
            stack.callback(_end, process, access.end_signal)
        output, messages = _read(process, access.program, most_bytes)
        code = process.wait()
    lines = messages.decode("utf-8", "replace").splitlines()
    is_too_long = any(word in line for line in lines for word in _TOO_LONG)
    if code and most_file_bytes is not None and is_too_long:
        raise DamagedError(f"{access.program}: a file has more than {most_file_bytes} bytes")
    return Finished(code, output, tuple(line for line in lines if line.strip()))


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
    most_file_bytes: int | None,
) -> "subprocess.Popen[bytes]":
    environment = dict(access.environment)
    descriptors = []
    if access.password:
        descriptor = stack.enter_context(_pipe_with(access.password))
        environment[access.password_variable] = access.password_format.format(descriptor)
        descriptors.append(descriptor)
    source = stack.enter_context(_file_with(content)) if content is not None else subprocess.DEVNULL
    request = _limited(parent_death_signal(access.end_signal), most_file_bytes)
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
            preexec_fn=request,
        )
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{access.program}: not installed", hint=f"apt install {access.package}"
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{access.program}: not executable") from error
    except OSError as error:
        raise OpsError(f"{access.program}: {(error.strerror or 'not started').lower()}") from error


def _limited(request: Callable[[], None], most_file_bytes: int | None) -> Callable[[], None]:
    """Return a function to call between fork and exec, which limits the files of the process."""
    if most_file_bytes is None:
        return request
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    lower = tuple(
        most_file_bytes if limit == resource.RLIM_INFINITY else min(limit, most_file_bytes)
        for limit in limits
    )

    def prepare() -> None:
        request()
        resource.setrlimit(resource.RLIMIT_FSIZE, (lower[0], lower[1]))

    return prepare


@contextlib.contextmanager
def _pipe_with(text: str) -> Iterator[int]:
    """Yield the end of a pipe with a short text, which a process can read once."""
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, text.encode())
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


@contextlib.contextmanager
def _file_with(content: bytes) -> Iterator[int]:
    """Yield an unlinked file with this content: a pipe would need a thread that fills it."""
    with tempfile.TemporaryFile() as stream:
        stream.write(content)
        stream.flush()
        os.lseek(stream.fileno(), 0, os.SEEK_SET)
        yield stream.fileno()


def _read(process: "subprocess.Popen[bytes]", program: str, most_bytes: int) -> tuple[bytes, bytes]:
    output, messages = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            # Another process that the engine started can keep its output open.
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else _POLL_SECONDS)
            if is_ending():
                raise OpsError(f"{program}: ended with the run")
            if has_ended and not ready:
                break
            for key, _events in ready:
                piece = os.read(key.fd, _PIECE_BYTES)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    output += piece
                elif len(messages) < _MOST_MESSAGE_BYTES:
                    messages += piece
            if len(output) > most_bytes:
                raise DamagedError(f"{program}: prints more than {most_bytes} bytes")
    return bytes(output), bytes(messages)


@uninterrupted()
def _end(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """End an engine that still runs, and what it has started."""
    if process.poll() is not None:
        return
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
    while process.poll() is None and time.monotonic() < deadline:
        # Its output must not keep it waiting.
        for stream in (process.stdout, process.stderr):
            if stream and not stream.closed:
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
