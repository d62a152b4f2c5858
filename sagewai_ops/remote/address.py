"""Addresses of remote places: the URL of a store, or the name of one in the configuration.

An address never contains a secret: object stores find their credentials in the environment, their
own files or the credentials file of the place, and `ssh` in the user's configuration and agent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable

if TYPE_CHECKING:
    from sagewai_ops.remote.store import Store

SCHEMES = ("s3", "gs", "az", "sftp")
ENGINES = ("restic", "borg")  # before the name of a repository: `restic:/srv/repository`
KEYS = ("url", "endpoint", "region", "path-style", "credentials-file")  # of [remote.NAME]
# Before a colon, a name; a path with a colon in its first part is written ./PATH.
_REMOTE = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z0-9][A-Za-z0-9_-]+:(?!/)|(?:s3|gs|az|sftp):/|(?:restic|borg):"
)
REPOSITORY_VARIABLES = {"restic": "RESTIC_REPOSITORY", "borg": "BORG_REPO"}
_HIDDEN = r"\1:***@"
_LOGIN = re.compile(r"(//[^/@\s:]*):[^/\s]*@")  # user and password of a URL, which can contain `@`
_RCLONE_SECRET = re.compile(
    r"rclone:.*,\s*\w*(?:pass\w*|secret\w*|key|token|sas_url|credentials)=", re.IGNORECASE
)
_RESTIC_KINDS = re.compile(r"(local|sftp|rest|s3|b2|azure|gs|swift|rclone):")
_BORG_HOST = re.compile(r"ssh://|[^/]+:")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]+")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")  # of Azure
# Of a prefix; other characters are encoded differently by each library and server.
_PREFIX = re.compile(r"[A-Za-z0-9._=@+-]+")
_PLACE = "[USER@]HOST[:PORT]"
_USER = re.compile(r"[A-Za-z0-9_][^\s:@/\x00-\x1f\x7f]*")
# A host that begins with `-` would be an option of ssh; `%` precedes the zone of an IPv6 address.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|([A-Za-z0-9_][A-Za-z0-9._-]*))")
_PORT = re.compile(r"[0-9]{1,5}")
_MOST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """A remote place.

    Attributes:
        scheme: One of SCHEMES or ENGINES.
        bucket: The bucket or container; the host of an SFTP server; the repository of an engine.
        prefix: Without `/` at its ends. Of an SFTP server the path, absolute or relative to the
            login directory.
        account: Of Azure.
        user: Of an SFTP server; "" for the one in ssh's configuration.
        port: Of an SFTP server; None for the one in ssh's configuration.
        named: As the configuration names it, such as `offsite:host`; "" for a URL.
        endpoint: Of an object store that is not the provider's own; a URL.
        credentials_file: Of this place; None for the provider's own chain.
    """

    scheme: str
    bucket: str
    prefix: str = ""
    account: str = ""
    user: str = ""
    port: int | None = None
    named: str = field(default="", compare=False)
    endpoint: str = ""
    region: str = ""
    path_style: bool = True
    credentials_file: str | None = None

    @property
    def shown(self) -> str:
        """The name or else the URL, for messages and as an argument of commands."""
        return self.named or str(self)

    @property
    def is_repository(self) -> bool:
        """Whether it is the repository of an engine."""
        return self.scheme in ENGINES

    def __str__(self) -> str:
        """Return the URL, in its canonical form."""
        if self.is_repository:
            return f"{self.scheme}:{self.bucket}"
        if self.scheme == "sftp":
            host = f"[{self.bucket}]" if ":" in self.bucket else self.bucket
            at = f"{self.user}@" if self.user else ""
            port = f":{self.port}" if self.port else ""
            path = self.prefix if self.prefix.startswith("/") else f"/~/{self.prefix}".rstrip("/")
            return f"sftp://{at}{host}{port}{path}"
        return "://".join(
            (self.scheme, "/".join(filter(None, (self.account, self.bucket, self.prefix))))
        )


def is_remote(text: str) -> bool:
    """Return whether a text is the address of a remote place, valid or not, and not a path."""
    return _REMOTE.match(text) is not None


def has_password(text: str) -> bool:
    """Return whether a text contains a URL with a user and a password."""
    return _LOGIN.search(text) is not None


def is_repository(text: str) -> bool:
    """Return whether an address is that of a repository: `restic:` or `borg:` and its name."""
    return text.startswith(tuple(f"{engine}:" for engine in ENGINES))


def repository_address(engine: str, repository: str) -> str:
    """Return the address of a repository: its path made absolute, its password hidden.

    Args:
        repository: As the engine names it: a directory, `sftp:USER@HOST:/PATH`, `ssh://HOST/PATH`.

    Raises:
        UsageError: It sets a secret of rclone, which messages would show.
    """
    if engine == "restic" and _RCLONE_SECRET.match(repository):
        raise UsageError(
            "restic: a secret of rclone is not allowed in the name of a repository",
            hint="rclone config  # then rclone:NAME:PATH",
        )
    kinds = _RESTIC_KINDS if engine == "restic" else _BORG_HOST
    if engine == "restic" and repository.startswith("local:"):
        repository = repository.removeprefix("local:")
    if repository and not kinds.match(repository):
        repository = os.path.abspath(os.path.expanduser(repository))
    return f"{engine}:{_LOGIN.sub(_HIDDEN, repository)}"


def find_repository(address: Address, environment: Mapping[str, str]) -> str:
    """Return a repository as its engine names it.

    Args:
        environment: The engine's own variable has a password that the address hides.

    Raises:
        UsageError: That variable names another repository.
    """
    if "***" not in address.bucket:
        return address.bucket
    variable = REPOSITORY_VARIABLES[address.scheme]
    named = environment.get(variable, "")
    if repository_address(address.scheme, named) != f"{address.scheme}:{address.bucket}":
        raise UsageError(
            f"{address.scheme}: user and password are not allowed in an address",
            hint=f"export {variable}=...  # and --engine {address.scheme} without --repository",
        )
    return named


def parse_address(text: str, remotes: Mapping[str, Mapping[str, Any]] | None = None) -> Address:
    """Parse `s3://BUCKET/PREFIX`, `sftp://HOST/PATH` and so on, or `NAME:` and `NAME:PATH`.

    Args:
        remotes: The tables `[remote.NAME]` of the configuration, by name.

    Raises:
        UsageError: It is not an address, contains a secret, or the name is unknown.
    """
    if is_repository(text):
        engine, _, repository = text.partition(":")
        if not repository:
            raise UsageError(f"{engine}: no repository", hint=f"{engine}:/PATH")
        return Address(engine, repository)
    scheme, separator, rest = text.partition("://")
    if separator:
        return _parse_url(scheme.lower(), rest)
    name, _, below = text.partition(":")
    table = (remotes or {}).get(name)
    if table is None:
        known = ", ".join(sorted(remotes or {}))
        raise UsageError(
            f"remote {printable(name)}: not in the configuration",
            hint=f"configured: {known}"
            if known
            else f"sagewai-ops config show  # where a table [remote.{printable(name)}] belongs",
        )
    return _configured(name, table, below)


def check_remote_name(name: str) -> bool:
    """Return whether a name can be that of a table `[remote.NAME]`."""
    return _NAME.fullmatch(name) is not None and name not in (*SCHEMES, *ENGINES)


def open_store(address: Address, environment: Mapping[str, str]) -> Store:
    """Open a remote place; nothing is sent before the first method is called.

    Args:
        environment: Where the credentials are, or the paths of their files.

    Raises:
        UsageError: obstore or ssh is not installed, or a file with credentials is not one.
        NotFoundError: A file with credentials does not exist.
    """
    if address.is_repository:
        raise UsageError(
            f"{address.shown}: a repository is no such place",
            hint=f"sagewai-ops backup --engine {address.scheme} --repository R --init-repository",
        )
    if address.scheme == "sftp":
        from sagewai_ops.remote.sftp import SftpStore

        return SftpStore(address, environment)
    from sagewai_ops.remote.object_store import ObjectStore

    return ObjectStore(address, environment)


def _configured(name: str, table: Mapping[str, Any], below: str) -> Address:
    """Return the address of a table of the configuration, and of a directory in it."""
    where = f"[remote.{name}]"
    for key, value in table.items():
        wanted = bool if key == "path-style" else str
        if key not in KEYS:
            raise UsageError(f"{where} {key}: unknown", hint=f"known here: {', '.join(KEYS)}")
        if not isinstance(value, wanted) or value == "":
            kind = "true or false" if wanted is bool else "a text"
            raise UsageError(f"{where} {key}: not {kind}")
    if "url" not in table:
        raise UsageError(f"{where}: no url", hint='url = "s3://BUCKET/PREFIX"')
    if is_repository(table["url"]):
        return _configured_repository(name, table, below)
    if not is_remote(table["url"]) or "://" not in table["url"]:
        raise UsageError(f"{where} url: not a URL", hint=_forms())
    parts = "/".join(filter(None, (table["url"].rstrip("/"), below.strip("/"))))
    base = parse_address(parts)
    endpoint = table.get("endpoint", "")
    if endpoint and not re.fullmatch(r"https?://[^\s@?#]+", endpoint):
        raise UsageError(f"{where} endpoint: not https://HOST[:PORT], without user and password")
    if base.scheme == "sftp" and (unused := sorted(set(table) - {"url"})):
        raise UsageError(
            f"{where} {unused[0]}: unknown for sftp", hint="ssh reads ~/.ssh/config, host by host"
        )
    return Address(
        base.scheme,
        base.bucket,
        base.prefix,
        base.account,
        base.user,
        base.port,
        f"{name}:{below.strip('/')}",
        endpoint.rstrip("/"),
        table.get("region", ""),
        table.get("path-style", True),
        table.get("credentials-file"),
    )


def _configured_repository(name: str, table: Mapping[str, Any], below: str) -> Address:
    engine, _, repository = table["url"].partition(":")
    if unused := sorted(set(table) - {"url"}):
        raise UsageError(f"[remote.{name}] {unused[0]}: unknown for {engine}")
    if below:
        raise UsageError(f"{name}:{printable(below)}: a repository has no directories")
    if not repository:
        raise UsageError(f"[remote.{name}] url: no repository", hint=f'url = "{engine}:/PATH"')
    address = repository_address(engine, repository).partition(":")[2]
    return Address(engine, address, named=f"{name}:")


def _parse_url(scheme: str, rest: str) -> Address:
    if scheme not in SCHEMES:
        raise UsageError(f"{printable(scheme)}://: unknown kind of place", hint=_forms())
    place, _, path = rest.partition("/")
    # Without the text: it may be a secret.
    has_user = "@" in place and (scheme != "sftp" or ":" in place.rpartition("@")[0])
    if "?" in rest or "#" in rest or has_user:
        raise UsageError(
            f"{scheme}://: user, password and signature are not allowed in an address",
            hint="sagewai-ops remote init --help  # where credentials are read from",
        )
    if scheme == "sftp":
        return _parse_sftp(place, path)
    account = ""
    if scheme == "az":
        account, (place, _, path) = place, path.partition("/")
        if not _ACCOUNT.fullmatch(account):
            raise _malformed(scheme, "storage account")
    if not _BUCKET.fullmatch(place):
        raise _malformed(scheme, "container" if account else "bucket")
    return Address(scheme, place, _checked_prefix(scheme, path), account)


def _parse_sftp(place: str, path: str) -> Address:
    user, at, host = place.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise _malformed("sftp", "user")
    found = _HOST.match(host)
    if not found:
        raise _malformed("sftp", "host")
    port = host[found.end() :]
    is_port = port[:1] == ":" and _PORT.fullmatch(port[1:]) and 0 < int(port[1:]) <= _MOST_PORT
    if port and not is_port:
        raise _malformed("sftp", "port")
    is_relative = path == "~" or path.startswith("~/")
    checked = _checked_prefix("sftp", path[1:] if is_relative else path)
    return Address(
        "sftp",
        found[1] or found[2],
        checked if is_relative else f"/{checked}",
        user=user,
        port=int(port[1:]) if port else None,
    )


def _checked_prefix(scheme: str, path: str) -> str:
    parts = path.strip("/").split("/") if path.strip("/") else []
    for part in parts:
        if part in (".", "..") or not _PREFIX.fullmatch(part):
            raise _malformed(scheme, "path")
    return "/".join(parts)


def _malformed(scheme: str, part: str) -> UsageError:
    return UsageError(f"{scheme}://: the {part} is malformed", hint=_forms())


def _forms() -> str:
    return f"s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, sftp://{_PLACE}/PATH"
