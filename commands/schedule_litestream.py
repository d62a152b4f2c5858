"""`schedule litestream`: print what replicates the database all the time."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DryRunOption, option
from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.text import shell_word

from .schedule_files import (  # noqa: TID251 - a neighbour
    IntoOption,
    OwnerOption,
    checked_user,
    files_outcome,
    owner_of,
    this_program,
)

if TYPE_CHECKING:
    from sagewai_ops.home.paths import Home

HELP = """Print the configuration and the systemd unit of litestream.

litestream sends each change of the SQLite database to PLACE within seconds: a directory outside the
home, s3://, gs://, az://, sftp://, or NAME: of the configuration. Files and keys remain the task of
`backup`. litestream 0.5.17 or newer is required: older ones contain a SQLite that can damage a
database with two writers. No secret is printed.

Exit status:
  0   printed or written
  2   invalid option, or litestream is older than 0.5.17
  10  home, litestream, a key or directory of --into not found
  14  permission denied
  15  a different file exists
"""


@command("schedule litestream", HELP, result="sagewai_ops.schedule.plan:Schedule", changes=True)
def litestream(
    run: Run,
    *,
    place: Annotated[str, typer.Argument(metavar="PLACE", show_default=False)],
    user: OwnerOption = None,
    program: Annotated[
        Path | None,
        option(None, "--program", "Program to run (default: litestream on PATH).", "FILE"),
    ] = None,
    ssh_key: Annotated[
        Path | None, option(None, "--ssh-key", "Private key, for sftp://.", "FILE")
    ] = None,
    host_key: Annotated[
        Path | None,
        option(None, "--host-key", "Public key of the server, for sftp://; required.", "FILE"),
    ] = None,
    into: IntoOption = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Print the files."""
    from sagewai_ops.database.sqlite.litestream import find_program
    from sagewai_ops.home.companions import SOCKET
    from sagewai_ops.home.paths import require
    from sagewai_ops.home.server_record import server_name
    from sagewai_ops.remote.address import is_remote
    from sagewai_ops.schedule.litestream import Replication, litestream_files

    home = run.home()
    require(home)
    if server := server_name(home, run.settings.environment):
        raise UsageError(
            f"database {server}: on a server, which litestream does not replicate",
            hint="sagewai-ops schedule systemd",
        )
    address = run.settings.address_of(place) if is_remote(place) else None
    if address is None:
        directory = Path(place).expanduser().absolute()
        _refuse_place(directory, home, run.settings.directory(home))
    is_sftp = address is not None and address.scheme == "sftp"
    if is_sftp and not (ssh_key and host_key and address and address.user):
        raise UsageError(
            f"{place}: litestream needs a user, --ssh-key and --host-key; without the last it would"
            " trust any server",
            hint="ssh-keyscan -t ed25519 HOST | cut -d' ' -f2- > host.pub  # compare it first",
        )
    if (ssh_key or host_key) and not is_sftp:
        raise UsageError("--ssh-key and --host-key: only for sftp://")
    plan = Replication(
        program=find_program(run.settings.environment, program),
        sagewai_ops=this_program(),
        home=home.root,
        database=home.database,
        place=address or directory,
        socket=SOCKET,
        user=checked_user(user) or owner_of(home.root),
        ssh_key=ssh_key.absolute() if ssh_key else None,
        host_key=_read_host_key(host_key) if host_key else "",
    )
    if ssh_key and not ssh_key.exists():
        raise NotFoundError(f"--ssh-key {ssh_key}: not found", hint="ssh-keygen -t ed25519")
    return files_outcome(litestream_files(plan), into, dry_run=dry_run, warnings=())


def _refuse_place(directory: Path, home: "Home", snapshots: Path) -> None:
    """Refuse a directory for the replica that is also one of something else."""
    from sagewai_ops.remote.path import is_remote

    real, root = (Path(os.path.realpath(path)) for path in (directory, home.root))
    where = ""
    if real.is_relative_to(root):
        where = f"inside the home {home.root}, with which it would be lost"
    elif root.is_relative_to(real):
        where = f"contains the home {home.root}"
    elif not is_remote(snapshots) and real.is_relative_to(os.path.realpath(snapshots)):
        where = f"inside the snapshot directory {snapshots}"
    if where:
        raise UsageError(
            f"{directory}: {where}",
            hint=f"sagewai-ops schedule litestream {shell_word(home.root)}.replica",
        )


def _read_host_key(path: Path) -> str:
    """Return a public key: a line of an `authorized_keys` file."""
    from sagewai_ops.fs.given_files import decode_given, read_given_file
    from sagewai_ops.fs.os_errors import translate_os_errors

    with translate_os_errors(path):
        content = read_given_file(path, public="--host-key")
    lines = [line for line in decode_given(content, f"--host-key {path}").splitlines() if line]
    if len(lines) != 1 or not lines[0].startswith(("ssh-", "ecdsa-")):
        raise UsageError(
            f"--host-key {path}: not one public key",
            hint="ssh-keyscan -t ed25519 HOST | cut -d' ' -f2-",
        )
    return lines[0]
