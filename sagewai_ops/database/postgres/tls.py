"""TLS options of a URL, checked before asyncpg reads them: its errors name no option or file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from sagewai_ops.database.url import OF_DRIVER, PostgresUrl
from sagewai_ops.errors import UsageError
from sagewai_ops.text import shell_word

_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_FILES = (("sslrootcert", "PGSSLROOTCERT"), ("sslcert", "PGSSLCERT"), ("sslkey", "PGSSLKEY"))
# The file with the system's certificate authorities, for a Python built on another system: Debian
# and derivatives, Fedora and derivatives, openSUSE.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)
_DEFAULT_ROOT = "~/.postgresql/root.crt"
_SYSTEM = "; sslrootcert=system uses the authorities of the system"


def options(url: PostgresUrl, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the TLS options for asyncpg.

    Args:
        url: `passfile` is not about TLS; `protections` has checked the options of libpq alone.
        environment: Checked here, and read by asyncpg itself.

    Raises:
        UsageError: Unknown mode, or a file that is not readable.
    """
    chosen = {name: value for name, value in url.tls.items() if name in OF_DRIVER}
    mode = chosen.get("sslmode") or environment.get("PGSSLMODE") or "prefer"
    if mode not in _MODES:
        raise UsageError(f"{url.display}: sslmode unknown, not one of {', '.join(_MODES)}")
    if chosen.get("sslrootcert") == "system":  # since libpq 16
        chosen["sslrootcert"] = system_authorities() or "system"
    files = {name: chosen.get(name) or environment.get(variable) for name, variable in _FILES}
    if mode.startswith("verify-") and not files["sslrootcert"]:
        files["sslrootcert"] = os.path.expanduser(_DEFAULT_ROOT)
    for name, path in files.items():
        if path and not os.access(path, os.R_OK):
            raise UsageError(
                f"{url.display}: {name} {path}: not readable" + _SYSTEM * (name == "sslrootcert"),
                hint=f"ls -l {shell_word(path)}",
            )
    return chosen


def system_authorities() -> str | None:
    """Return the file with the certificate authorities that this system trusts."""
    found = (ssl.get_default_verify_paths().cafile, *_BUNDLES)
    return next((path for path in found if path and os.access(path, os.R_OK)), None)
