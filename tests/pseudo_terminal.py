"""A terminal that a test watches: what a program writes when it believes that a person looks."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from collections.abc import Mapping, Sequence


def watched(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    answers: Sequence[tuple[str, str]] = (),
) -> tuple[int, str]:
    """Run a command with all three streams on a terminal of its own.

    Args:
        environment: Its whole environment.
        answers: A prompt, and what is typed once it is shown; in this order.

    Returns:
        Its exit code and everything that it showed.
    """
    waiting = list(answers)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=dict(environment),
        start_new_session=True,  # else a password is asked for on the developer's own terminal
    ) as process:
        os.close(theirs)
        shown = bytearray()
        seen = 0
        # The end of the other side reads as an error on Linux and as nothing elsewhere.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                shown += piece
                if waiting and (found := shown.find(waiting[0][0].encode(), seen)) >= 0:
                    seen = found + len(waiting[0][0])
                    os.write(ours, waiting.pop(0)[1].encode() + b"\n")
        os.close(ours)
        return process.wait(), shown.decode("utf-8", "replace")
