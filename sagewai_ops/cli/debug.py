"""`--debug`: a log on stderr of what a run does, with timings and without secrets.

The steps are Python's audit events: files that are created, renamed or removed, databases that are
opened, connections and processes. Only paths and host names are logged, never content, arguments
of processes or values of options and variables.
"""

import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

from sagewai_ops import __version__
from sagewai_ops.progress import Progress
from sagewai_ops.text import printable

_VARIABLES = ("SAGEWAI_", "DATABASE_URL", "PG")  # prefixes
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Event -> verb, and for each of its paths the position of the descriptor of its directory, or None.
_PATHS: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "os.rename": ("rename", (2, 3)),
    "os.link": ("link", (2, 3)),
    "os.symlink": ("symlink", (None, 2)),
    "os.remove": ("remove", (1,)),
    "os.rmdir": ("remove directory", (1,)),
    "os.mkdir": ("create directory", (2,)),
    "os.chmod": ("chmod", (2,)),
    "os.chown": ("chown", (3,)),
    "os.truncate": ("truncate", (None,)),
    "os.setxattr": ("set attribute of", (None,)),
    "sqlite3.connect": ("open database", (None,)),
    "subprocess.Popen": ("start", (None,)),
}
_current: "DebugLog | None" = None
_is_hooked = False


class DebugLog:
    """The log of one run.

    Args:
        stream: Where its lines are written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._is_writing = False

    def line(self, text: str) -> None:
        """Write a line, with the seconds since the start."""
        seconds = time.monotonic() - self._started
        self._is_writing = True
        try:
            self._stream.write(f"debug: {seconds:8.3f} {printable(text)}\n")
        finally:
            self._is_writing = False

    def begin(self, command: str, context: Any, environment: Mapping[str, str]) -> None:
        """Log the versions, the names of options and variables, and every step from here on."""
        global _current, _is_hooked
        self.line(
            f"sagewai-ops {__version__} {command}, Python {platform.python_version()} on "
            f"{platform.system()} {platform.release()} {platform.machine()}, pid {os.getpid()}"
        )
        for option in context.command.params if context else ():
            source = getattr(context.get_parameter_source(option.name), "name", "DEFAULT")
            if source != "DEFAULT":
                self.line(f"option {option.opts[0]} from {source.lower()}")
        names = sorted(name for name in environment if name.startswith(_VARIABLES))
        self.line(f"variables: {', '.join(names) or 'none'}")
        _current = self
        if not _is_hooked:
            sys.addaudithook(_hook)
            _is_hooked = True

    def end(self, exit_code: int) -> None:
        """Log the exit code and the peak of memory; the log ends."""
        global _current
        import resource

        _current = None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1024 if sys.platform == "darwin" else 1
        self.line(f"exit {exit_code}, peak memory {peak // unit} KiB")

    def error(self, error: BaseException) -> None:
        """Log where an error and its causes were raised; messages of causes may hold values."""
        cause: BaseException | None = error
        while cause is not None:
            self.line(f"{type(cause).__module__}.{type(cause).__qualname__}")
            for frame in traceback.extract_tb(cause.__traceback__):
                self.line(f"at {frame.filename}:{frame.lineno} in {frame.name}")
            cause = cause.__cause__ or cause.__context__

    def progress(self) -> Progress:
        """Return a callback that logs the stages."""
        started: dict[str, float] = {}

        def logged(stage: str, done: int, total: int) -> None:
            if stage not in started:
                started[stage] = time.monotonic()
                self.line(f"{stage}: started, {total} to do")
            if total and done == total:
                self.line(f"{stage}: {done} done in {time.monotonic() - started[stage]:.3f} s")

        return logged

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Log an audit event, if it is a step."""
        if self._is_writing:
            return
        if name == "open":
            path, _mode, flags = arguments
            if isinstance(path, (str, bytes)) and (flags or 0) & _WRITING:
                self.line(f"open for writing {os.fsdecode(path)}")
        elif name == "socket.connect":
            self.line(f"connect to {_host(arguments[1])}")
        elif name in _PATHS:
            verb, positions = _PATHS[name]
            paths = [
                _path(argument, arguments[position] if position else None)
                for argument, position in zip(arguments, positions, strict=False)
            ]
            self.line(f"{verb} {' -> '.join(paths)}")


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if _current is not None:
        _current.event(name, arguments)


def _path(argument: object, directory: object = None) -> str:
    if not isinstance(argument, (str, bytes, os.PathLike)):
        return str(argument)  # a descriptor
    path = os.fsdecode(argument).partition("?")[0]
    with contextlib.suppress(OSError):  # a system without /proc
        if isinstance(directory, int) and directory >= 0:
            return os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)
    return path


def _host(address: object) -> str:
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    return _path(address)
