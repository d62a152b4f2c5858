"""The program as people meet it: run in a process of its own, or called in this one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagewai_ops.cli.main import run as run_words

# The installed script: `python -m` would find the checkout first, also where a wheel is tested.
COMMAND = (os.fspath(Path(sys.executable).with_name("sagewai-ops")),)
# Before something that always comes counts as stuck; a busy machine may need minutes.
PATIENCE_SECONDS = 240


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run of the program returned."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object that stdout holds."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        assert len(self.out.splitlines()) == 1
        return parsed

    @property
    def result(self) -> dict[str, Any]:
        """The envelope's result."""
        found = self.document["result"]
        assert isinstance(found, dict), self.out
        return found


def run(
    *words: object,
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    umask: int = -1,
    user: int | None = None,
) -> Answer:
    """Run the program in a process of its own and wait for it.

    Args:
        environment: Added to this one's.
        user: The uid to run as; this one if None.
    """
    done = subprocess.run(
        [*COMMAND, *map(os.fspath, map(_word, words))],
        env={**os.environ, **(environment or {})},
        input=stdin.encode(),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        umask=umask,
        user=user,
        group=user,
        extra_groups=[] if user is not None else None,
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def started(*words: object, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run the program for the length of the block; what is left of it then is killed."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with subprocess.Popen([*COMMAND, *map(_word, words)], **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def call(*words: object) -> Answer:
    """Run the program in this process, which is quicker; neither stream is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_words([_word(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())


def taken(answer: Answer) -> Path:
    """Return the archive that a `backup --json` took."""
    return Path(answer.result["archive"])


def _word(word: object) -> str:
    return os.fspath(word) if isinstance(word, (str, os.PathLike)) else str(word)
