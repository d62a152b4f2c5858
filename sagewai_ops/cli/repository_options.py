"""The options `--engine` and `--repository`, and the password of a repository."""

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from sagewai_ops.cli.options import REPOSITORY
from sagewai_ops.cli.settings import Settings
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import UsageError
from sagewai_ops.fs.given_files import passed_descriptor
from sagewai_ops.home.paths import Home
from sagewai_ops.remote.address import ENGINES, REPOSITORY_VARIABLES
from sagewai_ops.remote.path import has_trees, is_remote, parse_place
from sagewai_ops.text import printable, shell_word


def repository_options(
    command: str, parameters: Sequence[inspect.Parameter]
) -> dict[str, tuple[Any, Any]]:
    """Return the options of a command that accepts a snapshot directory; {} for another one.

    Args:
        command: As typed; `schedule` passes the options of `backup` on, and has none of its own.
        parameters: Of the command's function.
    """
    if command.startswith("schedule") or not any(map(_names_snapshots, parameters)):
        return {}
    own = {parameter.name for parameter in parameters}
    return {name: value for name, value in REPOSITORY.items() if name not in own}


def find_mirror_directory(settings: Settings, home: Home, option: Path | None) -> Path:
    """Find the directory of the mirror that `backup` stores in a repository.

    Raises:
        UsageError: It is not a directory.
    """
    path = settings.directory(home, option)
    if has_trees(path):
        path = home.snapshots
    if is_remote(path):
        raise UsageError(
            f"{path}: not a directory, which the mirror of the home needs",
            hint="sagewai-ops backup --engine restic --repository R --snapshots DIR",
        )
    return Path(os.path.realpath(path))


def with_repository(settings: Settings, terminal: Terminal, options: Mapping[str, Any]) -> Settings:
    """Return the settings of a run with its repository, and where its password is.

    Args:
        options: Of the command: `engine`, `repository`, `passphrase_file`, `passphrase_command`,
            `work_dir`, `key_file` and `extra_key` count.

    Raises:
        UsageError: The engine is unknown, or one of the two options is missing.
    """
    engine, repository = options.get("engine"), options.get("repository")
    file, command = options.get("passphrase_file"), options.get("passphrase_command")
    if repository and not engine:
        raise UsageError(
            "--repository: no engine",
            hint=f"add --engine restic or --engine borg, for {shell_word(repository)}",
        )
    if engine:
        if engine not in ENGINES:
            raise UsageError(f"--engine {printable(engine)}: not one of {', '.join(ENGINES)}")
        variable = REPOSITORY_VARIABLES[engine]
        repository = repository or settings.environment.get(variable)
        if not repository:
            raise UsageError(f"--engine {engine}: no repository", hint="add --repository R")
        settings = replace(settings, repository=parse_place(f"{engine}:{repository}"))

    def password() -> str:
        from sagewai_ops.cli.credentials import read_password
        from sagewai_ops.engines.secrets import refuse_roots_secret

        if file == "-":
            raise UsageError("--passphrase-file -: not possible for a repository")
        if command or not os.access(str(file), os.R_OK):
            what = "--passphrase-command" if command else f"--passphrase-file {file}"
            refuse_roots_secret("engine", what)
        return read_password(terminal, file, command)

    if file or command:
        settings = replace(settings, repository_password=password)
    key = options.get("key_file") or options.get("extra_key")
    if key and (str(key) == "-" or passed_descriptor(str(key)) is not None):
        key = None  # which is read once
    return replace(settings, work_dir=options.get("work_dir"), key_file=key)


def _names_snapshots(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is the option that names a snapshot directory."""
    if get_origin(parameter.annotation) is not Annotated:
        return False
    _kind, option = get_args(parameter.annotation)
    declared = [getattr(option, "default", None), *(getattr(option, "param_decls", None) or ())]
    return "--snapshots" in declared
