"""Commands: registration, the global options, outcomes, errors and exit codes.

A command is a function `name(run, *, options...) -> Outcome`, which `command` declares, and
`add_command` turns into what Typer registers: the global options are accepted before and after the
command's name, every option gets its variable (`cli.variables`), the outcome is rendered or printed
as JSON, and every error becomes two lines and an exit code. Only `cli.main` exits.
"""

import errno
import functools
import inspect
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from sagewai_ops.cli import acting, key_commands
from sagewai_ops.cli.json_results import to_json
from sagewai_ops.cli.options import CHANGES, GLOBAL, REPOSITORY, UNATTENDED, find_global
from sagewai_ops.cli.parameters import as_parameters, complete, expand_groups, group_options
from sagewai_ops.cli.parser import Command, Group
from sagewai_ops.cli.repository_options import repository_options, with_repository
from sagewai_ops.cli.settings import Settings
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.cli.variables import Variables, check_variables
from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    EXIT_READER_GONE,
    InterruptedRunError,
    OpsError,
)
from sagewai_ops.fs.os_errors import from_os_error, is_directory_gone, output_error
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.process.signals import raise_on_signals
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote

if TYPE_CHECKING:
    from sagewai_ops.notify.reporter import Reporter

SCHEMA = "sagewai-ops/1"
# Errors that any system call can raise; another one without a file name is a bug of this program.
_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
)
_NO_THREAD = "can't start new thread"  # of `threading`
# Click's own base class, wherever this version of Typer keeps Click.
_PARSER_ERRORS: Any = (typer.BadParameter.__mro__[2], typer.Exit, typer.Abort)
_STATUS = {EXIT_DONE: "ok", EXIT_INCOMPLETE: "incomplete", EXIT_FINDINGS: "findings"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        result: The `result` of the JSON envelope: a dataclass with the fields of the object.
        show: Renders it as text.
        exit_code: 0, 3 (incomplete) or 4 (findings).
        warnings: One line each.
        always: Whether it is printed without a terminal too.
        on_stdout: False if stdout is used for something else, such as an archive.
        error: The error of an exit code other than 0, 3 and 4, if there is a result too.
    """

    result: Any
    show: Callable[[Terminal], None]
    exit_code: int = EXIT_DONE
    warnings: tuple[str, ...] = ()
    always: bool = False
    on_stdout: bool = True
    error: OpsError | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command: its settings and its terminal.

    Attributes:
        context: The parser's; None before anything was parsed.
    """

    command: str
    settings: Settings
    terminal: Terminal
    context: Any = None
    started: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Report at once, also if the command fails: on stderr, or in the JSON envelope."""
        self.warnings.append(text)
        if not self.settings.json:
            self.terminal.warning(text)

    def home(self) -> Home:
        """Find the home of this run; it need not exist.

        Raises:
            NotFoundError: No home is given and there is no default.
        """
        return locate(self.settings.home_option, self.settings.environment)

    def snapshots(self, home: Home, option: Path | None = None) -> Path:
        """Find the snapshot directory: the option, else the variable, else next to the home."""
        path = self.settings.snapshots(home, option)
        return path if is_remote(path) else Path(os.path.realpath(path))


@dataclass(frozen=True, slots=True)
class Declared:
    """A command's function, and how it is added to the program.

    Attributes:
        name: As typed, such as `snapshots list`.
        text: Its help; the first line is its summary in lists.
        result: The dataclass of its results, as `package.module:Class`, or several with ` | `
            between them; docs/json/ is made from it.
        changes: Whether it can change anything: then it accepts --yes.
        unattended: Whether timers run it: then it accepts the options of `Reporting`.
    """

    function: Callable[..., Outcome]
    name: str
    text: str
    result: str
    changes: bool
    unattended: bool


def command(
    name: str, text: str = "", *, result: str, changes: bool = False, unattended: bool = False
) -> Callable[[Callable[..., Outcome]], Declared]:
    """Declare a function as a command; see `Declared`.

    A parameter whose annotation is a `NamedTuple` is an option for each of its fields.

    Args:
        text: Its help (default: the docstring).
    """

    def declare(function: Callable[..., Outcome]) -> Declared:
        words = text or inspect.cleandoc(function.__doc__ or "")
        return Declared(function, name, words, result, changes, unattended)

    return declare


def add_command(app: typer.Typer, declared: Declared) -> None:
    """Add a command to the program or to a group."""
    text = declared.text
    name, summary = declared.name.rpartition(" ")[2], text.partition("\n")[0]
    app.command(name, cls=Command, help=text, short_help=summary)(_callback(declared))


def _callback(declared: Declared) -> Callable[..., int]:
    """Return a command's function as Typer registers it, with the options that commands share."""
    name, function = declared.name, declared.function
    parameters, groups = expand_groups(function)
    shared = {**(UNATTENDED if declared.unattended else {}), **GLOBAL}
    shared = {**repository_options(name, parameters), **shared}
    if declared.changes and not any(parameter.name == "yes" for parameter in parameters):
        shared = {**CHANGES, **shared}
    context = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    variables: list[Variables] = []
    parameters = [
        complete(parameter, "" if parameter.name in GLOBAL else name, variables)
        for parameter in [*parameters, *as_parameters(shared)]
    ]

    @functools.wraps(function)
    def called(context: typer.Context, **options: Any) -> int:
        given = {key: options.pop(key) for key in shared}
        named = {key: given.pop(key, None) for key in REPOSITORY}
        if options.get("dry_run"):
            given = {}  # a dry run is no run to report
        settings = read_settings(context)
        terminal = Terminal(
            quiet=settings.quiet, verbose=settings.verbose, json=settings.json, debug=settings.debug
        )
        try:
            settings = with_repository(settings, terminal, {**named, **options})
        except OpsError as error:
            return report_error(Run(name, settings, terminal, context), error)
        run = Run(name, settings, terminal, context)

        def body(run: Run) -> Outcome:
            for note in check_variables(context, variables):
                run.warn(note)
            return function(run, **group_options(options, groups))

        act = functools.partial(_execute, options=options)
        if terminal.log is None:
            return perform(run, body, given, act)
        terminal.log.begin(name, context, settings.environment)
        code = OpsError.exit_code
        try:
            code = perform(run, body, given, act)
        finally:
            terminal.log.end(code)
        return code

    called.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    called.__annotations__ = {
        parameter.name: parameter.annotation for parameter in [context, *parameters]
    }
    del called.__wrapped__  # Typer would look through it
    called.result = declared.result  # type: ignore[attr-defined]
    return called


def command_group(name: str, text: str) -> typer.Typer:
    """Return a group of commands; the global options are accepted after its name too.

    Args:
        text: Its help.
    """
    group = typer.Typer(
        name=name, cls=Group, help=text, no_args_is_help=True, rich_markup_mode=None
    )
    # Without variables: the program has read them already.
    add_global_options(group, text, variables=None)
    return group


def add_global_options(
    group: typer.Typer, text: str, *, variables: list[Variables] | None, **more: tuple[Any, Any]
) -> None:
    """Make the program or a group accept the global options, for the command to read.

    Args:
        text: The help.
        variables: Where those of the options are added; None for options without.
        more: Options of the program alone: annotation and default by parameter.
    """
    context = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    options = [
        *(complete(parameter, "", variables) for parameter in as_parameters(GLOBAL)),
        *as_parameters(more),
    ]

    def called(context: typer.Context, **given: Any) -> None:
        """Leave them to the command: `read_settings`."""

    called.__signature__ = inspect.Signature([context, *options])  # type: ignore[attr-defined]
    called.__annotations__ = {option.name: option.annotation for option in [context, *options]}
    group.callback(help=text)(called)


def read_settings(context: Any) -> Settings:
    """Read the global options from every level of a command line, parsed in full or in part.

    Args:
        context: The parser's.
    """
    base = context.obj or Settings(environment=dict(os.environ))
    return replace(
        base,
        home_option=find_global(context, "home")[0],
        json=bool(find_global(context, "json")[0]),
        quiet=bool(find_global(context, "quiet")[0]),
        verbose=bool(find_global(context, "verbose")[0]),
        debug=bool(find_global(context, "debug")[0]),
    )


def perform(
    run: Run,
    body: Callable[[Run], Outcome],
    given: Mapping[str, Any],
    execute: "Callable[..., _Ended]",
) -> int:
    """Run a command's body, report it, and return the exit code.

    Args:
        given: The options of `UNATTENDED`, by parameter.
        execute: `_execute`, with the command's options.
    """
    try:
        reporter = find_reporter(run, given)
    except OpsError as error:
        return report_error(run, error)
    if reporter is None:
        return execute(run, body).exit_code
    reporter.begin()
    ended = _Ended(OpsError.exit_code)
    try:
        ended = execute(run, body, wants_result=True)
    except Exception as error:
        run.terminal.remember(f"unexpected failure: {type(error).__name__}")
        ended = _Ended(OpsError.exit_code, None, run.terminal.messages)
        raise
    finally:
        reporter.end(_reported(run, ended), time.monotonic() - run.started, ended.lines)
    return ended.exit_code


class _Ended(NamedTuple):
    """The end of a run: `result` as JSON, and the last lines on stderr."""

    exit_code: int
    result: Any = None
    lines: list[str] = []  # noqa: RUF012 - never changed


def _execute(
    run: Run,
    body: Callable[[Run], Outcome],
    *,
    options: Mapping[str, Any],
    wants_result: bool = False,
) -> _Ended:
    """Run a body, as root with the rights of the owner of what it works on."""

    def work(body: Callable[[Run], Outcome]) -> _Ended:
        code, outcome = _run_body(run, body)
        result = to_json(outcome.result) if outcome and wants_result else None
        return _Ended(code, result, run.terminal.messages)

    try:
        found = acting.find_acting(run.command, run.settings, options)
        if found is None:
            return work(body)
        from sagewai_ops.process.privileges import become

        def body_of_child(run: Run) -> Outcome:
            key_commands.prepare_commands(run, options)
            become(found[0])
            return body(replace(run, settings=acting.settings_of(run.settings, found[0])))

        def describe(error: OpsError) -> _Ended:
            return _Ended(report_error(run, error), None, run.terminal.messages)

        answer = acting.run_in_child(*found, lambda: work(body_of_child), _home_of(run), describe)
    except OpsError as error:
        return _Ended(report_error(run, error), None, run.terminal.messages)
    except OSError as error:
        if (translated := translate(error)) is None:
            raise
        return _Ended(report_error(run, translated), None, run.terminal.messages)
    return _Ended(*answer) if answer else _Ended(OpsError.exit_code)


def _reported(run: Run, ended: _Ended) -> dict[str, Any]:
    """Return the JSON object of a run for reports of it: warnings and error are its last lines."""
    from sagewai_ops.notify.reporter import parse_lines

    code, is_error = ended.exit_code, ended.exit_code not in _STATUS
    warnings, error = parse_lines(code, ended.lines, is_error=is_error)
    run = replace(run, warnings=[])
    return envelope(run, code, result=ended.result, warnings=warnings, error=error)


def find_reporter(run: Run, given: Mapping[str, Any]) -> "Reporter | None":
    """Return where the options of `UNATTENDED` report the run; None for nowhere.

    Raises:
        UsageError: The URL to ping, or one to notify, is not a URL.
    """
    if not any(given.get(name) for name in UNATTENDED if name != "notify_on"):
        return None
    from sagewai_ops.notify.reporter import Reporter, read_notify_urls, read_ping_url

    return Reporter(
        run.command,
        _home_of(run),
        # The log of the end is lost like that of the start: one line is enough.
        warn=functools.cache(run.terminal.warning),
        print_log=run.terminal.print_line,
        ping_url=read_ping_url(given["ping_url"], given["ping_url_file"], run.terminal.warning),
        metrics_file=given["metrics_file"],
        log_file=given["log_file"] or "",
        notify_urls=read_notify_urls(
            given["notify"] or (), given["notify_file"], run.terminal.warning
        ),
        notify_on=given["notify_on"].value,
        environment=run.settings.environment,
    )


def _call(body: Callable[[Run], Outcome], run: Run) -> Outcome:
    from sagewai_ops.fs.trust import take_reports

    try:
        return body(run)
    finally:
        for report in take_reports():
            run.warn(report)


def _run_body(run: Run, body: Callable[[Run], Outcome]) -> tuple[int, Outcome | None]:
    """Run a command's body, render its outcome or its error; return the code and the outcome."""
    try:
        with raise_on_signals():
            outcome = _call(body, run)
    except (OpsError, InterruptedRunError) as error:
        return report_error(run, error), None
    except BrokenPipeError:
        return _fail_output(run), None
    except OSError as error:
        if (translated := translate(error)) is None:
            _report_bug(run, error)
            raise
        return report_error(run, translated), None
    except _PARSER_ERRORS:
        raise  # `schedule` parses options of `backup`; `main` reports it
    except Exception as error:
        if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
            failure = OpsError(
                "threads: this system starts no more of them for this user",
                hint="ulimit -u  # or the limit of processes of the container or the service",
            )
            return report_error(run, failure), None
        _report_bug(run, error)
        raise
    try:
        _render(run, outcome)
        run.terminal.flush()
    except BrokenPipeError:
        return _fail_output(run), None
    except OSError as error:
        return _fail_output(run, output_error(error)), None
    return outcome.exit_code, outcome


def translate(error: OSError) -> OpsError | None:
    """Return an error of the system that was raised outside `translate_os_errors`.

    It names its reason, perhaps not its file; None for a bug of this program.
    """
    if error.filename is not None:
        return from_os_error(error, error.filename)
    failure = from_os_error(error, "the system")
    is_gone = error.errno == errno.ENOENT and is_directory_gone()
    return failure if is_gone or error.errno in _SYSTEM_ERRORS else None


def _report_bug(run: Run, error: Exception) -> None:
    """Print a JSON object for a bug too; the traceback goes to stderr."""
    if run.settings.json:
        hint = "this is a bug in sagewai-ops: report the traceback on stderr"
        report_error(run, OpsError(f"unexpected failure: {type(error).__name__}", hint=hint))
        run.terminal.flush()


def _render(run: Run, outcome: Outcome) -> None:
    settings, terminal = run.settings, run.terminal
    if settings.json and outcome.on_stdout:
        terminal.remember(*(f"warning: {text}" for text in (*run.warnings, *outcome.warnings)))
        terminal.document(
            envelope(
                run,
                outcome.exit_code,
                result=to_json(outcome.result),
                warnings=outcome.warnings,
                error=_details(outcome.error) if outcome.error else None,
            )
        )
        return
    for warning in outcome.warnings:
        terminal.warning(warning)
    shown = terminal if outcome.on_stdout else terminal.on_stderr
    if shown.wants_summary or (outcome.always and outcome.on_stdout):
        outcome.show(shown)


def _fail_output(run: Run, error: OpsError | None = None) -> int:
    """Write no more to stdout; a reader that closed it (`| head`) is not an error."""
    run.terminal.abandon()
    if error is None:
        return EXIT_READER_GONE
    run.terminal.error(error.message, error.next_step)
    return error.exit_code


def report_error(run: Run, error: OpsError | InterruptedRunError) -> int:
    """Print an error, as two lines or as JSON, and return its exit code."""
    code = exit_code_of(error)
    if run.terminal.log:
        run.terminal.log.error(error)
    if run.settings.json:
        hints = (f"hint: {line}" for line in error.next_step.splitlines())
        run.terminal.remember(f"error: {error.message}", *hints)
        try:
            run.terminal.document(envelope(run, code, error=_details(error)))
            run.terminal.flush()
        except OSError:  # the exit code remains
            run.terminal.abandon()
            run.terminal.error(error.message, error.next_step)
    else:
        run.terminal.error(error.message, error.next_step)
    return code


def _details(error: OpsError | InterruptedRunError) -> dict[str, Any]:
    hint = error.next_step.splitlines()
    return {"code": error.code, "message": error.message, "hint": hint}


def exit_code_of(error: OpsError | InterruptedRunError) -> int:
    """Return the documented exit code of an error."""
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
    return {
        "schema": SCHEMA,
        "command": run.command,
        "status": "error" if error else _STATUS.get(exit_code, "error"),
        "exit_code": exit_code,
        "home": _home_of(run),
        "started_at": f"{run.started_at:%Y-%m-%dT%H:%M:%S}Z",
        "seconds": round(time.monotonic() - run.started, 3),
        "result": result,
        "warnings": [*run.warnings, *warnings],
        "error": error,
    }


def _home_of(run: Run) -> str:
    """Return the path of the home for reports; "" if unknown."""
    try:
        return str(run.home().root)
    except OpsError:
        return ""
