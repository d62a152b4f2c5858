"""A child process: its standard input, its two streams, and its end.

It is started with pipes as its output, in a session of its own, so that a signal ends what it has
started too. What it prints is bounded, and it is ended at a deadline, at an interruption, and when
its caller stops reading.
"""

import contextlib
import math
import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from sagewai_ops.process.interpreter import find_interpreter
from sagewai_ops.process.parent import end_if_stopped
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.records import dataclass

_PIECE_BYTES = 64 * 1024
_POLL_SECONDS = 0.2  # between two looks whether it has ended with its output still open


class OutputTooLongError(Exception):
    """A process prints more bytes than allowed."""


class TimedOutError(Exception):
    """A process has not ended at its deadline."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that has ended.

    Attributes:
        code: Its exit code; minus the number of a signal that ended it.
        messages: On stderr, as far as kept.
    """

    code: int
    output: bytes
    messages: bytes


@contextlib.contextmanager
def child(
    start: Callable[[], "subprocess.Popen[bytes]"],
    *,
    end_seconds: float,
    number: signal.Signals = signal.SIGTERM,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process, and end it if it still runs at the end of the block.

    Args:
        start: Starts it, in a session of its own.
        end_seconds: From the signal to SIGKILL.
        number: The signal that ends it.
    """
    with contextlib.ExitStack() as stack:
        with uninterrupted():  # a signal must not lose the process
            process = start()
            stack.enter_context(process)
            stack.callback(end, process, end_seconds, number)
        yield process


@contextlib.contextmanager
def python_child(module: str, *, end_seconds: float) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `main` of one of our modules for the block, with pipes as its input and output.

    It is killed at an error, for SIGTERM would wait for a process that is stopped; and one that
    stays stopped is killed too.
    """
    interpreter = find_interpreter()

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            interpreter.module_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=interpreter.variables,
            pass_fds=interpreter.descriptors,
            start_new_session=True,  # the terminal's signals are for the parent
        )

    with child(start, end_seconds=end_seconds, number=signal.SIGKILL) as process:
        end_if_stopped(process.pid)
        yield process


def read_streams(
    process: "subprocess.Popen[bytes]",
    *,
    most_bytes: int,
    most_message_bytes: int,
    seconds: float = math.inf,
    check: Callable[[], None] = lambda: None,
) -> Finished:
    """Read what a process prints, and wait for its end.

    Args:
        most_bytes: Of its output.
        most_message_bytes: Of stderr; what follows is read and dropped.
        seconds: Until its end.
        check: Called several times a second; it raises an error to stop.

    Raises:
        OutputTooLongError: It prints more than `most_bytes`.
        TimedOutError: It has not ended in time.
    """
    deadline = time.monotonic() + seconds
    output, messages = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            # Another process that it started can keep its output open.
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else _POLL_SECONDS)
            check()
            if has_ended and not ready:
                break
            for key, _events in ready:
                piece = os.read(key.fd, _PIECE_BYTES)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    output += piece
                else:
                    messages += piece[: most_message_bytes - len(messages)]
            if len(output) > most_bytes:
                raise OutputTooLongError
            if time.monotonic() >= deadline:
                raise TimedOutError
    rest = None if math.isinf(seconds) else max(deadline - time.monotonic(), 0)
    try:  # it may have closed its output and still run
        code = process.wait(rest)
    except subprocess.TimeoutExpired:
        raise TimedOutError from None
    return Finished(code, bytes(output), bytes(messages))


@uninterrupted()
def end(
    process: "subprocess.Popen[bytes]",
    seconds: float,
    number: signal.Signals = signal.SIGTERM,
    *,
    alone: bool = False,
) -> int:
    """End a process that still runs, and what it has started; return its exit code.

    Args:
        seconds: From the signal to SIGKILL.
        alone: Whether the signal is for the process alone, which ends what it has started.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (os.kill if alone else os.killpg)(process.pid, number)
        for stream in (process.stdout, process.stderr):
            if stream:  # its output must not keep it waiting
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


@contextlib.contextmanager
def pipe_with(content: bytes) -> Iterator[int]:
    """Yield the end of a pipe with this content, which a process can read once.

    Args:
        content: At most 64 KiB, the size of a pipe.
    """
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, content)
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


def limit_files(most_bytes: int | None) -> Callable[[], None]:
    """Return a function to call between fork and exec, which limits the files that it writes.

    Args:
        most_bytes: Of each file; None for no limit.
    """
    if most_bytes is None:
        return lambda: None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    soft, hard = (
        most_bytes if limit == resource.RLIM_INFINITY else min(limit, most_bytes)
        for limit in limits
    )
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
