"""Commands and groups as Click sees them: former names of options and commands."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from sagewai_ops.cli.variables import FORMER_FLAGS

FORMER_COMMANDS = {"untrash": "undelete"}  # accepted, shown nowhere


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


class Group(TyperGroup):
    """A group that accepts the former names of its commands too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the arguments begin with."""
        return super().resolve_command(ctx, [FORMER_COMMANDS.get(args[0], args[0]), *args[1:]])
