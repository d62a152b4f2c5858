"""How a command is called: the global options on every command, one way to answer, one to fail.

A command is a function `name(run, *, options...) -> Outcome`. `command` turns it into what Typer
registers: the global options are accepted before and after the command's name, every option gets
its variable `SAGEWAI_OPS_<OPTION>`, the outcome is rendered or printed as JSON, and every error
becomes two lines and an exit code. Only `cli.main` exits.
"""

import functools
import inspect
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import OptionInfo

from sagewai_ops.atomic import refused
from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    EXIT_READER_GONE,
    InterruptedRunError,
    OpsError,
)
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.settings import SNAPSHOTS_VARIABLE, Settings
from sagewai_ops.terminal import Terminal

SCHEMA = "sagewai-ops/1"
_STATUS = {EXIT_DONE: "ok", EXIT_INCOMPLETE: "incomplete", EXIT_FINDINGS: "findings"}

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="The home; else SAGEWAI_HOME, else ~/.sagewai.",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; else ~/.config/sagewai-ops/config.toml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and nothing else.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more, without a terminal too.")
]
_GLOBAL_OPTIONS = {
    "home": (HomeOption, None),
    "config": (ConfigOption, None),
    "json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "verbose": (VerboseOption, False),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command answers.

    Attributes:
        result: The `result` of the JSON envelope.
        show: Renders the same for people.
        exit_code: 0, 3 (incomplete) or 4 (findings).
        warnings: One line each.
        always: Whether it is shown without a terminal too: a question was asked.
        on_stdout: False when stdout carries something else (an archive in a pipe).
    """

    result: Mapping[str, Any]
    show: Callable[[Terminal], None]
    exit_code: int = EXIT_DONE
    warnings: tuple[str, ...] = ()
    always: bool = False
    on_stdout: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command: what it was told, and where it speaks.

    Attributes:
        context: The parser's, of the command line; None where there was nothing to parse.
    """

    command: str
    settings: Settings
    terminal: Terminal
    context: Any = None
    started: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def home(self) -> Home:
        """Find the home that this run is about; it need not exist.

        Raises:
            NotFoundError: No home is named and none can be derived.
        """
        return locate(self.settings.home_option, self.settings.environment)

    def snapshots(self, home: Home, option: Path | None = None) -> Path:
        """Find the snapshot folder: the option, else the environment's, else beside the home."""
        named = option or self.settings.environment.get(SNAPSHOTS_VARIABLE)
        return Path(named).expanduser().absolute() if named else home.snapshots


def command(name: str) -> Callable[[Callable[..., Outcome]], Callable[..., int]]:
    """Turn a command's function into what Typer registers.

    Args:
        name: As people type it, such as `snapshots list`.
    """

    def wrap(function: Callable[..., Outcome]) -> Callable[..., int]:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        added = [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for key, (annotation, default) in _GLOBAL_OPTIONS.items()
        ]
        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        for parameter in parameters + added:
            _complete(parameter)

        @functools.wraps(function)
        def called(context: typer.Context, **options: Any) -> int:
            given = {key: options.pop(key) for key in _GLOBAL_OPTIONS}
            settings = merged(context.obj, given)
            terminal = Terminal(quiet=settings.quiet, verbose=settings.verbose, json=settings.json)
            run = Run(name, settings, terminal, context)
            return perform(run, lambda run: function(run, **options))

        called.__signature__ = inspect.Signature([context, *parameters, *added])  # type: ignore[attr-defined]
        called.__annotations__ = {
            parameter.name: parameter.annotation for parameter in [context, *parameters, *added]
        }
        del called.__wrapped__  # Typer would look through it
        return called

    return wrap


def merged(before: Settings | None, given: Mapping[str, Any]) -> Settings:
    """Join the global options given before the command's name with those given after it."""
    base = before or Settings(environment=dict(os.environ))
    return replace(
        base,
        home_option=given.get("home") or base.home_option,
        json=bool(given.get("json")) or base.json,
        quiet=bool(given.get("quiet")) or base.quiet,
        verbose=bool(given.get("verbose")) or base.verbose,
    )


def perform(run: Run, body: Callable[[Run], Outcome]) -> int:
    """Run a command's body, render its outcome or its error, and give the exit code."""
    try:
        with _signals_raise():
            outcome = body(run)
    except OpsError as error:
        return report_error(run, error)
    except BrokenPipeError:
        return _undelivered(run)
    except OSError as error:
        # A system call outside of `atomic.naming`: it still names its file and its reason.
        if error.filename is None:
            raise
        return report_error(run, refused(error, error.filename))
    try:
        _render(run, outcome)
        run.terminal.flush()
    except BrokenPipeError:
        return _undelivered(run)
    except OSError as error:
        return _undelivered(run, refused(error, "standard output"))
    return outcome.exit_code


def _render(run: Run, outcome: Outcome) -> None:
    settings, terminal = run.settings, run.terminal
    if settings.json and outcome.on_stdout:
        terminal.document(
            envelope(run, outcome.exit_code, result=outcome.result, warnings=outcome.warnings)
        )
        return
    for warning in outcome.warnings:
        terminal.warning(warning)
    if outcome.on_stdout and (outcome.always or terminal.wants_summary):
        outcome.show(terminal)


def _undelivered(run: Run, error: OpsError | None = None) -> int:
    """Give up on stdout; that its reader went away (`| head`) is no failure to report."""
    run.terminal.abandon()
    if error is None:
        return EXIT_READER_GONE
    run.terminal.error(error.message, error.hint)
    return error.exit_code


def report_error(run: Run, error: OpsError) -> int:
    """Say what failed, as two lines or as JSON, and give its exit code."""
    code = exit_code_of(error)
    if run.settings.json:
        details = {"code": error.code, "message": error.message, "hint": error.hint.splitlines()}
        run.terminal.document(envelope(run, code, error=details))
    else:
        run.terminal.error(error.message, error.hint)
    return code


def exit_code_of(error: OpsError) -> int:
    """Give the documented exit code of an error."""
    if isinstance(error, InterruptedRunError):
        return 128 + error.signal_number
    return error.exit_code


def envelope(
    run: Run,
    exit_code: int,
    *,
    result: Mapping[str, Any] | None = None,
    warnings: tuple[str, ...] = (),
    error: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the one JSON object that a command prints; docs/json.md."""
    try:
        home = str(run.home().root)
    except OpsError:
        home = ""
    return {
        "schema": SCHEMA,
        "command": run.command,
        "status": "error" if error else _STATUS.get(exit_code, "error"),
        "exit_code": exit_code,
        "home": home,
        "started_at": f"{run.started_at:%Y-%m-%dT%H:%M:%S}Z",
        "seconds": round(time.monotonic() - run.started, 3),
        "result": result,
        "warnings": list(warnings),
        "error": error,
    }


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an exception, once, so that partials are removed."""

    def interrupt(number: int, _frame: object) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)  # cleaning up is not interrupted again
        raise InterruptedRunError(number)

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {}
    try:
        for number in handled:
            # A run under nohup ignores SIGHUP on purpose.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complete(parameter: inspect.Parameter) -> None:
    """Give an option the variable that the manual promises, from its longest flag.

    A path may not be empty: that is `"$UNSET"` in a script, and would mean the working folder.
    """
    if get_origin(parameter.annotation) is not Annotated:
        return
    for extra in get_args(parameter.annotation)[1:]:
        if not isinstance(extra, OptionInfo):
            continue
        if _takes_paths(parameter.annotation) and extra.parser is None:
            extra.parser = _path
        # In an annotation, Typer takes the first flag for the default until it builds the option.
        flags = [extra.default, *(extra.param_decls or ())]
        names = [flag for flag in flags if isinstance(flag, str) and flag.startswith("--")]
        if names and extra.envvar is None:
            extra.envvar = "SAGEWAI_OPS_" + names[0].lstrip("-").replace("-", "_").upper()


def _takes_paths(annotation: Any) -> bool:
    """Tell whether an option's value, or each of them, is a path."""
    return annotation is Path or any(map(_takes_paths, get_args(annotation)))


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("is empty")
    return Path(text)
