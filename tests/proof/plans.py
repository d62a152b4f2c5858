"""Which faults a command is put through, made of the steps that it takes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from proof.faults import Fault, Mode, Step

_CODES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
_FOR_EVER = (errno.ENOSPC, errno.EROFS)
_EDGE = 2  # of a run of alike steps, so many at each end
_INNER = 4  # and so many between
_LINES = 2  # of the code that led to a step, so many count, those of `beneath` apart
_DEPTH = 3  # below so many directories of the arena, only the end of a name counts
_BENEATH = "fs/beneath.py:"
_DRAWN = re.compile(r"\d{8}T\d{6,12}Z(-[0-9a-f]{4,6}\b)?|[0-9a-f]{8,}|\d+")


def thinned(steps: Sequence[Step], seed: int) -> list[int]:
    """Choose the steps that differ: of a row of alike ones the first, the last, and some between.

    Alike are the same call on the same file without another step between, as when a file is
    written in a hundred pieces.
    """
    draw = random.Random(seed)
    chosen: list[int] = []
    number = 1
    for step, alike in itertools.groupby(steps):
        numbers = list(range(number, number + sum(1 for _ in alike)))
        number += len(numbers)
        if step.path == "server":  # each is another statement
            chosen += numbers
            continue
        inner = numbers[_EDGE:-_EDGE]
        chosen += sorted(
            {
                *numbers[:_EDGE],
                *numbers[-_EDGE:],
                *draw.sample(inner, min(_INNER, len(inner))),
            }
        )
    return chosen


def distinct(
    steps: Sequence[Step], numbers: Sequence[int], arena: Path, met: Path, *, by_names: bool
) -> Iterator[int]:
    """Yield the steps that differ from all that any process has met in any command.

    Alike are the same call at the same lines of code on the same kind of path.

    Args:
        met: A directory that the processes share.
        by_names: Alike are only those at which also the same kinds of names are there.
    """
    for number in numbers:
        step = steps[number - 1]
        lines = [line for line in step.site.split() if not line.startswith(_BENEATH)][:_LINES]
        parts = [step.call, *lines, _kind(step.path, arena), step.names if by_names else ""]
        mark = met / hashlib.sha256("\n".join(parts).encode()).hexdigest()
        try:  # the first process that makes the file takes the step
            mark.touch(exist_ok=False)
        except FileExistsError:
            continue
        yield number


def _kind(path: str, arena: Path) -> str:
    """Return a path without what differs from run to run, and from file to file."""
    parts = path.removeprefix(f"{arena}/").split("/")
    if len(parts) > _DEPTH:
        parts[_DEPTH:] = ["*" + Path(parts[-1]).suffix]
    return _DRAWN.sub("#", "/".join(parts))


def plan(
    steps: Sequence[Step], numbers: Sequence[int], *, with_signals: bool = False
) -> list[Fault]:
    """List every fault at these steps; or, instead, a SIGTERM at each."""
    planned = []
    for number in numbers:
        step = steps[number - 1]
        if with_signals:
            planned.append(Fault(Mode.INTERRUPT, number))
            continue
        planned += [Fault(Mode.KILL_BEFORE, number), Fault(Mode.KILL_AFTER, number)]
        if step.call in ("write", "pwrite"):
            planned.append(Fault(Mode.TEAR, number))
        if step.path == "server":
            planned.append(Fault(Mode.FAIL, number, errno.ECONNRESET))
        else:
            planned += [Fault(Mode.FAIL, number, code) for code in _CODES]
            planned += [Fault(Mode.FAIL_ON, number, code) for code in _FOR_EVER]
    return planned


def parsed(text: str) -> Fault:
    """Read a fault as a violation names it: `kill before at 12`, `fail ENOSPC at 3`."""
    words, _, step = text.rpartition(" at ")
    *names, last = words.split()
    code = getattr(errno, last, 0)
    mode = "_".join(names if code else [*names, last]).upper()
    return Fault(Mode[mode], int(step), code)
