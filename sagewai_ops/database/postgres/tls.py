"""What a URL says of TLS, checked before asyncpg reads it, whose errors name no option or file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import UsageError

_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_FILES = (("sslrootcert", "PGSSLROOTCERT"), ("sslcert", "PGSSLCERT"), ("sslkey", "PGSSLKEY"))
# Where systems keep their authorities, in one file, if this Python was built for another system:
# Debian and its kin, Fedora and its kin, openSUSE.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
_USUAL_ROOT = "~/.postgresql/root.crt"
_HINT = "correct the options after ? in the URL"
_SYSTEM = ", or the system's own authorities: &sslrootcert=system"


def options(url: PostgresUrl, environment: Mapping[str, str]) -> dict[str, str]:
    """Give the TLS options as asyncpg takes them.

    Args:
        url: Its options; `passfile` is none of TLS and left out.
        environment: What stands there is read by asyncpg itself, and checked here.

    Raises:
        UsageError: A mode that does not exist, or a file that cannot be read.
    """
    given = {name: value for name, value in url.tls.items() if name != "passfile"}
    mode = given.get("sslmode") or environment.get("PGSSLMODE") or "prefer"
    if mode not in _MODES:
        raise UsageError(f"{url.display}: sslmode is none of {', '.join(_MODES)}", hint=_HINT)
    if given.get("sslrootcert") == "system":  # as libpq 16 has it
        given["sslrootcert"] = system_authorities() or "system"
    files = {name: given.get(name) or environment.get(variable) for name, variable in _FILES}
    if mode.startswith("verify-") and not files["sslrootcert"]:
        files["sslrootcert"] = os.path.expanduser(_USUAL_ROOT)
    for name, path in files.items():
        if path and not os.access(path, os.R_OK):
            raise UsageError(
                f"{url.display}: {name} {path}: cannot be read",
                hint=f"name it in the URL: &{name}=FILE" + _SYSTEM * (name == "sslrootcert"),
            )
    return given


def system_authorities() -> str | None:
    """Find the file with the authorities that this system trusts."""
    found = (ssl.get_default_verify_paths().cafile, *_BUNDLES)
    return next((path for path in found if path and os.access(path, os.R_OK)), None)
