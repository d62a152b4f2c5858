"""`sagewai-ops` itself, called as a user's script calls it: a process, its exit code, its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

EXECUTABLE = Path(sys.executable).with_name("sagewai-ops")
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How one call ended.

    Attributes:
        code: Exit code.
        answer: The JSON object of stdout.
        errors: Everything on stderr.
    """

    code: int
    answer: dict[str, object]
    errors: str

    @property
    def result(self) -> dict[str, object]:
        """What the command reports of its work."""
        result = self.answer["result"]
        assert isinstance(result, dict)
        return result

    @property
    def message(self) -> str:
        """The failure, for a person."""
        error = self.answer["error"]
        assert isinstance(error, dict)
        return str(error["message"])


def call(
    home: Path,
    *arguments: str | Path,
    snapshots: Path | None = None,
    url: str | None = None,
) -> Ended:
    """Run `sagewai-ops --home HOME ARGUMENTS --json` and return how it ended.

    Args:
        home: The home.
        arguments: The command and its options.
        snapshots: Directory of the snapshots; without it the default next to the home.
        url: Of the PostgreSQL database that Sagewai would use, through the environment.
    """
    variables = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "TZ": "UTC"}
    if snapshots is not None:
        variables["SAGEWAI_OPS_SNAPSHOTS"] = str(snapshots)
    if url is not None:
        variables["SAGEWAI_DATABASE_URL"] = url
    done = subprocess.run(
        [str(EXECUTABLE), "--home", str(home), *(str(word) for word in arguments), "--json"],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr
    return Ended(done.returncode, json.loads(done.stdout), done.stderr)


def succeed(
    home: Path,
    *arguments: str | Path,
    snapshots: Path | None = None,
    url: str | None = None,
) -> Ended:
    """Run a command that must end with exit code 0 and nothing on stderr."""
    ended = call(home, *arguments, snapshots=snapshots, url=url)
    assert (ended.code, ended.errors) == (0, ""), (ended.answer, ended.errors)
    return ended
