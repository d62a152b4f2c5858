"""Protections of libpq that the driver lacks: refused by name before a connection is opened.

A URL with `channel_binding=require` forbids that its password reaches another server. asyncpg
neither binds channels nor shows the method of authentication before it answers, so such a URL
cannot be honoured. Values that demand nothing are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagewai_ops.database.url import PROTECTIONS, PostgresUrl
from sagewai_ops.errors import UsageError
from sagewai_ops.text import printable

# Values that demand nothing, besides the empty one.
_HARMLESS: Mapping[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "min_protocol_version": ("3.0",),
    "sslcertmode": ("allow",),
}
# These name the server; the URL can do it too.
_PLACES = ("hostaddr", "service", "servicefile")
# Source: PostgreSQL manual, "Environment Variables" of libpq.
_VARIABLES: Mapping[str, str] = {
    "PGCHANNELBINDING": "channel_binding",
    "PGGSSENCMODE": "gssencmode",
    "PGHOSTADDR": "hostaddr",
    "PGMINPROTOCOLVERSION": "min_protocol_version",
    "PGREQUIREAUTH": "require_auth",
    "PGREQUIREPEER": "requirepeer",
    "PGSERVICE": "service",
    "PGSSLCERTMODE": "sslcertmode",
    "PGSSLCRLDIR": "sslcrldir",
}


def check(url: PostgresUrl, environment: Mapping[str, str]) -> None:
    """Check that the URL and the variables demand nothing that the driver cannot do.

    Raises:
        UsageError: They do; the message names the option or the variable.
    """
    for name in sorted(PROTECTIONS & url.tls.keys()):
        _check(url, name, name, url.tls[name])
    for variable, name in _VARIABLES.items():
        if name not in url.tls:  # as in libpq, the URL comes first
            _check(url, variable, name, environment.get(variable, ""))


def _check(url: PostgresUrl, shown: str, name: str, value: str) -> None:
    if value and value not in _HARMLESS.get(name, ()):
        if name in _PLACES:
            raise UsageError(
                f"{url.display}: {shown}: not supported, so no connection was opened; the URL"
                " names the host",
                hint="export SAGEWAI_DATABASE_URL='postgresql://USER@HOST:PORT/DATABASE'",
            )
        demand = f"{shown}={printable(value)}" if name in _HARMLESS else shown
        raise UsageError(
            f"{url.display}: {demand}: not supported, so no connection was opened;"
            " sslmode=verify-full protects the password",
            hint="export SAGEWAI_DATABASE_URL="
            "'postgresql://USER@HOST/DATABASE?sslmode=verify-full&sslrootcert=system'",
        )
