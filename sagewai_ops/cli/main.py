"""The program: loads the commands by name, and is the only place that exits.

Even `pathlib` and `dataclasses` are imported late: scripts ask for the version before every run.
"""

import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from sagewai_ops import __version__
from sagewai_ops.cli import help as texts

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from sagewai_ops.cli.settings import Settings

_SUMMARIES = {name: text for rows in texts.COMMANDS.values() for name, text in rows.items()}
COMMANDS = tuple(_SUMMARIES)
_WITH_VALUES = {"--home", "--config"}  # the program's own options that are followed by a value
_NEED_ALL = {"config", "schedule"}  # they read the options of other commands
_HELP_FLAGS = {"--help", "-h", "--version", "--install-completion", "--show-completion"}
_COMPLETION = "_SAGEWAI_OPS_COMPLETE"  # set by the shells' completion scripts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    gc.disable()  # modules are no garbage; `run` enables it
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that the locale cannot encode is escaped.
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is not None:
        sys.stderr = Unfailing(sys.stderr)
    if words == ["--version"]:
        # Answered before Typer is imported: scripts ask often.
        sys.exit(_write(f"sagewai-ops {__version__}\n"))
    if words in (["--help"], ["-h"]):
        sys.exit(_write(texts.program_help()))
    from sagewai_ops.process import core_dumps, signals

    core_dumps.forbid()
    signals.defer_signals()
    try:
        code = run(words)
    except KeyboardInterrupt:  # while it loaded: nothing was begun
        code = _interrupted(words)
    signals.ignore_signals()
    gc.freeze()  # else Python looks for garbage among all objects before it exits
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run one command line and return its exit code; never raises for a user's error."""
    from dataclasses import replace

    import typer

    from sagewai_ops.cli.command import Run, read_settings, report_error, translate
    from sagewai_ops.cli.settings import Settings
    from sagewai_ops.cli.terminal import Terminal
    from sagewai_ops.errors import OpsError, UsageError

    # Click's own base class, wherever this version of Typer keeps Click.
    click_error: Any = typer.BadParameter.__mro__[2]
    ours = list(words[: words.index("--")] if "--" in words else words)
    is_json = "--json" in ours
    if "--version" in ours:  # anywhere in the line
        return _print_version(is_json=is_json)
    program = typer.main.get_command(build_app(_needed(words)))
    try:
        settings, defaults = _configured(ours)
    except (OpsError, OSError) as error:
        failure = translate(error) if isinstance(error, OSError) else error
        if failure is None:
            raise
        settings = Settings(json=is_json, environment=dict(os.environ))
        return report_error(Run("", settings, Terminal(json=is_json)), failure)
    gc.freeze()
    gc.enable()
    try:
        code = program(
            list(words),
            prog_name="sagewai-ops",
            standalone_mode=False,
            obj=settings,
            default_map=defaults,
        )
    except click_error as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "sagewai-ops"
        failure = UsageError(_message(error, context, path), hint=f"{path} --help")
        # What was parsed until then is known.
        known = settings if context is None else read_settings(context)
        home = _named(ours, "--home") or known.home_option
        settings = replace(known, json=known.json or is_json, home_option=home)
        name = path.removeprefix("sagewai-ops").strip()
        return report_error(Run(name, settings, Terminal(json=settings.json)), failure)
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted(words)
    except OSError as error:  # of a command, it is reported there: this is the help
        return _fail_output(error)
    return code if isinstance(code, int) else 0


class Unfailing(io.TextIOBase):
    """Standard error, whose failures change nothing: the disk of a log may be full.

    Args:
        stream: What it writes to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        """Write a text, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or lose it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding


def _open_standard_streams() -> None:
    """Open descriptors 0 to 2 where they are closed, so that no file of the home becomes one."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def _write(text: str) -> int:
    """Write a text that is all that was asked for; return the exit code."""
    if sys.stdout is None:
        return _fail_output(OSError(errno.EBADF, "closed"))
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        return _fail_output(error)
    return 0


def _fail_output(error: OSError) -> int:
    """Report that standard output cannot be written, and return the exit code."""
    from sagewai_ops.cli.terminal import Terminal
    from sagewai_ops.errors import EXIT_READER_GONE
    from sagewai_ops.fs.os_errors import output_error

    sys.stdout = None  # else it is flushed again at the end
    if isinstance(error, BrokenPipeError):
        return EXIT_READER_GONE
    failure = output_error(error)
    Terminal().error(failure.message, failure.next_step)
    return failure.exit_code


def _print_version(*, is_json: bool) -> int:
    """Print the version; as JSON in the envelope of every command."""
    from sagewai_ops.cli.command import Run, envelope
    from sagewai_ops.cli.settings import Settings
    from sagewai_ops.cli.terminal import Terminal

    if is_json:
        run = Run("", Settings(json=True, environment=dict(os.environ)), Terminal(json=True))
        try:
            run.terminal.document(envelope(run, 0, result={"version": __version__}))
            run.terminal.flush()
        except OSError as error:
            return _fail_output(error)
        return 0
    return _write(f"sagewai-ops {__version__}\n")


def _interrupted(words: Sequence[str]) -> int:
    """Report an interruption before a command was running."""
    import signal

    from sagewai_ops.cli.command import Run, report_error
    from sagewai_ops.cli.settings import Settings
    from sagewai_ops.cli.terminal import Terminal
    from sagewai_ops.errors import InterruptedRunError

    settings = Settings(json="--json" in words, environment=dict(os.environ))
    run = Run("", settings, Terminal(json=settings.json))
    return report_error(run, InterruptedRunError(signal.SIGINT))


def _needed(words: Sequence[str]) -> Sequence[str]:
    """Return the commands that a command line needs: the one that it names, else all.

    Loading one instead of all takes 30 ms off the start of every run.
    """
    if _COMPLETION in os.environ:
        return COMMANDS
    rest = iter(words)
    for word in rest:
        if word in _HELP_FLAGS:
            return COMMANDS
        if word in _WITH_VALUES:
            next(rest, None)
        elif not word.startswith("-"):
            return (word,) if word in COMMANDS and word not in _NEED_ALL else COMMANDS
    return COMMANDS


def _configured(words: Sequence[str]) -> "tuple[Settings, dict[str, Any]]":
    """Read the configuration: the settings of all commands, and the parser's defaults.

    Raises:
        UsageError: It is invalid.
    """
    import typer

    from sagewai_ops.cli.config_file import Configuration, read
    from sagewai_ops.cli.settings import Settings

    # Help and completion must work, above all where the configuration does not.
    is_only_asked = _COMPLETION in os.environ or bool(_HELP_FLAGS & set(words))
    found = Configuration()
    if not is_only_asked:
        found = read(
            _named(words, "--config"), os.environ, lambda: typer.main.get_command(build_app())
        )
    missing = {name: text for name, text in found.environment.items() if not os.environ.get(name)}
    environment = {**os.environ, **missing}
    settings = Settings(
        environment=environment, configuration_path=found.path, remotes=found.remotes
    )
    return settings, dict(found.defaults)


def _message(error: Any, context: Any, path: str) -> str:
    """Return the error of a command line in one line."""
    # This one's own message is the whole help.
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        known = ", ".join(context.command.list_commands(context))
        return f"{path}: no command is given, known are {known}"
    if type(error).__name__ == "NoSuchOption":  # each version of Click words it in another way
        near = " or ".join(sorted(error.possibilities or ()))
        return f"no such option: {error.option_name}" + (f", did you mean {near}" if near else "")
    message: str = error.format_message()
    before, separator, after = message.partition(" (env var: ")  # a list of all, in brackets
    if separator:
        message = before + _named_variable(error, context) + after.partition(")")[2]
    return (message[:1].lower() + message[1:]).rstrip(".")


def _named_variable(error: Any, context: Any) -> str:
    """Return the variable that an invalid value was read from, in parentheses; "" for no one."""
    option = getattr(error, "param", None)
    if option is None or context is None:
        return ""
    source = context.get_parameter_source(option.name)
    if getattr(source, "name", "") != "ENVIRONMENT":
        return ""
    names = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
    return next((f" ({name})" for name in names if os.environ.get(name)), "")


def _named(words: Sequence[str], option: str) -> "Path | None":
    """Find an option's last value on a command line that is not parsed, or could not be."""
    from pathlib import Path

    found = None
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if word == option and value:
            found = Path(value)
        if word.startswith(option + "="):
            found = Path(word[len(option) + 1 :])
    return found


def build_app(names: Sequence[str] = COMMANDS) -> "typer.Typer":
    """Build the Typer app with these of `COMMANDS` registered."""
    from importlib import import_module
    from typing import Annotated

    import typer

    from sagewai_ops.cli.command import add_command, add_global_options, command_group
    from sagewai_ops.cli.parser import Program

    app = typer.Typer(
        name="sagewai-ops",
        cls=Program,
        help=texts.SUMMARY,
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    # For the help only: `run` has answered it already.
    version = typer.Option("--version", help="Print the version.", is_eager=True)
    add_global_options(app, texts.SUMMARY, variables=[], version=(Annotated[bool, version], False))
    for name in names:
        function = name.replace("-", "_")
        module = import_module(f"sagewai_ops.commands.{function}")
        if not hasattr(module, "COMMANDS"):
            add_command(app, getattr(module, function))
            continue
        group = command_group(name, _SUMMARIES[name])
        for declared in module.COMMANDS:
            add_command(group, declared)
        app.add_typer(group)
    return app
