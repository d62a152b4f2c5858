"""Commands and groups as Click sees them: their help, and the former names that they accept."""

from collections.abc import Iterator
from typing import Any, cast

from typer.core import TyperCommand, TyperGroup

from sagewai_ops.cli import help as texts
from sagewai_ops.cli.options import GLOBAL
from sagewai_ops.cli.variables import FORMER_FLAGS

FORMER_COMMANDS = {"untrash": "undelete"}  # accepted, shown nowhere
_FEW = 7  # options that are shown without headings
_PERIODS = ("--keep-hourly", "--keep-daily", "--keep-weekly", "--keep-monthly", "--keep-yearly")
_GLOBAL_NOTE = "Global options (--home, --json, --quiet, ...): sagewai-ops --help"


class Command(TyperCommand):
    """A command that accepts the former names of its options too."""

    def make_parser(self, ctx: Any) -> Any:
        """Return the parser of its command line."""
        parser = super().make_parser(ctx)
        options = parser._long_opt  # noqa: SLF001 - Click has no way to hide one of two names
        for flag, former in FORMER_FLAGS.items():
            if flag in options:
                options.setdefault(former, options[flag])
        return parser

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help: purpose, guarantees, options in groups, exit statuses."""
        width = formatter.width
        prose, statuses = texts.split_status(self.help or "")
        arguments = [
            (argument.make_metavar(ctx), argument.help)
            for argument in cast("list[Any]", self.params)
            if argument.param_type_name == "argument" and argument.help
        ]
        sections = [
            " ".join(["Usage:", ctx.command_path, *self.collect_usage_pieces(ctx)]),
            texts.paragraphs(prose, width),
        ]
        if arguments:
            sections.append(texts.section("Arguments", arguments, width))
        # Without empty lines between them: the help of a command is one screen.
        sections.append(
            "\n".join(
                [
                    *(
                        texts.section(heading, describe_options(options), width)
                        for heading, options in grouped_options(self)
                    ),
                    _GLOBAL_NOTE,
                ]
            )
        )
        if statuses:
            sections.append(texts.section("Exit status", statuses, width))
        formatter.write("\n\n".join(filter(None, sections)) + "\n")


class Group(TyperGroup):
    """A group that accepts the former names of its commands too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments begin with."""
        return super().resolve_command(ctx, [FORMER_COMMANDS.get(args[0], args[0]), *args[1:]])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help: purpose and commands."""
        commands = [(name, command.short_help or "") for name, command in self.commands.items()]
        sections = [
            f"Usage: {ctx.command_path} [OPTIONS] COMMAND [ARGS]...",
            texts.paragraphs(self.help or "", formatter.width),
            texts.section("Commands", commands, formatter.width),
            _GLOBAL_NOTE,
        ]
        formatter.write("\n\n".join(sections) + "\n")


class Program(Group):
    """The program, whose help does not depend on the commands that are loaded."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the first page."""
        del ctx
        formatter.write(texts.program_help(formatter.width))


def grouped_options(command: Any) -> list[tuple[str, list[Any]]]:
    """Return a command's own options by heading, in the order of their declaration."""
    own = [option for option in command.params if _is_own(option)]
    if len(own) <= _FEW:
        return [("Options", own)] if own else []
    found: dict[str, list[Any]] = {}
    for option in own:
        found.setdefault(option.rich_help_panel or "Options", []).append(option)
    return list(found.items())


def describe_options(options: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and the description of options; those of the periods share a row."""
    for option in options:
        if option.opts[0] == _PERIODS[0]:
            names = "|".join(
                [_PERIODS[0], *(flag.removeprefix("--keep-") for flag in _PERIODS[1:])]
            )
            yield f"{names} N", "Keep the newest of each of N periods (UTC)."
        elif option.opts[0] not in _PERIODS:
            yield describe_option(option)


def describe_option(option: Any) -> tuple[str, str]:
    """Return an option's names with its value, and its description with the default."""
    names = ", ".join(sorted(option.opts, key=len) if len(option.opts[-1]) == 2 else option.opts)
    value = "" if option.is_flag else f" {option.metavar or 'N'}"
    return names + value, " ".join(_described(option))


def _described(option: Any) -> Iterator[str]:
    text, _, shown = (option.help or "").partition(" (default:")
    default = getattr(option.default, "value", option.default)
    if shown:
        yield f"{text} (default:{shown}"
    elif isinstance(default, float):
        yield f"{text.rstrip('.')} (default: {default:g})."
    elif default and not option.is_flag:
        yield f"{text.rstrip('.')} (default: {default})."
    else:
        yield text


def _is_own(option: Any) -> bool:
    """Return whether an option is neither a global one nor the parser's `--help`."""
    is_option = option.param_type_name == "option" and not option.hidden
    return is_option and option.name not in (*GLOBAL, "help")
