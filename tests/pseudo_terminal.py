"""A terminal that a test watches: what a program writes when it believes that somebody looks."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from collections.abc import Mapping, Sequence


def watched(
    command: Sequence[str], environment: Mapping[str, str], *, answer: bytes = b""
) -> tuple[int, str]:
    """Run a command with all three streams on a terminal of its own.

    Args:
        environment: Its whole environment.
        answer: Typed once, at the start.

    Returns:
        Its exit code and everything that it showed.
    """
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(environment)
    ) as process:
        os.close(theirs)
        os.write(ours, answer)
        shown = bytearray()
        # The end of the other side reads as an error on Linux and as nothing elsewhere.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        return process.wait(), shown.decode("utf-8", "replace")
