"""Commands that print a passphrase or a private key: of a vault, a KMS or a password manager.

They are run with the rights of the user who runs the program, who has given them. Root takes the
rights of a home's owner for its work on it: the commands are run before that, because the owner
could read the memory of a program with these rights, and has none of root's access.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.errors import OpsError
from sagewai_ops.fs.given_files import path_owners
from sagewai_ops.fs.trust import is_trusted_directory

if TYPE_CHECKING:
    from sagewai_ops.cli.command import Run

METAVAR = "COMMAND"  # of options that take a command
PASSPHRASE, IDENTITY = "passphrase_command", "identity_command"  # parameters
_BACKUP_VARIABLE = "SAGEWAI_OPS_BACKUP_PASSPHRASE_COMMAND"
_outputs: dict[str, bytes | OpsError] = {}


def read_command(command: str, parameter: str) -> bytes:
    """Run a command, unless `prepare_commands` has run it, and return what it prints.

    Args:
        parameter: That of its option.

    Raises:
        OpsError: As `command_output.read_output`.
    """
    from sagewai_ops.process.command_output import read_output, split_command

    output = _outputs.get(command)
    if output is None:
        return read_output(split_command(command), parameter.replace("_", " "))
    if isinstance(output, OpsError):
        raise output
    return output


def prepare_commands(run: "Run", options: Mapping[str, Any]) -> None:
    """Run the commands of a run, before root drops its rights.

    An error is raised where the output is needed: an unreachable vault does not prevent an undo.

    Args:
        options: Of the command.

    Raises:
        InterruptedRunError: At a signal.
    """
    for command, parameter in _commands(run, options):
        try:
            _outputs[command] = read_command(command, parameter)
        except OpsError as error:
            _outputs[command] = error


def automatic_command(run: "Run") -> str | None:
    """Return the command for the passphrase of `backup`, of its variable or the configuration."""
    configured = (run.context.find_root().default_map or {}).get("backup") or {}
    return run.settings.environment.get(_BACKUP_VARIABLE) or configured.get(PASSPHRASE)


def join_command(words: list[Any]) -> str:
    """Return the text of a command that is given as a list of words.

    Raises:
        ValueError: It is empty, or not of texts.
    """
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError("not a list of words")
    import shlex

    return shlex.join(words)


def is_safe_source(path: Path) -> bool:
    """Return whether no other user can change or replace a file that contains a command."""
    real = Path(os.path.realpath(path))
    return path_owners(path) <= {os.geteuid()} and is_trusted_directory(real.parent)


def _commands(run: "Run", options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for parameter in (PASSPHRASE, IDENTITY):
        if options.get(parameter):
            yield options[parameter], parameter
    if "recipient" in options and (command := automatic_command(run)):
        yield command, PASSPHRASE
