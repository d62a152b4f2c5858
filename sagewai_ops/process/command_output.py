"""The output of a program that prints a secret: a passphrase or a private key.

The program is started without a shell, with /dev/null as its standard input, in a session of its
own, so that it has no terminal, and a signal ends what it has started too. Its output is returned
and never shown. Its messages may contain the secret as well: that there were some is reported.
"""

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence

from sagewai_ops.errors import (
    KeyMissingError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    UsageError,
)
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.text import printable, shell_word

SECONDS = 60.0  # for a person to touch a hardware key, or a server to answer
MOST_BYTES = 64 * 1024  # of output; a key has some hundred
_POLL_SECONDS = 0.1  # between two looks whether the program has ended with its output still open
_END_SECONDS = 2.0  # from SIGTERM to SIGKILL
_ERRORS = {FileNotFoundError: NotFoundError, PermissionError: PermissionDeniedError}


def split_command(text: str) -> list[str]:
    """Return the words of a command, split as a POSIX shell does, without any expansion.

    Raises:
        ValueError: A quotation is not closed, or there is no word.
    """
    words = shlex.split(text)
    if not words or not words[0]:
        raise ValueError("empty")
    return words


def read_output(words: Sequence[str], what: str) -> bytes:
    """Run a program and return what it prints.

    Args:
        words: The program and its arguments.
        what: What the command is, for errors.

    Raises:
        NotFoundError, PermissionDeniedError: The program cannot be started.
        KeyMissingError: It failed, or did not end within `SECONDS`.
        UsageError: It is not a program, or prints more than `MOST_BYTES`.
        InterruptedRunError: At a signal; the program has ended.
    """
    name = f"{what} {printable(words[0])}"
    with contextlib.ExitStack() as stack:
        with uninterrupted():  # a signal must not lose the process
            process = _start(words, name)
            stack.enter_context(process)
            stack.callback(_end, process)
        return _read(process, name, time.monotonic() + SECONDS, words)


def _start(words: Sequence[str], name: str) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        kind = next((ours for theirs, ours in _ERRORS.items() if isinstance(error, theirs)), None)
        # ENOEXEC and others: it is no program.
        raise (kind or UsageError)(
            f"{name}: {(error.strerror or 'not started').lower()}",
            hint=f"command -v {shell_word(words[0])}",
        ) from error


def _read(
    process: "subprocess.Popen[bytes]", name: str, deadline: float, words: Sequence[str]
) -> bytes:
    output, has_message = bytearray(), False
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            # Another process that the program started can keep its output open.
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else _POLL_SECONDS)
            if has_ended and not ready:
                break
            for key, _events in ready:
                piece = os.read(key.fd, MOST_BYTES)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    output += piece
                else:
                    has_message = True
            if len(output) > MOST_BYTES:
                raise UsageError(
                    f"{name}: prints more than {MOST_BYTES} bytes, not a key", hint=_hint(words)
                )
            if time.monotonic() >= deadline:
                raise _timeout(name, words)
    try:
        code = process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise _timeout(name, words) from None
    if code:
        end = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
        more = ", with a message on stderr, which is not shown" if has_message else ""
        raise KeyMissingError(f"{name}: {end}{more}", hint=_hint(words))
    return bytes(output)


def _timeout(name: str, words: Sequence[str]) -> OpsError:
    return KeyMissingError(f"{name}: no result within {SECONDS:g} s, ended", hint=_hint(words))


def _hint(words: Sequence[str]) -> str:
    """Return how to find the cause; arguments may be secret, so the program alone is named."""
    return f"{shell_word(words[0])} ...  # run the command alone: its messages are shown there"


@uninterrupted()
def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a program that still runs, and what it has started."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
