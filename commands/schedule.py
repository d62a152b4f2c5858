"""`schedule`: print what runs `backup` every night: systemd, cron, Compose, Kubernetes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from sagewai_ops.cli.command import Declared, Outcome, Run, command
from sagewai_ops.cli.options import RUN, DryRunOption, option
from sagewai_ops.database.url import VARIABLES
from sagewai_ops.errors import UsageError
from sagewai_ops.remote.address import is_remote
from sagewai_ops.remote.path import is_remote as is_remote_path
from sagewai_ops.schedule.plan import parse_options
from sagewai_ops.text import shell_word

from .schedule_files import (  # noqa: TID251 - a neighbour
    REFUSED_OPTIONS,
    IntoOption,
    OwnerOption,
    checked_user,
    files_outcome,
    owner_of,
    this_program,
)
from .schedule_litestream import litestream  # noqa: TID251 - a neighbour
from .schedule_run import run_schedule  # noqa: TID251 - a neighbour
from .shared_options import BackupSnapshotsOption  # noqa: TID251 - a neighbour

HELP = """{summary}

Nothing is installed unless --into is given. Options of `backup` follow --, and are checked. Files
with secrets are passed by the means of the system; no secret is printed.

Exit status:
  0   printed or written
  2   invalid option
  10  home, a file of an option or directory of --into not found
  14  permission denied
  15  a different file exists
"""
_PATH_METAVARS = ("DIR", "F", "FILE")  # of the options that take a path
_OWN_OPTIONS = {
    "--snapshots": "--snapshots DIR",
    "--to": "--snapshots DIR",
    "--home": "--home DIR",
}  # of schedule itself
_NAMES_DATABASE = ("--url-file", "--without-database", "--sqlite")
_UNREADABLE = (
    "encrypted to recipients: neither a drill nor a restore is printed, add --identity FILE"
)
_NO_KEY = (
    "master key: not in the snapshots, so an empty volume is restored without it:"
    " add --install-key FILE, or -- --key sealed"
)
_NO_SERVER = (
    "drill: has no PostgreSQL server, and reports that the database was not drilled:"
    " add --scratch-url-file FILE"
)


def _command(kind: str, summary: str) -> Callable[[Callable[..., Outcome]], Declared]:
    text = HELP.format(summary=summary)
    result = "sagewai_ops.schedule.plan:Schedule"
    return command(f"schedule {kind}", text, result=result, changes=True)


TimeOption = Annotated[str, option(RUN, "--time", "Time of day, in containers UTC.", "HH:MM")]
UserOption = Annotated[
    str | None, option(None, "--user", "User (default: root, or the current user).", "NAME")
]
RootOption = Annotated[
    bool, option(None, "--root", "Run as root, and read the home in a process of its owner.")
]
ContainerUserOption = Annotated[
    str | None, option(None, "--user", "User (default: 1001:1001, as Sagewai).", "UID:GID")
]
ProgramOption = Annotated[
    Path | None, option(None, "--program", "Program to run (default: this one).", "FILE")
]
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- OPTION...]", help="Options of `backup`.", show_default=False),
]


class ContainerOptions(NamedTuple):
    """What the containers of a schedule need besides the options of `backup`."""

    image: Annotated[
        str | None,
        option(None, "--image", "Container image (default: that of `make image`).", "NAME"),
    ] = None
    identity: Annotated[
        Path | None,
        option(None, "--identity", "Age or SSH private key of the drill and the restore.", "FILE"),
    ] = None
    install_key: Annotated[
        Path | None,
        option(
            None, "--install-key", "Master key that a restore to an empty volume installs.", "FILE"
        ),
    ] = None
    scratch_url_file: Annotated[
        Path | None,
        option(
            None,
            "--scratch-url-file",
            "File with the URL of the PostgreSQL server of the drill.",
            "FILE",
        ),
    ] = None
    credentials: Annotated[
        Path | None, option(None, "--credentials", "Credentials of the remote place.", "FILE")
    ] = None


@_command("systemd", "Print a systemd service and its timer.")
def systemd(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    to: BackupSnapshotsOption = None,
    user: OwnerOption = None,
    as_root: RootOption = False,
    program: ProgramOption = None,
    into: IntoOption = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Print systemd units."""
    from sagewai_ops.schedule import host

    if as_root and user:
        raise UsageError("--root: contradicts --user", hint="schedule systemd --root")
    name = "" if as_root else checked_user(user) or owner_of(run.home().root)
    plan = _plan(run, words, time, to, name, program)
    _check_files(run, plan)
    return files_outcome(host.systemd(plan), into, dry_run=dry_run, warnings=_warnings(run, plan))


@_command("cron", "Print a line for a crontab.")
def cron(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    to: BackupSnapshotsOption = None,
    user: UserOption = None,
    program: ProgramOption = None,
    into: IntoOption = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Print a crontab."""
    from sagewai_ops.schedule import host

    plan = _plan(run, words, time, to, checked_user(user), program)
    _check_files(run, plan)
    return files_outcome(host.cron(plan), into, dry_run=dry_run, warnings=_warnings(run, plan))


@_command("compose", "Print Compose services to run next to Sagewai's own.")
def compose(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    to: BackupSnapshotsOption = None,
    user: ContainerUserOption = None,
    options: ContainerOptions,
    into: IntoOption = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Print a Compose file."""
    from sagewai_ops.schedule import containers

    to = _outside(to)
    plan = _plan(run, words, time, to, _checked_ids(user), None)
    found = _image(plan, options, to)
    is_named = run.settings.home_option or run.settings.environment.get("SAGEWAI_HOME")
    files = containers.compose(
        plan,
        found,
        home=str(plan.home) if is_named and str(plan.home) != containers.HOME else "",
        snapshots=str(to.absolute()) if to and not found.place else "",
    )
    return files_outcome(
        files, into, dry_run=dry_run, warnings=_container_warnings(run, plan, found)
    )


@_command("kubernetes", "Print Kubernetes CronJobs and an init container.")
def kubernetes(
    run: Run,
    *,
    words: WordsArgument = None,
    time: TimeOption = "03:30",
    to: BackupSnapshotsOption = None,
    user: ContainerUserOption = None,
    options: ContainerOptions,
    into: IntoOption = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Print CronJobs, and a patch for Sagewai's pod."""
    from sagewai_ops.schedule import containers

    to = _outside(to)
    if to and not is_remote_path(to):
        raise UsageError(
            f"--snapshots {to}: not possible in Kubernetes, where snapshots are in a claim",
            hint="schedule kubernetes --snapshots s3://BUCKET/PREFIX",
        )
    plan = _plan(run, words, time, to, _checked_ids(user), None)
    found = _image(plan, options, to)
    files = containers.kubernetes(plan, found)
    return files_outcome(
        files, into, dry_run=dry_run, warnings=_container_warnings(run, plan, found)
    )


def _outside(to: Path | None) -> Path | None:
    """Return the place of the snapshots; None for the volume that the image names."""
    from sagewai_ops.schedule.containers import SNAPSHOTS

    return None if to == Path(SNAPSHOTS) else to


def _image(plan: Any, options: ContainerOptions, to: Path | None) -> Any:
    """Return the image and what its containers need besides the options of `backup`.

    Raises:
        UsageError: A place needs what no container has, or credentials are for no place.
    """
    from sagewai_ops import __version__
    from sagewai_ops.schedule.containers import CREDENTIALS, Image, refuse_unmounted

    place = str(to) if to and is_remote_path(to) else ""
    remote = [place] if place else []
    for word, value in parse_options(plan.words):
        if word == "--also" and value:
            if not is_remote(value):
                raise UsageError(
                    f"--also {value}: not mounted in the container",
                    hint="--also s3://BUCKET/PREFIX",
                )
            remote.append(value)
    for text in remote:
        if text.partition(":")[0] not in CREDENTIALS:
            raise UsageError(
                f"{text}: not possible in a container: neither ssh nor the configuration is there",
                hint="name a URL: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://ACCOUNT/CONTAINER",
            )
    if options.credentials and not remote:
        raise UsageError("--credentials: no remote place uses them", hint="add --snapshots URL")

    def path(file: Path | None) -> str:
        return str(file.expanduser().absolute()) if file else ""

    found = Image(
        options.image or f"sagewai-ops:{__version__}",
        version="" if options.image else __version__,
        place=place,
        scheme=remote[0].partition(":")[0] if remote else "",
        identity=path(options.identity),
        install_key=path(options.install_key),
        scratch_url=path(options.scratch_url_file),
        credentials=path(options.credentials),
    )
    refuse_unmounted(plan, found)
    return found


def _container_warnings(run: Run, plan: Any, image: Any) -> tuple[str, ...]:
    from sagewai_ops.schedule.containers import can_decrypt, can_drill, has_key

    warnings = _warnings(run, plan)
    if not can_drill(plan, image):
        warnings += (_NO_SERVER,)
    if not can_decrypt(plan, image):
        warnings += (_UNREADABLE,)
    return warnings if has_key(plan, image) else (*warnings, _NO_KEY)


def _plan(
    run: Run,
    words: list[str] | None,
    time: str,
    to: Path | None,
    user: str | None,
    program: Path | None,
) -> Any:
    from sagewai_ops.schedule.plan import Plan, parse_time

    home = run.home()
    hour, minute = parse_time(time)
    checked, also, online = _checked_options(run, words or [])
    snapshots = run.snapshots(home, to)
    online = online or is_remote_path(snapshots)
    return Plan(
        program=(program or this_program()).absolute(),
        home=home.root,
        snapshots=snapshots,
        words=checked,
        hour=hour,
        minute=minute,
        user=user or "",
        directories=tuple(
            str(path.absolute()) for path in (snapshots, *also) if not is_remote_path(path)
        ),
        online=online or any(run.settings.environment.get(name) for name in VARIABLES),
    )


def _warnings(run: Run, plan: Any) -> tuple[str, ...]:
    """Return a warning if the scheduled run would not find the database: it has no variables."""
    from sagewai_ops.home.server_record import server_name

    server = server_name(run.home(), run.settings.environment)
    if not server or any(word.partition("=")[0] in _NAMES_DATABASE for word in plan.words):
        return ()
    advice = "write its URL to a file of mode 0600, and add: -- --url-file FILE"
    return (f"database {server}: the schedule does not name it; {advice}",)


def _checked_ids(user: str | None) -> str | None:
    """Check the user of a container, which is not root and has no name there."""
    parts = ("1:1" if user is None else user).split(":")
    if len(parts) != 2 or not all(
        part.isascii() and part.isdecimal() and int(part) for part in parts
    ):
        raise UsageError(f"--user {user}: not a UID:GID other than root's", hint="--user 1001:1001")
    return user


def _checked_options(run: Run, words: list[str]) -> tuple[tuple[str, ...], tuple[Path, ...], bool]:
    """Parse options as `backup` would, and make their paths absolute.

    Returns:
        The options, the places of copies, and whether they or the configuration name what may need
        the network: a URL to ping or of a database, a remote place, or a command for the
        passphrase.

    Raises:
        UsageError: One belongs to `schedule` itself, contains a secret, or would write the snapshot
            elsewhere than into the snapshot directory.
    """
    from sagewai_ops.cli.config_file import SECRET_OPTIONS
    from sagewai_ops.remote.address import has_password

    root = run.context.find_root()
    backup = root.command.commands["backup"]
    parsed = backup.make_context("backup", list(words), parent=root)  # or the parser's own error
    path_options = {
        flag for option in backup.params if option.metavar in _PATH_METAVARS for flag in option.opts
    }
    checked: list[str] = []
    for word, value in parse_options(words):
        if word in _OWN_OPTIONS:
            raise UsageError(
                f"{word}: belongs before --", hint=f"schedule ... {_OWN_OPTIONS[word]}"
            )
        if word.removeprefix("--") in SECRET_OPTIONS:
            raise UsageError(f"{word}: is a secret, not possible in a unit", hint=f"{word}-file")
        if word in REFUSED_OPTIONS or value == "-":
            raise UsageError(f"{word}: not possible in a schedule")
        if value and word != "--repository" and has_password(value):
            raise UsageError(f"{word}: contains a password, not possible in a unit")
        checked.append(word)
        if value is not None:
            is_path = word in path_options and not is_remote(value)
            if word == "--repository":
                value = _repository(str(parsed.params["engine"]), value).partition(":")[2]
            checked.append(os.path.abspath(os.path.expanduser(value)) if is_path else value)
    also = tuple(parsed.params["also"] or ())
    # A command for the passphrase may ask a server for it.
    names = ("ping_url", "ping_url_file", "notify_file", "url_file", "passphrase_command")
    online = any(parsed.params.get(name) for name in names) or any(map(is_remote_path, also))
    if parsed.params["repository"]:
        address = _repository(parsed.params["engine"] or "", parsed.params["repository"])
        repository = Path(address.partition(":")[2])
        online = online or not repository.is_absolute()
        also += (repository,) if repository.is_absolute() else ()
    return tuple(checked), also, online


def _repository(engine: str, repository: str) -> str:
    """Return the address of the repository of the scheduled backup.

    Raises:
        UsageError: It contains a password.
    """
    from sagewai_ops.remote.address import repository_address

    address = repository_address(engine, repository)
    if "***" in address:
        raise UsageError("--repository: contains a password, not possible in a unit")
    return address


def _check_files(run: Run, plan: Any) -> None:
    """Check that the home, the program and every file and directory of the options exist."""
    from sagewai_ops.errors import NotFoundError
    from sagewai_ops.home.paths import require

    require(run.home())
    named = [str(plan.program), *plan.input_files(), *plan.output_directories()]
    for path in named:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"{path}: not found, so every backup would fail or warn",
                hint=f"ls -ld {shell_word(os.path.dirname(path) or path)}",
            ) from error
        except OSError:
            continue  # only the user of the schedule may reach it


COMMANDS = (systemd, cron, compose, kubernetes, run_schedule, litestream)
