"""A second Python process that a test steers line by line."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class OtherProcess:
    """A running process; made by `running`."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def next(self) -> str:
        """Continue to its next `pause()` and return the value there."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(code: str, *arguments: str) -> Iterator[OtherProcess]:
    """Run code in a process of its own until the block ends.

    Args:
        code: Calls `pause(value)` where the test shall go on; it must do so at least once, and the
            block begins there.
        arguments: `sys.argv[1:]`.
    """
    start = "import sys\ndef pause(value=''): print(value, flush=True); sys.stdin.readline()\n"
    with subprocess.Popen(
        [sys.executable, "-c", start + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield OtherProcess(process)
        finally:
            process.kill()
