"""`schedule`: print what runs `backup` every night: systemd, cron, Compose, Kubernetes."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command, command_group
from sagewai_ops.cli.options import RUN, SNAPSHOTS
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import UsageError
from sagewai_ops.text import shell_word

HELP = """{summary}

Nothing is installed unless --into is given. Options of `backup` follow --, and are checked. Files
with secrets are passed by the means of the system; no secret is printed.

Exit status:
  0   printed or written
  2   invalid option
  10  directory of --into not found
  14  permission denied
  15  a different file exists
"""
SUMMARIES = {
    "systemd": "Print a systemd service and its timer.",
    "cron": "Print a line for a crontab.",
    "compose": "Print a Compose service to run next to Sagewai's own.",
    "kubernetes": "Print a Kubernetes CronJob.",
}
_PLACES = ("DIR", "F", "FILE")  # how options that take a path call it
_OURS = {
    "--snapshots": "--snapshots DIR",
    "--to": "--snapshots DIR",
    "--home": "--home DIR",
}  # given to schedule itself
_MODE = 0o644  # nothing in it is secret


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = command_group("schedule", "Print a schedule for nightly backups.")
    functions: dict[str, Callable[..., Outcome]] = {
        "systemd": systemd, "cron": cron, "compose": compose, "kubernetes": kubernetes,
    }  # fmt: skip
    for name, summary in SUMMARIES.items():
        text = HELP.format(summary=summary)
        add_command(group, f"schedule {name}", functions[name], text, changes=True)
    app.add_typer(group)


TimeOption = Annotated[
    str,
    typer.Option(
        "--time",
        metavar="HH:MM",
        help="Time of day, in containers UTC.",
        rich_help_panel=RUN,
    ),
]
ToOption = Annotated[
    Path | None,
    typer.Option(
        "--snapshots",
        "--to",
        metavar="DIR",
        help="Snapshot directory (default: HOME.snapshots).",
        rich_help_panel=SNAPSHOTS,
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="NAME",
        help="User (default: root, or the current user).",
    ),
]
ContainerUserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="UID:GID",
        help="User (default: 1001:1001, as Sagewai).",
    ),
]
ProgramOption = Annotated[
    Path | None,
    typer.Option(
        "--program",
        metavar="FILE",
        help="Program to run (default: this one).",
    ),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="NAME",
        help="Container image (default: that of the Dockerfile).",
    ),
]
IntoOption = Annotated[
    Path | None,
    typer.Option(
        "--into",
        metavar="DIR",
        help="Write the files to this directory; existing ones are kept.",
    ),
]
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- OPTION...]", help="Options of `backup`.", show_default=False),
]


def systemd(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    to: ToOption = None,
    user: UserOption = None,
    program: ProgramOption = None,
    into: IntoOption = None,
) -> Outcome:
    """Plan, write."""
    from sagewai_ops.schedule.host import systemd as units

    plan = _plan(run, words, time, to, user, program)
    return _outcome(units(plan), into)


def cron(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    to: ToOption = None,
    user: UserOption = None,
    program: ProgramOption = None,
    into: IntoOption = None,
) -> Outcome:
    """Plan, write."""
    from sagewai_ops.schedule.host import cron as crontab

    plan = _plan(run, words, time, to, user, program)
    return _outcome(crontab(plan), into)


def compose(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    to: ToOption = None,
    user: ContainerUserOption = None,
    image: ImageOption = None,
    into: IntoOption = None,
) -> Outcome:
    """Plan, write."""
    from sagewai_ops.schedule.containers import compose as services

    plan = _plan(run, words, time, to, _ids(user), None)
    is_named = run.settings.home_option or run.settings.environment.get("SAGEWAI_HOME")
    files = services(
        plan,
        *_image(plan, image),
        home=str(plan.home) if is_named else "",
        snapshots=str(to.absolute()) if to else "",
    )
    return _outcome(files, into)


def kubernetes(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    user: ContainerUserOption = None,
    image: ImageOption = None,
    into: IntoOption = None,
) -> Outcome:
    """Plan, write."""
    from sagewai_ops.schedule.containers import kubernetes as cron_job

    plan = _plan(run, words, time, None, _ids(user), None)
    return _outcome(cron_job(plan, *_image(plan, image)), into)


def _image(plan: Any, named: str | None) -> tuple[str, list[str]]:
    """Give the image's name, and how to make it where it is ours."""
    from sagewai_ops import __version__
    from sagewai_ops.schedule.containers import image_note

    if named:
        return named, []
    name = f"sagewai-ops:{__version__}"
    return name, image_note(name, __version__, plan.user)


def _plan(
    run: Run,
    words: list[str] | None,
    time: str,
    to: Path | None,
    user: str | None,
    program: Path | None,
) -> Any:
    from sagewai_ops.schedule.host import Plan, time_of

    home = run.home()
    hour, minute = time_of(time)
    if user is not None and not user.replace("-", "").replace(":", "").isalnum():
        raise UsageError(f"--user {user}: is no name of a user", hint="such as --user sagewai")
    return Plan(
        program=(program or _this_program()).absolute(),
        home=home.root,
        snapshots=run.snapshots(home, to),
        words=_checked(run, words or []),
        hour=hour,
        minute=minute,
        user=user or "",
    )


def _ids(user: str | None) -> str | None:
    """Check a user of a container, where names mean nothing."""
    parts = (user or "1:1").split(":")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(
            f"--user {user}: is no UID:GID of a user but root", hint="--user 1001:1001"
        )
    return user


def _checked(run: Run, words: list[str]) -> tuple[str, ...]:
    """Parse options as `backup` would, tonight; paths are absolute afterwards.

    Raises:
        UsageError: One is given to `schedule` itself, holds a secret, or keeps a snapshot from
            going into the directory.
    """
    from sagewai_ops.cli.config_file import SECRET_OPTIONS
    from sagewai_ops.schedule.host import pairs

    root = run.context.find_root()
    backup = root.command.commands["backup"]
    backup.make_context("backup", list(words), parent=root)  # raises the parser's own error
    places = {flag for one in backup.params if one.metavar in _PLACES for flag in one.opts}
    found: list[str] = []
    for word, value in pairs(words):
        if word in _OURS:
            raise UsageError(f"{word}: belongs in front of --", hint=f"schedule ... {_OURS[word]}")
        if word.removeprefix("--") in SECRET_OPTIONS:
            raise UsageError(f"{word}: is a secret, which no unit should hold", hint=f"{word}-file")
        if word == "--output" or value == "-":
            raise UsageError(f"{word}: has no use at night, where nobody pipes or types")
        found.append(word)
        if value is not None:
            found.append(os.path.abspath(os.path.expanduser(value)) if word in places else value)
    return tuple(found)


def _this_program() -> Path:
    """Find the installed script: beside Python's own, else on PATH, else how we were called."""
    beside = Path(sys.executable).with_name("sagewai-ops")
    return beside if beside.exists() else Path(shutil.which("sagewai-ops") or sys.argv[0])


def _outcome(files: list[Any], into: Path | None) -> Outcome:
    if into is not None:
        _write(into, files)
    result = {
        "files": [{"name": one.name, "text": one.text} for one in files],
        "into": str(into.absolute()) if into else None,
    }

    def show(terminal: Terminal) -> None:
        for number, one in enumerate(files):
            if into is not None:
                terminal.line(f"written  {into / one.name}")
                continue
            if number:
                terminal.line()
            terminal.line(f"# {one.name}")
            for line in one.text.splitlines():
                terminal.line(line)

    return Outcome(result, show, always=into is None)


def _write(directory: Path, files: list[Any]) -> None:
    from sagewai_ops.errors import TargetBusyError
    from sagewai_ops.fs import atomic

    for one in files:
        path = directory / one.name
        if path.exists() and path.read_text(encoding="utf-8") != one.text:
            raise TargetBusyError(
                f"{path}: is there, and says something else", hint=f"rm {shell_word(path)}"
            )
    for one in files:
        atomic.replace(directory / one.name, one.text.encode(), mode=_MODE)
