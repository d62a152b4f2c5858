"""Database URLs in every form that people use, without ever showing a password.

`postgres://`, `postgresql://` and `postgresql+<driver>://` are equivalent here; socket
directories, several hosts, TLS options and percent-encoding are parsed as libpq does. A password
may contain an unescaped `@` or `:`. Parts missing in the URL come from the PG* variables and the
password file when a connection is opened. This module opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass

VARIABLES = ("SAGEWAI_DATABASE_URL", "DATABASE_URL")  # in the order of Sagewai's server
DEFAULT_PORT = 5432
CONNECT_SECONDS = 30.0  # unless the URL has connect_timeout

# Options of libpq that demand something of the server or the connection, and that asyncpg does not
# know; `database/postgres/protections.py` refuses all values but those that demand nothing.
PROTECTIONS = frozenset(
    [
        "channel_binding",
        "gssencmode",
        "hostaddr",
        "min_protocol_version",
        "require_auth",
        "requirepeer",
        "scram_client_key",
        "scram_server_key",
        "service",
        "servicefile",
        "sslcertmode",
        "sslcrldir",
    ]
)
# Passed to asyncpg in a URL, the only place where it reads them.
OF_DRIVER = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "sslpassword",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "target_session_attrs",
)
_TLS = PROTECTIONS | {*OF_DRIVER, "passfile"}
# Options of other drivers, and of libpq without a meaning in asyncpg; not sent to the server.
_DROPPED = frozenset(
    [
        "application_name",
        "async_fallback",
        "client_encoding",
        "command_timeout",
        "fallback_application_name",
        "gssdelegation",
        "gsslib",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "max_protocol_version",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "sslcompression",
        "sslkeylogfile",
        "sslnegotiation",
        "sslsni",
        "statement_cache_size",
        "tcp_user_timeout",
    ]
)
_RESERVED = "percent-encode : / ? # [ ] and @ in user and password"
_SSL_WORDS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}

_POSTGRES = re.compile(
    r"(?:(?P<userinfo>[^/?]*)@)?(?P<hosts>[^/?@]*)(?:/(?P<path>[^?]*))?(?:\?(.*))?"
)
_ENCODE = (
    "python3 -c 'import getpass, urllib.parse as u; print(u.quote(getpass.getpass(), safe=\"\"))'"
    "  # percent-encodes a password"
)


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """An SQLite file; relative paths are relative to the working directory, as in Sagewai."""

    path: Path

    @property
    def display(self) -> str:
        """Its name in messages."""
        return str(self.path)


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """A PostgreSQL database and how to connect to it.

    Attributes:
        hosts: Names, addresses or socket directories with their ports (None: the default), in the
            order in which they are tried; if empty, PGHOST, else the default sockets.
        user: None means PGUSER, else the name of the system's user.
        password: Never shown. None means PGPASSWORD or the password file.
        database: None means PGDATABASE, else the user's name.
        tls: `sslmode` and the other TLS options of libpq.
        settings: Parameters of the session, such as `search_path`.
        timeout_seconds: For opening a connection.
    """

    hosts: tuple[tuple[str, int | None], ...] = ()
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    tls: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float = CONNECT_SECONDS

    @property
    def display(self) -> str:
        """Its name in messages: no password, no options."""
        return f"postgresql://{self._userinfo('')}{self._hosts()}{self._path()}"

    def to_string(self) -> str:
        """Return the URL, with its password, in the form that Sagewai's server accepts."""
        password = "" if self.password is None else f":{quote(self.password, safe='')}"
        tls = {name: value for name, value in self.tls.items() if name not in PROTECTIONS}
        options = {**tls, **self.settings}
        hosts = self._hosts()
        if any(host.startswith("/") for host, _ in self.hosts):
            # Not every program accepts a socket's directory as the host.
            options["host"] = ",".join(host for host, _ in self.hosts)
            if any(port for _, port in self.hosts):
                options["port"] = ",".join(str(port or DEFAULT_PORT) for _, port in self.hosts)
            hosts = ""
        query = f"?{urlencode(options, safe='/,', quote_via=quote)}" if options else ""
        return f"postgresql://{self._userinfo(password)}{hosts}{self._path()}{query}"

    def _userinfo(self, password: str) -> str:
        return "" if self.user is None else f"{quote(self.user, safe='')}{password}@"

    def _hosts(self) -> str:
        return ",".join(
            (quote(host, safe="") if host.startswith("/") else f"[{host}]" if ":" in host else host)
            + (f":{port}" if port else "")
            for host, port in self.hosts
        )

    def _path(self) -> str:
        return "" if self.database is None else f"/{quote(self.database, safe='')}"


def parse(url: str) -> SqliteUrl | PostgresUrl:
    """Parse a database URL.

    Raises:
        UsageError: It is malformed, or of another kind of database; the message omits the URL.
    """
    scheme, separator, rest = url.strip().partition("://")
    kind = scheme.lower().partition("+")[0]
    if not separator or kind not in ("postgres", "postgresql", "sqlite"):
        # Without "://", `scheme` may be the whole URL with its password.
        name = f" {scheme!r}" if separator else ""
        raise UsageError(
            f"database URL: scheme{name} not supported, only postgresql:// and sqlite:///",
            hint="export SAGEWAI_DATABASE_URL=postgresql://USER@HOST/DATABASE",
        )
    return _sqlite(rest) if kind == "sqlite" else _postgres(rest)


def resolve(environment: Mapping[str, str], home_database: Path) -> SqliteUrl | PostgresUrl:
    """Return the database that Sagewai's server would use; an empty variable counts as unset.

    Raises:
        UsageError: A variable is not a database URL.
    """
    for variable in VARIABLES:
        if environment.get(variable):
            try:
                return parse(environment[variable])
            except UsageError as error:
                raise UsageError(f"{variable}: {error.message}", hint=error.hint) from None
    return SqliteUrl(home_database)


def _sqlite(rest: str) -> SqliteUrl:
    authority, slash, path = rest.partition("?")[0].partition("/")
    if path.startswith("file:"):
        path = unquote(path.removeprefix("file:"))
    if authority or not slash or not path or path == ":memory:":
        raise UsageError(
            "database URL: path of the SQLite file missing",
            hint="export SAGEWAI_DATABASE_URL=sqlite:////srv/sagewai.db  # four slashes: absolute",
        )
    return SqliteUrl(Path(path))


def _postgres(rest: str) -> PostgresUrl:
    match = _POSTGRES.fullmatch(rest)
    if not match:
        raise UsageError(f"database URL: malformed; {_RESERVED}", hint=_ENCODE)
    userinfo, host_list, path, query = match["userinfo"], match["hosts"], match["path"], match[4]
    user, _, password = (userinfo or "").partition(":")
    options = _options(query or "")
    hosts = _hosts(host_list)
    if "host" in options:
        hosts = _hosts(options.pop("host"))
    if "port" in options:
        hosts = _with_ports(hosts, options.pop("port"))
    named = {
        "user": options.pop("user", "") or unquote(user),
        "password": options.pop("password", "") or unquote(password),
        "database": options.pop("dbname", "") or options.pop("database", "") or unquote(path or ""),
    }
    timeout = options.pop("connect_timeout", "")
    if "ssl" in options:
        word = options.pop("ssl")
        options.setdefault("sslmode", _SSL_WORDS.get(word.lower(), word))
    return PostgresUrl(
        hosts,
        named["user"] or None,
        named["password"] or None,
        named["database"] or None,
        tls={key: value for key, value in options.items() if key in _TLS},
        settings={k: v for k, v in options.items() if k not in _TLS and k not in _DROPPED},
        timeout_seconds=_seconds(timeout) if timeout else CONNECT_SECONDS,
    )


def _options(query: str) -> dict[str, str]:
    options = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError("database URL: option without a value after ?", hint=_ENCODE)
        options[unquote(key)] = unquote(value)  # unlike in a web form, + is a plus sign
    return options


def _hosts(listed: str) -> tuple[tuple[str, int | None], ...]:
    hosts: list[tuple[str, int | None]] = []
    for item in filter(None, listed.split(",")):
        host, port = item, ""
        if not item.startswith("/"):
            match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", item)
            if not match:
                raise UsageError(f"database URL: malformed host; {_RESERVED}", hint=_ENCODE)
            host, port = match[1].strip("[]"), match[2] or ""
        hosts.append((unquote(host), _port(port) if port else None))
    return tuple(hosts)


def _with_ports(
    hosts: tuple[tuple[str, int | None], ...], listed: str
) -> tuple[tuple[str, int | None], ...]:
    ports = [_port(port) for port in listed.split(",")]
    if not hosts:
        hosts = (("localhost", None),)
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise UsageError(
            f"database URL: {len(ports)} ports for {len(hosts)} hosts; one port, or one for each"
        )
    return tuple((host, port) for (host, _), port in zip(hosts, ports, strict=True))


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 65536:
        # The text may be the tail of a password with an unescaped slash: it is not shown.
        raise UsageError(
            f"database URL: port not a number from 1 to 65535; {_RESERVED}", hint=_ENCODE
        )
    return int(text)


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdecimal():
        raise UsageError("database URL: connect_timeout not a number of seconds")
    return float(text) or CONNECT_SECONDS  # in libpq 0 means no timeout; there is always one here
