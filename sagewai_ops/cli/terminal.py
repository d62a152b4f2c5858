"""Output: results on stdout, everything else on stderr.

Colour, tables and progress bars need a terminal (rich, imported when first needed). File names are
untrusted: control characters and invalid bytes are escaped.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from sagewai_ops.errors import UsageError
from sagewai_ops.progress import Progress
from sagewai_ops.text import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from sagewai_ops.cli.debug import DebugLog

PROGRAM = "sagewai-ops"
_BEFORE_PROGRESS_SECONDS = 0.4  # shorter runs show no bar: it would only flicker
_REFRESH_SECONDS = 0.1
_REMEMBERED_LINES = 30
_BETWEEN_COLUMNS = 2  # blanks
_SHOWN = 20  # items of a list in a text; --json has all


class Terminal:
    """The two output streams of one run.

    Args:
        quiet: Print errors and requested results only.
        verbose: Print summaries and notes without a terminal too.
        json: Print one JSON object on stdout and nothing else.
        debug: Log the steps on stderr.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        json: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        debug: bool = False,
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.json = json
        # Output to a stream that was closed before the start (`>&-`) is discarded.
        self._out = out or sys.stdout or io.StringIO()
        self._err = err or sys.stderr or io.StringIO()
        self.log: DebugLog | None = None
        if debug:
            from sagewai_ops.cli import debug as debugging

            self.log = debugging.DebugLog(self._err)
        self._messages: deque[str] = deque(maxlen=_REMEMBERED_LINES)

    @property
    def messages(self) -> list[str]:
        """The last warnings and errors, for reports of the run."""
        return list(self._messages)

    def remember(self, *lines: str) -> None:
        """Record lines that were printed in another way, such as in a JSON object."""
        self._messages.extend(map(printable, lines))

    def print_line(self, line: str) -> None:
        """Write a requested line to stderr, quiet or not."""
        print(printable(line), file=self._err)

    @property
    def on_stderr(self) -> "Terminal":
        """A terminal that prints results on stderr, if stdout is in use."""
        return Terminal(quiet=self.quiet, verbose=self.verbose, out=self._err, err=self._err)

    @property
    def wants_summary(self) -> bool:
        """Whether the summary of a command is printed: not under cron, unless requested."""
        return not self.quiet and (self.verbose or self._out.isatty())

    def line(self, text: str = "", *, style: str = "") -> None:
        """Write one line of a result to stdout, in a rich style where stdout is a terminal."""
        if style and _is_rich(self._out):
            from rich.console import Console
            from rich.text import Text

            Console(file=self._out, highlight=False, soft_wrap=True).print(
                Text(printable(text), style=style)
            )
        else:
            print(printable(text), file=self._out)

    def items(
        self, prefix: str, texts: Sequence[str], *, style: str = "", most: int = _SHOWN
    ) -> None:
        """Write a line for each text; of many only the first, and the number of the others."""
        for text in abridged(texts, most):
            self.line(prefix + text, style=style)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table to stdout; without a terminal, columns padded with spaces.

        No word is truncated: ids and paths are copied. A terminal that is too narrow for the
        longest words of all columns breaks the lines itself.
        """
        clean = [[printable(cell) for cell in row] for row in rows]
        if _is_rich(self._out):
            from rich.cells import cell_len
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            console = Console(file=self._out, highlight=False)
            cells = list(zip(columns, *clean, strict=True))
            whole = [max(map(cell_len, column)) for column in cells]
            words = [max(map(cell_len, " ".join(column).split()), default=0) for column in cells]
            gaps = _BETWEEN_COLUMNS * (len(columns) - 1)
            widths = _shared(whole, words, console.width - gaps)
            console.width = max(console.width, sum(widths) + gaps)
            grid = Table(header_style="bold", box=None, pad_edge=False)
            for name, width in zip(columns, widths, strict=True):
                grid.add_column(name, width=width)
            for row in clean:
                grid.add_row(*(Text(cell) for cell in row))
            console.print(grid)
            return
        widths = [max(len(cell) for cell in column) for column in zip(columns, *clean, strict=True)]
        for row in [list(columns), *clean]:
            print(
                "  ".join(
                    cell.ljust(width) for cell, width in zip(row, widths, strict=True)
                ).rstrip(),
                file=self._out,
            )

    def document(self, value: object) -> None:
        """Write one JSON object to stdout."""
        import json

        print(json.dumps(value, ensure_ascii=True, default=str), file=self._out)

    def flush(self) -> None:
        """Flush stdout while an error can still be reported."""
        self._out.flush()

    def abandon(self) -> None:
        """Write no more to stdout: its reader has closed it."""
        if self._out is sys.stdout:
            sys.stdout = None

    def note(self, text: str) -> None:
        """Print a note on stderr, with --verbose only."""
        if self.verbose and not self.quiet:
            print(printable(text), file=self._err)

    def warning(self, text: str) -> None:
        """Print a warning on stderr."""
        self.remember(f"warning: {text}")
        if not self.quiet:
            print(f"{PROGRAM}: warning: {printable(text)}", file=self._err)

    def error(self, message: str, hint: str) -> None:
        """Print an error and its hint on stderr."""
        lines = hint.strip("\n").split("\n") if hint else []  # not at other separators
        self.remember(f"error: {message}", *(f"hint: {line}" for line in lines))
        print(f"{PROGRAM}: error: {printable(message)}", file=self._err)
        for line in lines:
            print(f"{PROGRAM}: hint: {printable(line)}", file=self._err)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask for confirmation.

        Raises:
            UsageError: The answer is no, or stdin is not a terminal and there is no `--yes`.
        """
        if yes:
            return
        if not (sys.stdin.isatty() and self._err.isatty()):
            raise UsageError(
                f"{question}: confirmation required, but stdin is not a terminal", hint="add --yes"
            )
        print(f"{printable(question)} [y/N] ", end="", file=self._err, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError(f"{question}: not confirmed, nothing was changed")

    def secret(self, prompt: str) -> str:
        """Ask for a passphrase without echo.

        Raises:
            UsageError: Stdin is not a terminal.
        """
        import getpass

        if not (sys.stdin.isatty() and self._err.isatty()):
            raise UsageError(
                f"{prompt}: stdin is not a terminal", hint="use --passphrase-file FILE"
            )
        return getpass.getpass(f"{printable(prompt)}: ", stream=self._err)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """Yield a callback that draws progress bars on stderr, or None without a terminal."""
        if self.quiet or self.json or self.log or not _is_rich(self._err):
            yield self.log.progress() if self.log else None
            return
        bars = _Bars(self._err)
        try:
            yield bars.report
        finally:
            bars.close()


def abridged(texts: Sequence[str], most: int = _SHOWN) -> list[str]:
    """Return the first texts of a list, and a line that counts the others."""
    others = len(texts) - most
    return [*texts[:most], *([f"and {others} more: --json lists them"] if others > 0 else [])]


class _Bars:
    """Progress bars that appear after a short delay."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = self._drawn = time.monotonic()
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._progress: object = None

    def report(self, stage: str, done: int, total: int) -> None:
        moment = time.monotonic()
        if moment - self._began < _BEFORE_PROGRESS_SECONDS:
            return
        if moment - self._drawn < _REFRESH_SECONDS and (done < total or not total):
            return
        with self._lock:
            self._drawn = moment
            self._draw(stage, done, total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()  # type: ignore[attr-defined]

    def _draw(self, stage: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None:
            bars = Progress(
                TextColumn("{task.description:<10}", markup=False),  # it can name a table
                # Not rich's own colours: a red bar looks like a failure.
                BarColumn(complete_style="cyan", finished_style="green"),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            bars.start()
            self._progress = bars
        bars = self._progress  # type: ignore[assignment]
        if stage not in self._tasks:
            for earlier in bars.tasks:  # its total was a guess, or its last word came too soon
                bars.update(earlier.id, completed=earlier.total)
            self._tasks[stage] = bars.add_task(printable(stage), total=total or None)
        bars.update(self._tasks[stage], completed=done, total=total or None)


def _shared(whole: Sequence[int], words: Sequence[int], available: int) -> list[int]:
    """Return the widths of columns: those with several words are narrowed until all fit."""
    widths = list(whole)
    if sum(words) > available:
        return widths
    for _cell in range(max(sum(whole) - available, 0)):
        wide = [column for column, width in enumerate(widths) if width > words[column]]
        if wide:
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _is_rich(stream: TextIO) -> bool:
    return (
        stream.isatty()
        and os.environ.get("TERM", "") not in ("", "dumb")
        and not os.environ.get("NO_COLOR")  # empty is not set: no-color.org
    )
