"""Run code in a child whose steps on files and servers are numbered, and let one of them go wrong.

`steps.c` does the numbering inside the child and inside what that starts. The process that forks
the children has to be started with it loaded: `loaded` does that by starting it once more.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

_SOURCE = Path(__file__).with_name("steps.c")
_VARIABLE = "LD_PROOF_CONTROL"
_TRACE_BYTES = 8 * 1024 * 1024  # of the trace, some 60 bytes for a step
_PATIENCE_SECONDS = 120.0  # before a run counts as stuck
_ORPHANS_SECONDS = 10.0  # for what a killed run had started to end by itself


class Mode(IntEnum):
    """What happens at the step; the numbers are those of steps.c."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    FAIL = 3
    TEAR = 4  # half of a write is done, then the kill
    FAIL_ON = 5  # this one fails, and all that follow (with ENOSPC: all that need space)
    INTERRUPT = 6  # SIGTERM before it
    ATTACK = 7  # it waits there, and at a second step, while another process does its work


KILLS = (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.TEAR)


class Control(ctypes.Structure):
    """The head of the control block; steps.c explains the fields."""

    _fields_ = (
        ("group", ctypes.c_int),
        ("mode", ctypes.c_int),
        ("code", ctypes.c_int),
        ("fired", ctypes.c_int),
        ("resume", ctypes.c_int),
        ("reads", ctypes.c_int),
        ("waits", ctypes.c_int),
        ("doomed", ctypes.c_int),
        ("stale", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("target", ctypes.c_long),
        ("second", ctypes.c_long),
        ("taken", ctypes.c_long),
        ("used", ctypes.c_long),
        ("capacity", ctypes.c_long),
        ("names", ctypes.c_ulong),
        ("directory", ctypes.c_char * 512),
        ("exposed", ctypes.c_char * 512),
        ("struck", ctypes.c_char * 2048),
    )
    group: int
    mode: int
    code: int
    fired: int
    resume: int
    reads: int
    waits: int
    doomed: int
    stale: int
    target: int
    second: int
    taken: int
    used: int
    capacity: int
    names: int
    directory: bytes
    exposed: bytes
    struck: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a traced run.

    Attributes:
        path: Or `server`.
        site: The lines of our code that led to it, the innermost first; "" if they are not traced.
        names: A hash of the names in the directory at that moment.
    """

    call: str
    path: str
    site: str = field(default="", compare=False)
    names: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.call} {self.path}"


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure, and its step, from 1; with ATTACK perhaps at a second one, too."""

    mode: Mode
    step: int
    code: int = 0
    second: int = 0

    def __str__(self) -> str:
        code = f" {errno.errorcode[self.code]}" if self.code else ""
        return f"{self.mode.name.lower().replace('_', ' ')}{code} at {self.step}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        code: Its exit code; None if it was killed.
        struck: The step that the fault struck; None if the run took fewer steps.
        problem: What is wrong with the way it ended; "" if nothing.
    """

    code: int | None
    out: str
    err: str
    struck: Step | None
    taken: int
    problem: str


def is_possible() -> bool:
    """Return whether steps can be numbered here: Linux, and a C compiler."""
    return sys.platform == "linux" and _compiler() is not None


def build(directory: Path) -> Path:
    """Compile the shim into a directory and return it."""
    compiler = _compiler()
    assert compiler is not None
    library = directory / "steps.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"],
        check=True,
        capture_output=True,
    )
    return library


def environment(library: Path, control: Path) -> dict[str, str]:
    """Make a control block, and return the variables that a process is to be started with."""
    with control.open("wb") as file:
        file.truncate(ctypes.sizeof(Control) + _TRACE_BYTES)
    control.chmod(0o666)  # a run may go on with another user's rights, and start programs
    return {"LD_PRELOAD": str(library), _VARIABLE: str(control)}


class Runner:
    """Forks the runs; for a process that was started with `environment`.

    Args:
        directory: Only steps below it count, and those towards servers.
        outside: Where the runs' output goes; not below `directory`.
        with_reads: Whether opening, listing and examining files are steps, too.
        exposed: What others can change; if any, steps have a site and names.
        patience: Seconds before a run counts as stuck.
    """

    def __init__(
        self,
        directory: Path,
        outside: Path,
        *,
        with_reads: bool = False,
        exposed: Path | None = None,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        self._preload = os.environ.pop("LD_PRELOAD")  # servers that we start go without it
        with open(os.environ[_VARIABLE], "r+b") as file:
            self._block = mmap.mmap(file.fileno(), 0)
        self._control = Control.from_buffer(self._block)
        self._control.directory = os.fsencode(directory)
        self._control.capacity = _TRACE_BYTES
        self._control.reads = with_reads
        self._control.exposed = os.fsencode(exposed) if exposed else b""
        self._outside = outside
        self._patience = patience

    @property
    def out(self) -> Path:
        """Where the output of the last run is."""
        return self._outside / "out"

    def steps(self) -> list[Step]:
        """Return the steps of the last run without a fault."""
        size = ctypes.sizeof(Control)
        text = self._block[size : size + min(self._control.used, _TRACE_BYTES)]
        lines = text.decode(errors="backslashreplace").split("\n")[:-1]
        assert len(lines) == self._control.taken, (len(lines), self._control.taken)
        return [_step(line) for line in lines]

    def run(
        self,
        body: Callable[[], int],
        fault: Fault | None = None,
        attack: Callable[[int, Step], None] | None = None,
        *,
        of_two_users: bool = False,
    ) -> Ended:
        """Run code in a child of its own group, with a fault or none; wait for all of it.

        Args:
            of_two_users: Not every process of the run may kill the others.
            attack: What happens while a run waits at a step: its turn, from 1, and the step.
        """
        control = self._control
        control.mode = fault.mode if fault else Mode.COUNT
        control.code = fault.code if fault else 0
        control.target = fault.step if fault else 0
        control.second = fault.second if fault else 0
        control.waits = of_two_users
        control.doomed = control.fired = control.resume = control.taken = control.used = 0
        control.stale = 1
        control.struck = b""
        streams = [self._outside / name for name in ("out", "err")]
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of a fork where threads may live
            child = os.fork()
        if child == 0:
            self._child(body, streams)

        def resume() -> None:
            if control.doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
            if attack and control.resume < control.fired:
                attack(control.resume + 1, self._struck())
                control.resume += 1

        try:
            code, problem = _wait(child, self._patience, resume)
        except BaseException:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        problem = problem or _orphans(child)
        control.group = 0
        out, err = (path.read_text(errors="replace") for path in streams)
        struck = self._struck() if control.fired else None
        return Ended(code, out, err, struck, control.taken, problem)

    def _struck(self) -> Step:
        return _step(self._control.struck.decode(errors="backslashreplace"))

    def _child(self, body: Callable[[], int], streams: list[Path]) -> None:
        """Run the code; never returns."""
        code = 1
        try:
            os.setpgid(0, 0)
            os.environ["LD_PRELOAD"] = self._preload
            for number, path in enumerate(streams, start=1):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(descriptor, number)
                os.close(descriptor)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            tempfile.tempdir = None
            gc.freeze()
            self._control.group = os.getpid()
            code = body()
        except BaseException:  # noqa: BLE001 - a child of a fork must not go on
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            self._control.group = 0
            os._exit(code)


def _wait(child: int, patience: float, meanwhile: Callable[[], None]) -> tuple[int | None, str]:
    """Wait for a child; one that takes too long is killed with all that it started."""
    deadline = time.monotonic() + patience
    pause = 0.001
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        meanwhile()
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, f"hangs, {patience:.0f} s"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status), ""
    number = os.WTERMSIG(status)
    return None, "" if number == signal.SIGKILL else f"died of signal {number}"


def _orphans(group: int) -> str:
    """Wait until all that a run started has ended; return the problem if it does not."""
    deadline = time.monotonic() + _ORPHANS_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return ""
        time.sleep(0.005)
    os.killpg(group, signal.SIGKILL)
    return "left a process running"


def _step(line: str) -> Step:
    return Step(*line.split("\t"))


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")
