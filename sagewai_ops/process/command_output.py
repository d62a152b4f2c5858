"""The output of a program that prints a secret: a passphrase or a private key.

A program of which only the result is of interest is started in the same way, without output.

The program is started without a shell, with /dev/null as its standard input, in a session of its
own, so that it has no terminal, and a signal ends what it has started too. Its output is returned
and never shown. Its messages may contain the secret as well: that there were some is reported.
"""

import functools
import shlex
import subprocess
import time
from collections.abc import Sequence

from sagewai_ops.errors import (
    KeyMissingError,
    NotFoundError,
    PermissionDeniedError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.process.child import OutputTooLongError, TimedOutError, child, read_streams
from sagewai_ops.text import printable, shell_word

SECONDS = 60.0  # for a person to touch a hardware key, or a server to answer
MOST_BYTES = 64 * 1024  # of output; a key has some hundred
_END_SECONDS = 2.0  # from SIGTERM to SIGKILL
_POLL_SECONDS = 0.1  # between two looks whether it has ended
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
    try:
        with child(lambda: _start(words, name), end_seconds=_END_SECONDS) as process:
            finished = read_streams(
                process, most_bytes=MOST_BYTES, most_message_bytes=1, seconds=SECONDS
            )
    except OutputTooLongError:
        raise UsageError(
            f"{name}: prints more than {MOST_BYTES} bytes, not a key", hint=_hint(words)
        ) from None
    except TimedOutError:
        raise KeyMissingError(
            f"{name}: no result within {SECONDS:g} s, ended", hint=_hint(words)
        ) from None
    if code := finished.code:
        end = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
        more = ", with a message on stderr, which is not shown" if finished.messages else ""
        raise KeyMissingError(f"{name}: {end}{more}", hint=_hint(words))
    return finished.output


async def run_command(words: Sequence[str], what: str, seconds: float) -> None:
    """Run a program without output, in an event loop; a cancellation ends it.

    Args:
        words: The program and its arguments.
        what: What the command is, for errors.
        seconds: Until it must have ended.

    Raises:
        NotFoundError, PermissionDeniedError, UsageError: The program cannot be started.
        TargetBusyError: It failed, or did not end in time.
    """
    import asyncio

    name = f"{what} {printable(words[0])}"
    deadline = time.monotonic() + seconds
    start = functools.partial(_start, words, name, subprocess.DEVNULL)
    with child(start, end_seconds=_END_SECONDS) as process:
        while (code := process.poll()) is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
    if code is None:
        state = f"not ended within {seconds:g} s"
    else:
        state = f"exit code {code}" if code >= 0 else f"ended by signal {-code}"
    if code != 0:
        raise TargetBusyError(f"{name}: {state}", hint=_hint(words))


def _start(
    words: Sequence[str], name: str, output: int = subprocess.PIPE
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    except OSError as error:
        kind = next((ours for theirs, ours in _ERRORS.items() if isinstance(error, theirs)), None)
        # ENOEXEC and others: it is no program.
        raise (kind or UsageError)(
            f"{name}: {(error.strerror or 'not started').lower()}",
            hint=f"command -v {shell_word(words[0])}",
        ) from error


def _hint(words: Sequence[str]) -> str:
    """Return how to find the cause; arguments may be secret, so the program alone is named."""
    return f"{shell_word(words[0])} ...  # run the command alone: its messages are shown there"
