"""A configuration and a systemd unit for litestream, which replicates the database of a home.

They contain no secret: litestream reads credentials from its environment, systemd the file with it.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.schedule.host import systemd_paths, systemd_word
from sagewai_ops.schedule.plan import File
from sagewai_ops.schedule.template import fill_template, flag, refuse_control
from sagewai_ops.text import printable

NAME = "litestream"
CONFIGURATION = f"{NAME}.yml"
_INSTALLED = f"/etc/{CONFIGURATION}"
# Root reads and writes the files of the home's owner.
_ROOT_CAPABILITIES = "CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER"


class Store(Protocol):
    """A remote place, as `remote.address.Address` has it."""

    @property
    def scheme(self) -> str: ...  # noqa: D102 - as there
    @property
    def bucket(self) -> str: ...  # noqa: D102
    @property
    def prefix(self) -> str: ...  # noqa: D102
    @property
    def account(self) -> str: ...  # noqa: D102
    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def port(self) -> int | None: ...  # noqa: D102
    @property
    def endpoint(self) -> str: ...  # noqa: D102
    @property
    def region(self) -> str: ...  # noqa: D102
    @property
    def path_style(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Replication:
    """What is replicated, and to where.

    Attributes:
        program: The absolute path of litestream.
        sagewai_ops: That of this program.
        place: A directory, or a remote place.
        socket: Through which `litestream stop` controls it.
        user: That runs it; "" for root.
        ssh_key: Path of the private key, for a place on an SFTP server.
        host_key: The server's public key, likewise.
    """

    program: Path
    sagewai_ops: Path
    home: Path
    database: Path
    place: Path | Store
    socket: str
    user: str = ""
    ssh_key: Path | None = None
    host_key: str = ""

    @property
    def directory(self) -> Path | None:
        """The place, if it is a directory."""
        return self.place if isinstance(self.place, Path) else None


def litestream_files(plan: Replication) -> list[File]:
    """Return the configuration and the unit.

    Raises:
        UsageError: A text cannot be part of them.
    """
    is_online = plan.directory is None
    configuration = fill_template(
        CONFIGURATION,
        {
            "socket": plan.socket,
            "database": _yaml(str(plan.database)),
            "settings": [{"name": name, "value": value} for name, value in _settings(plan)],
            "credentials": f": {_credentials(plan)}" if is_online else "",
        },
    )
    words = [str(plan.sagewai_ops), "--home", str(plan.home), "drill", "--from", NAME]
    directories = [str(plan.database.parent), *([str(plan.directory)] if plan.directory else [])]
    unit = fill_template(
        f"{NAME}.service",
        {
            "drill": _checked(shlex.join(words)),
            "command": " ".join(
                map(systemd_word, [str(plan.program), "replicate", "-config", _INSTALLED])
            ),
            "needs": [{"command": _installation(plan)}] if plan.directory else [],
            "user": [{"name": plan.user}] if plan.user not in ("", "root") else [],
            "mounts": systemd_paths(directories),
            "writable": systemd_paths(directories),
            "capabilities": _ROOT_CAPABILITIES if plan.user in ("", "root") else "",
            "online": flag(is_online),
            "offline": flag(not is_online),
            "families": "AF_UNIX AF_INET AF_INET6" if is_online else "AF_UNIX",
        },
    )
    return [File(CONFIGURATION, configuration), File(f"{NAME}.service", unit)]


def _settings(plan: Replication) -> Iterator[tuple[str, str]]:
    """Yield the settings of the replica, each with a value of YAML."""
    place = plan.place
    if isinstance(place, Path):
        yield "path", _yaml(str(place))
        return
    if place.scheme == "az":
        yield "type", "abs"
        yield "account-name", _yaml(place.account)
        yield "bucket", _yaml(place.bucket)
        yield "path", _yaml(place.prefix)
    elif place.scheme == "sftp":
        yield "type", "sftp"
        host = f"[{place.bucket}]" if ":" in place.bucket else place.bucket
        yield "host", _yaml(f"{host}:{place.port or 22}")
        yield "user", _yaml(place.user)
        yield "path", _yaml(place.prefix)
        yield "key-path", _yaml(str(plan.ssh_key))
        yield "host-key", _yaml(plan.host_key)
    else:
        yield "type", place.scheme
        yield "bucket", _yaml(place.bucket)
        yield "path", _yaml(place.prefix)
    if place.scheme == "s3":
        if place.region:
            yield "region", _yaml(place.region)
        if place.endpoint:
            yield "endpoint", _yaml(place.endpoint)
            yield "force-path-style", "true" if place.path_style else "false"
    elif place.endpoint:
        yield "endpoint", _yaml(place.endpoint)


def _installation(plan: Replication) -> str:
    """Return the command that creates the directory of the replica."""
    owner = ["-o", plan.user] if plan.user not in ("", "root") else []
    return _checked(shlex.join(["install", "-d", "-m", "0700", *owner, str(plan.directory)]))


def _credentials(plan: Replication) -> str:
    """Return where the credentials of a store belong."""
    assert not isinstance(plan.place, Path)
    variables = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "LITESTREAM_AZURE_ACCOUNT_KEY",
    }
    if plan.place.scheme == "sftp":
        return f"the key is in {_checked(str(plan.ssh_key))}"
    return f"{variables[plan.place.scheme]} belong in /etc/litestream.env, mode 0600"


def _yaml(text: str) -> str:
    """Return a string of YAML, which JSON's are.

    Raises:
        UsageError: litestream would replace a part of it: it has no escape for `$`.
    """
    if "$" in text:
        raise UsageError(
            f"{printable(text)}: has a $, which litestream replaces in its configuration"
        )
    return json.dumps(_checked(text), ensure_ascii=False)


def _checked(text: str) -> str:
    refuse_control(text, "a configuration")
    return text
