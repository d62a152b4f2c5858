"""Several processes that share the cases of a harness, each started with its steps numbered."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memory_directory import in_memory
from postgres_server import installations
from proof import faults
from proof.cases import Case

_COUNTS = "counts.json"


def run_parts(script: str, jobs: int) -> list[dict[str, Any]] | None:
    """Run a script again as several processes with `--part DIR`, and collect their counts.

    Returns:
        None if one of them failed.
    """
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-proof-", dir=in_memory()) as name:
        directory = Path(name)
        directory.chmod(0o711)  # a run with another user's rights has its files there, too
        library = faults.build(directory)
        processes = []
        for job in range(jobs):
            own = directory / str(job)
            own.mkdir()
            variables = faults.environment(library, own / "control")
            processes.append(
                subprocess.Popen(
                    [sys.executable, script, *sys.argv[1:], "--part", str(own)],
                    env={**os.environ, **variables},
                    start_new_session=True,
                )
            )
        try:
            codes = [process.wait() for process in processes]
        except BaseException:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
            raise
        if any(codes):
            print(f"a part of the harness failed: {codes}")
            return None
        return [
            item
            for job in range(jobs)
            for item in json.loads((directory / str(job) / _COUNTS).read_text())
        ]


def share(part: Path, cases: Iterable[Case]) -> Iterator[Case]:
    """Yield the cases that no other part has taken, and that can be run here."""
    for case in cases:
        if case.on_server and not installations():
            continue
        try:  # the first process that makes the file takes the case
            (part.parent / f"taken {case.name.replace('/', ' ')}").touch(exist_ok=False)
        except FileExistsError:
            continue
        yield case


def write_counts(part: Path, counts: list[dict[str, Any]]) -> None:
    """Write what `run_parts` collects."""
    (part / _COUNTS).write_text(json.dumps(counts))


def share_of(text: str) -> tuple[int, int]:
    """Read an option such as `2/5`: the second of five parts.

    Raises:
        ValueError: There is no such part.
    """
    number, _, shares = text.partition("/")
    if not 1 <= int(number) <= int(shares):
        raise ValueError(text)
    return int(number), int(shares)
