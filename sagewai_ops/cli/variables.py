"""The environment variables of options.

Each command has its own, `SAGEWAI_OPS_<COMMAND>_<OPTION>`: one that is set for `backup` does not
change `restore`. Only the global options and the snapshot directory have a variable for all
commands. Options that act, answer a question or disable a safeguard have none, nor a key in the
configuration file. docs/configuration.md describes this for users.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sagewai_ops.cli.settings import SNAPSHOTS_VARIABLE
from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass

PREFIX = "SAGEWAI_OPS_"
# Accepted on the command line only. The last two lines select what a command does.
ACTING = frozenset((
    *("--fix", "--undo", "--recover", "--replace", "--rebuild", "--into"),
    *("--yes", "--force", "--all", "--no-snapshot", "--allow-live", "--keep-work-dir"),
    *("--live-first", "--stop-command"),
    *("--revoke-sessions", "--rebind-fleet", "--without-key", "--leave-unopened"),
    *("--allow-rollback", "--owner", "--same-owner", "--unencrypted", "--sqlite", "--to-sqlite"),
    *("--accept-change", "--allow-clear", "--if-empty", "--init-repository"),
    *("--dry-run", "--plan", "--rehearse", "--sql", "--verify-only", "--abandon"),
))  # fmt: skip
# Flag -> its former name: accepted, shown nowhere.
FORMER_FLAGS = {
    "--all-paths": "--any-place",
    "--extra-key": "--key-file",
    "--install-key": "--key-file",
    "--work-dir": "--scratch",
}
# Variables of 0.1, `SAGEWAI_OPS_<OPTION>`, with one meaning in all commands: deprecated.
_DEPRECATED = (
    *("ANY_PLACE", "COMPACT", "EXCLUDE", "FILES", "IDENTITY", "IMAGE", "KEEP_DAILY", "KEEP_HOURLY"),
    *("KEEP_LAST", "KEEP_MONTHLY", "KEEP_TAG", "KEEP_WEEKLY", "KEEP_WITHIN", "KEEP_YEARLY", "KEY"),
    *("LEARNINGS", "LEVEL", "LOG_FILE", "METRICS_FILE", "NEW_KEY_FILE", "NO_KEY", "ON_INVALID"),
    *("ONLY", "ORIGIN", "OUTPUT", "PASSPHRASE_FILE", "PING_URL", "PING_URL_FILE", "PROGRAM"),
    *("RECIPIENT", "RECIPIENTS_FILE", "REPORT", "REVISION", "SCRATCH", "SHEET", "STRICT", "TIME"),
    "URL_FILE",
)
# Those whose meaning differed between commands: refused where they would be used.
_AMBIGUOUS = ("FORMAT", "KEY_FILE", "TAG", "TO", "USER", "WAIT")
# Per-command variables of 0.1 that were named otherwise.
_RENAMED = {
    ("keys escrow", "--to"): "SAGEWAI_OPS_ESCROW_TO",
    ("snapshots extract", "--to"): "SAGEWAI_OPS_EXTRACT_TO",
}


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of one option of one command.

    Attributes:
        parameter: The option's parameter.
        flag: Its first long name.
        name: The variable; "" for an option that is accepted on the command line only.
        deprecated: Former names that still work.
        refused: Names that are an error where they are set.
    """

    parameter: str
    flag: str
    name: str
    deprecated: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Every variable that is read, the strongest first."""
        return [self.name, *self.deprecated] if self.name else []


def variables_of(command: str, parameter: str, flags: Iterable[str]) -> Variables:
    """Return the variables of an option.

    Args:
        command: As typed, such as `snapshots list`; "" for a global option.
        flags: Its long names, the first one first.
    """
    flag, *others = flags
    names = [*map(_key, (flag, *others))]
    if flag in FORMER_FLAGS:
        names.append(_key(FORMER_FLAGS[flag]))
    own = PREFIX + _key(f"{command} {flag}" if command else flag)
    if flag in ACTING:
        every = [*names, *(_key(f"{command} {word}") for word in (flag, *others))]
        return Variables(parameter, flag, "", refused=tuple(PREFIX + name for name in every))
    if flag == "--snapshots":
        own = SNAPSHOTS_VARIABLE
    elif not command:
        return Variables(parameter, flag, own)
    deprecated = [PREFIX + name for name in names if name in _DEPRECATED]
    if (command, flag) in _RENAMED:
        deprecated.append(_RENAMED[command, flag])
    refused = [PREFIX + name for name in names if name in _AMBIGUOUS]
    return Variables(parameter, flag, own, tuple(deprecated), tuple(refused))


def check_variables(
    context: Any, options: Iterable[Variables], environment: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """Yield a warning for each deprecated variable that is used.

    Args:
        context: The parser's, of the command.

    Raises:
        UsageError: A variable of an option that is accepted on the command line only is set, or
            one whose meaning differed between commands would be used.
    """
    for option in options:
        source = getattr(context.get_parameter_source(option.parameter), "name", "")
        for name in option.refused:
            if not environment.get(name):
                continue
            if not option.name:
                raise UsageError(
                    f"variable {name}: {option.flag} is accepted on the command line only",
                    hint=f"unset {name}",
                )
            if source not in ("COMMANDLINE", "ENVIRONMENT"):
                raise UsageError(
                    f"variable {name}: ambiguous, its meaning differs between commands",
                    hint=f'export {option.name}="${name}"; unset {name}',
                )
        if source == "ENVIRONMENT":
            name = next(filter(environment.get, option.names), option.name)
            if name in option.deprecated:
                yield f"variable {name}: deprecated, use {option.name}"


def _key(words: str) -> str:
    """Write a command or a flag as in a variable's name."""
    return words.replace(" --", "_").lstrip("-").replace("-", "_").replace(" ", "_").upper()
