"""The credentials of object stores: the credentials file of a place, else the environment.

obstore itself reads the environment and asks the metadata service of an instance. It does not read
`~/.aws/credentials` and `~/.aws/config` nor the `*_FILE` variables of containers; this module does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs.given_files import decode_given, read_given_file
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

if TYPE_CHECKING:
    from configparser import RawConfigParser

    from sagewai_ops.remote.address import Address

# Scheme -> variable -> key of obstore. Each may also be VARIABLE_FILE, with the path of its value.
_VARIABLES: Mapping[str, Mapping[str, str]] = {
    "s3": {
        "AWS_ACCESS_KEY_ID": "access_key_id",
        "AWS_SECRET_ACCESS_KEY": "secret_access_key",
        "AWS_SESSION_TOKEN": "session_token",
    },
    "az": {
        "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
        "AZURE_STORAGE_ACCESS_KEY": "account_key",
        "AZURE_STORAGE_SAS_TOKEN": "sas_key",
        "AZURE_STORAGE_SAS_KEY": "sas_key",
        "AZURE_STORAGE_CLIENT_ID": "client_id",
        "AZURE_CLIENT_ID": "client_id",
        "AZURE_STORAGE_CLIENT_SECRET": "client_secret",
        "AZURE_CLIENT_SECRET": "client_secret",
        "AZURE_STORAGE_TENANT_ID": "tenant_id",
        "AZURE_TENANT_ID": "tenant_id",
    },
    "gs": {
        "GOOGLE_SERVICE_ACCOUNT_KEY": "service_account_key",
        "GOOGLE_SERVICE_ACCOUNT": "service_account",
        "GOOGLE_APPLICATION_CREDENTIALS": "application_credentials",
    },
}
# Key of a profile in the files of the AWS command line -> key of obstore.
_AWS_KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
_AZURE_KEYS = ("account_key", "sas_key", "client_id", "client_secret", "tenant_id")
_CLEAR = ("client_id", "tenant_id", "service_account", "application_credentials")  # no secrets
_ELSEWHERE = ("credential_process", "sso_session", "sso_start_url", "source_profile", "role_arn")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials and settings, by the keys of obstore.

    Attributes:
        values: Empty: obstore asks the metadata service of the instance.
        source: Where they were found, for messages; "" if nowhere.
    """

    values: Mapping[str, str] = field(repr=False)
    source: str = ""
    region: str = ""
    endpoint: str = ""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that no message may contain."""
        return tuple(value for key, value in self.values.items() if key not in _CLEAR)


def find_credentials(address: Address, environment: Mapping[str, str]) -> Credentials:
    """Find the credentials of a place: its credentials file, the variables, AWS's own files.

    Raises:
        UsageError: A file is malformed, or needs a program that obstore does not start.
        NotFoundError: A file that is named does not exist.
    """
    scheme = address.scheme
    profile = _aws_profile(environment) if scheme == "s3" else Credentials({})
    if address.credentials_file:
        values = _read_credentials_file(address, address.credentials_file, environment)
        return Credentials(values, address.credentials_file, profile.region, profile.endpoint)
    found: dict[str, str] = {}
    for variable, key in _VARIABLES[scheme].items():
        value = environment.get(variable) or _from_file(environment, variable)
        if value:
            found.setdefault(key, value)
    if found:
        return Credentials(found, "environment", profile.region, profile.endpoint)
    return profile


def _from_file(environment: Mapping[str, str], variable: str) -> str:
    path = environment.get(f"{variable}_FILE")
    if not path:
        return ""
    value = _read(path, f"{variable}_FILE").strip()
    if not value or "\n" in value:
        raise UsageError(f"{variable}_FILE: {path} does not contain one line")
    return value


def _read_credentials_file(
    address: Address, path: str, environment: Mapping[str, str]
) -> dict[str, str]:
    if address.scheme == "gs":
        _read(path, "credentials file")  # readable, and reported if others can read it
        return {"service_account": path}
    sections = _parse(_read(path, "credentials file"), path)
    profile = environment.get("AWS_PROFILE") or "default"
    names = [name for name in (profile, "default") if sections.has_section(name)]
    names = names or sections.sections()[:1]
    if not names:
        raise UsageError(f"credentials file {path}: no section [default]")
    known = _AWS_KEYS if address.scheme == "s3" else {key: key for key in _AZURE_KEYS}
    values = {
        known[key]: value for key, value in sections.items(names[0]) if key in known and value
    }
    if not values:
        raise UsageError(f"credentials file {path}: [{names[0]}] has none of {', '.join(known)}")
    return values


def _aws_profile(environment: Mapping[str, str]) -> Credentials:
    """Read the profile of AWS's own files; empty if they do not exist."""
    named = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    profile = named or "default"
    home = environment.get("HOME") or os.path.expanduser("~")
    values: dict[str, str] = {}
    settings: dict[str, str] = {}
    source = ""
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    ):
        path = environment.get(variable) or os.path.join(home, ".aws", file)
        if not environment.get(variable) and not os.path.exists(path):
            continue
        sections = _parse(_read(path, "AWS file"), path)
        if sections.has_section(section):
            settings |= dict(sections.items(section))
            source = path
    values = {key: settings[name] for name, key in _AWS_KEYS.items() if settings.get(name)}
    if named and not settings:
        raise UsageError(f"AWS_PROFILE {named}: no such profile in ~/.aws")
    is_explicit = any(environment.get(name) for name in _VARIABLES["s3"])
    other = next((key for key in _ELSEWHERE if settings.get(key)), None)
    if other and not values and not is_explicit:
        raise UsageError(
            f"AWS profile {profile}: {other} is not supported",
            hint='eval "$(aws configure export-credentials --format env --profile'
            f' {shell_word(profile)})"',
        )
    return Credentials(
        values,
        source if values else "",
        settings.get("region", ""),
        settings.get("endpoint_url", ""),
    )


def _parse(text: str, path: str) -> RawConfigParser:
    import configparser

    parser = configparser.RawConfigParser(default_section="\0", strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # Without the text of the error, which quotes the line.
        raise UsageError(f"{path}: not an INI file ({type(error).__name__})") from None
    return parser


def _read(path: str, kind: str) -> str:
    try:
        content = read_given_file(Path(path).expanduser(), private=kind)
    except FileNotFoundError:
        raise NotFoundError(f"{kind} {path}: not found", hint=f"ls -l {shell_word(path)}") from None
    except OSError as error:
        raise from_os_error(error, Path(path)) from error
    return decode_given(content, f"{kind} {path}")
