"""`config`: what the options are set to, and where that comes from."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import NotFoundError

if TYPE_CHECKING:
    from sagewai_ops.cli.config_file import EffectiveConfiguration

HELP = """Show the value of every option.

A flag has priority over the environment, then the configuration file, then the default. Without
--origin the output is a configuration file. Secrets are hidden.

Exit status:
  0   shown
  2   invalid configuration
  10  command not found
"""


@command("config show", HELP, result="sagewai_ops.cli.config_file:EffectiveConfiguration")
def show(
    run: Run,
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND]...", help="Command or group (default: all)."),
    ] = None,
    origin: Annotated[
        bool, typer.Option("--origin", help="Show where each value comes from.")
    ] = False,
) -> Outcome:
    """Collect, render."""
    from sagewai_ops.cli.config_file import EffectiveConfiguration, effective

    found = list(effective(run.context, tuple(words or ())))
    if not found:
        raise NotFoundError(f"{' '.join(words or ())}: no such command", hint="sagewai-ops --help")
    result = EffectiveConfiguration(run.settings.configuration_path, tuple(found))
    render = _show_origins if origin else _show_file
    return Outcome(result, lambda terminal: render(terminal, result), always=True)


def _show_origins(terminal: Terminal, result: "EffectiveConfiguration") -> None:
    terminal.table(
        ("option", "value", "from"),
        [
            [
                f"{option.table}.{option.key}".lstrip("."),
                "-" if option.value is None else _toml(option.value),
                option.origin or option.source,
            ]
            for option in result.values
        ],
    )


def _show_file(terminal: Terminal, result: "EffectiveConfiguration") -> None:
    """Write TOML; an option that is not set is a comment, because TOML has no null."""
    terminal.line(f"# configuration: {result.file or 'no file'}")
    table = ""
    for option in result.values:
        if option.table != table:
            table = option.table
            terminal.line()
            terminal.line(f"[{table}]")
        is_set = option.value is not None and option.value != "(hidden)"
        value = _toml(option.value) if option.value is not None else ""
        terminal.line(f"{'' if is_set else '# '}{option.key} = {value}".rstrip())


def _toml(value: Any) -> str:
    """Write a value; JSON strings, numbers, booleans and arrays are valid TOML."""
    return json.dumps(value, ensure_ascii=False)


COMMANDS = (show,)
