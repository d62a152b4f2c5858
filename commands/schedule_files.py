"""What the commands of `schedule` that print files share: options, the user, the files."""

import pwd
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

from sagewai_ops.cli.command import Outcome
from sagewai_ops.cli.options import option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import UsageError
from sagewai_ops.text import shell_word

OwnerOption = Annotated[
    str | None, option(None, "--user", "User (default: the owner of the home).", "NAME")
]
IntoOption = Annotated[
    Path | None,
    option(None, "--into", "Write the files to this directory; existing ones are kept.", "DIR"),
]
REFUSED_OPTIONS = ("--output", "--dry-run")  # a dry run succeeds each night, without a snapshot
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]*\$?|[0-9]+")
_MODE = 0o644  # nothing in it is secret


def checked_user(user: str | None) -> str | None:
    """Check a user's name or number: the beginning is neither an option nor a new line."""
    if user is not None and not _USER.fullmatch(user):
        raise UsageError(f"--user {user}: not a user name", hint="--user sagewai")
    return user


def owner_of(home: Path) -> str:
    """Return the user that owns a home, or the directory where it will be created."""
    from sagewai_ops.fs.free_space import nearest_existing

    uid = nearest_existing(home).stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def this_program() -> Path:
    """Return the installed script: next to Python's own, else on PATH, else this process's."""
    script = Path(sys.executable).with_name("sagewai-ops")
    return script if script.exists() else Path(shutil.which("sagewai-ops") or sys.argv[0])


def files_outcome(
    files: list[Any], into: Path | None, *, dry_run: bool, warnings: tuple[str, ...]
) -> Outcome:
    """Print the files of a schedule, or write them to a directory."""
    from sagewai_ops.schedule.plan import Schedule

    if into is not None:
        _refuse_others(into, files)
        if dry_run:
            return plan_outcome(f"write {into / file.name}" for file in files)
        _write(into, files)
    schedule = Schedule(tuple(files), into.absolute() if into else None)

    def show(terminal: Terminal) -> None:
        for number, file in enumerate(files):
            if into is not None:
                terminal.line(f"written  {into / file.name}")
                continue
            if number:
                terminal.line()
            terminal.line(f"# {file.name}")
            for line in file.text.removesuffix("\n").split("\n"):
                terminal.line(line)

    return Outcome(schedule, show, warnings=warnings, always=into is None)


def _refuse_others(directory: Path, files: list[Any]) -> None:
    """Refuse to replace a file with other content."""
    from sagewai_ops.errors import TargetBusyError

    for file in files:
        path = directory / file.name
        if path.exists() and path.read_text(encoding="utf-8") != file.text:
            raise TargetBusyError(
                f"{path}: exists with other content", hint=f"rm {shell_word(path)}"
            )


def _write(directory: Path, files: list[Any]) -> None:
    from sagewai_ops.fs import atomic
    from sagewai_ops.fs.given_files import resolve_given_path

    directory = resolve_given_path(directory)
    for file in files:
        atomic.replace(directory / file.name, file.text.encode(), mode=_MODE)
