"""The user whose rights a command takes: root works on another user's home as that user."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.cli.settings import Settings
from sagewai_ops.errors import (
    DamagedError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    UsageError,
)
from sagewai_ops.fs.free_space import nearest_existing
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import locate
from sagewai_ops.remote.path import is_remote
from sagewai_ops.text import shell_word

if TYPE_CHECKING:
    from socket import socket

    from sagewai_ops.fs.monitor import Grant
    from sagewai_ops.process.privileges import Account


# Commands that work on nothing of another user, on the directory of --to, or on snapshots.
_WITHOUT_HOME = ("schedule ", "config ")
_TO = ("restore", "snapshots extract", "import-from-postgres")
_SNAPSHOTS = "snapshots "


def find_acting(
    command: str, settings: Settings, options: Mapping[str, Any]
) -> "tuple[Account, Grant] | None":
    """Return the account whose rights a run takes, and what root's process does for it.

    It is the owner of what the command works on: of the home, of the directory of `--to`, of the
    snapshots; of their nearest parent if they do not exist.

    Args:
        options: Of the command; the files that they name may be read with root's rights.

    Returns:
        None if the run keeps its rights: it is not root's, or the directory is.

    Raises:
        NotFoundError: `--owner` names no user.
        PermissionDeniedError: The directory is root's, and another user can replace a part of its
            path.
        UsageError: `--owner` differs from the target's, or `--same-owner` for a directory that
            other users can change; a link of another user leads to it.
    """
    if os.geteuid() != 0 or command.startswith(_WITHOUT_HOME):
        if options.get("owner") or options.get("same_owner"):
            raise UsageError("--owner and --same-owner: only root can set owners")
        return None
    try:
        home = locate(settings.home_option, settings.environment)
    except OpsError:
        return None  # the command reports it
    to, named = options.get("to"), options.get("snapshots")
    is_backup = command == "backup"  # with a repository, it also has a directory for the mirror
    find = settings.directory if is_backup else settings.snapshots
    snapshots = find(home, to if is_backup else named)
    subject = home.named
    if command in _TO and to:
        subject = to
    elif command.startswith(_SNAPSHOTS) and not subject.exists():
        if is_remote(snapshots):
            return None  # nothing of another user
        subject = snapshots
    from sagewai_ops.fs.given_files import path_owners

    owners = frozenset[int]() if is_remote(snapshots) else path_owners(snapshots)
    if snapshots == home.snapshots:  # next to where the home's path led at this moment
        owners |= path_owners(home.named)
    with translate_os_errors(subject):
        is_elsewhere = owners or is_remote(snapshots)
        return _find_owner(subject, None if is_elsewhere else snapshots, options)


def settings_of(settings: Settings, account: "Account") -> Settings:
    """Return the settings of a run with a user's rights: the same home, the user's own state."""
    home = locate(settings.home_option, settings.environment)
    environment = {**settings.environment, "HOME": account.home or os.sep}
    environment.pop("XDG_STATE_HOME", None)
    return replace(settings, home_option=home.named, environment=environment)


def run_in_child(
    account: "Account",
    grant: "Grant",
    work: Callable[[], Any],
    subject: str,
    describe: Callable[[OpsError], Any],
) -> Any:
    """Run a function in a child process with a user's rights, and serve it with one's own.

    Args:
        grant: What this process does for the child.
        work: Its result is a value of JSON. It begins with root's rights: `become` is its first
            step, so that a failure is reported as any other.
        subject: The path of what it works on.
        describe: Report an error that ends the child and return the result instead.

    Returns:
        The result; None if it raised, which the child has printed.

    Raises:
        OpsError: A signal that is not a request to end, such as SIGKILL, ended the child.
    """
    from socket import socketpair

    from sagewai_ops.fs.monitor import serve
    from sagewai_ops.process.parent import end_if_stopped
    from sagewai_ops.process.signals import forward_signals

    ours, theirs = socketpair()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    child = os.fork()
    if not child:
        ours.close()
        _run(theirs, grant, work, subject, describe)
    theirs.close()
    end_if_stopped(child)
    with ours, forward_signals(child):
        result = serve(ours, grant)
        _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise OpsError(
            f"process {child}, which had the rights of {account.name}: ended by signal"
            f" {os.WTERMSIG(status)}"
        )
    return result


def _run(
    connection: "socket",
    grant: "Grant",
    work: Callable[[], Any],
    subject: str,
    describe: Callable[[OpsError], Any],
) -> None:
    """Run the child's part; does not return."""
    from sagewai_ops.fs.monitor import connect
    from sagewai_ops.process.pipe_watch import watch_pipes

    status = 1
    try:
        finish = connect(connection, grant)

        def end_at_pipe(path: str) -> None:
            """End this process: root's waits for it, and the user could make that endless."""
            error = DamagedError(
                f"{path or subject}: {'' if path else 'a file '}replaced by a pipe during the run",
                hint=f"find {shell_word(path or subject)} -type p",
            )
            finish(describe(error))
            _flush_output()
            os._exit(error.exit_code)

        watch_pipes(end_at_pipe)
        finish(work())
        status = 0
    except BaseException:  # noqa: BLE001 - this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        _flush_output()
        os._exit(status)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _find_owner(
    named: Path, snapshots: Path | None, options: Mapping[str, Any]
) -> "tuple[Account, Grant] | None":
    from sagewai_ops.fs.given_files import path_owners, resolve_given_path
    from sagewai_ops.fs.monitor import Grant, has_roots_path, is_roots_alone
    from sagewai_ops.process.privileges import account_of

    subject = Path(os.path.realpath(named))
    others = path_owners(named)
    if options.get("same_owner"):
        if others or not has_roots_path(subject.parent):
            raise UsageError(
                f"--same-owner: {subject.parent} can be changed by other users",
                hint="restore without --same-owner  # the target's owner owns the result",
            )
        return None
    status = os.stat(nearest_existing(subject))
    uid, gid = status.st_uid, status.st_gid
    # Another user's link would make root work on any directory, or as any user.
    resolve_given_path(named, owner=uid)
    if owner := options.get("owner"):
        account = _named_account(owner)
        if not others and not subject.exists() and has_roots_path(nearest_existing(subject)):
            _make_home(subject, *account)
            uid, gid = account
        elif account[0] != uid:
            raise UsageError(
                f"--owner {owner}: {subject} belongs to uid {uid}",
                hint=f"ls -ld {shell_word(subject)}",
            )
    if uid == 0:
        if others:  # they could put a link there, or exchange it with one until now
            raise PermissionDeniedError(
                f"{named}: owned by root, but uid {min(others)} can replace a part of its path",
                hint=f"namei -l {shell_word(named)}",
            )
        return None
    directories: tuple[Path, ...] = ()
    with contextlib.suppress(OSError):  # a link of another user leads to it
        directory = resolve_given_path(snapshots, owner=0) if snapshots else None
        directories = (directory,) if directory and is_roots_alone(directory) else ()
    grant = Grant(directories=directories, files=frozenset(_files_of(options)))
    return account_of(uid, gid), grant


def _named_account(name: str) -> tuple[int, int]:
    import pwd

    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdigit() and int(name) < 2**32 - 1:
            return int(name), int(name)
        raise NotFoundError(f"--owner {name}: no such user", hint="getent passwd") from None
    return entry.pw_uid, entry.pw_gid


def _make_home(path: Path, uid: int, gid: int) -> None:
    """Create an empty directory for a user, below directories that root alone can write."""
    from sagewai_ops.fs import atomic, beneath

    with translate_os_errors(path):
        atomic.make_directory(path.parent, mode=0o755)
        beneath.make_directory(path, 0o700)
        beneath.set_owner(path, uid, gid)


def _files_of(options: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the existing files that options name, as they are named and resolved.

    Not those in directories of other users: the process with a user's rights opens these.
    """
    from sagewai_ops.fs.given_files import path_owners

    for value in options.values():
        for item in value if isinstance(value, list) else (value,):
            if not isinstance(item, (str, Path)) or not item:
                continue
            if (isinstance(item, Path) and is_remote(item)) or not os.path.isfile(item):
                continue
            if not path_owners(Path(item)):
                yield Path(os.path.abspath(item))
                yield Path(os.path.realpath(item))
