"""Secrets that an engine gets: none of root's where it runs with the rights of another user.

A user can read the environment and the memory of its own processes, so what an engine gets while
root works on another user's home is known to that user.
"""

import contextlib
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from sagewai_ops.errors import KeyMissingError, PermissionDeniedError
from sagewai_ops.fs.given_files import (
    decode_given,
    passed_descriptor,
    path_owners,
    read_given_file,
)
from sagewai_ops.process.privileges import own_account, taken_account
from sagewai_ops.text import shell_word

_SECRET = re.compile(
    r"(PASS|PASSWD|PASSWORD|PASSPHRASE|SECRET|TOKEN|KEY|SAS|PASSCOMMAND|PASSWORD_COMMAND)\Z"
)
_LOGIN = re.compile(r"://[^/\s]*:[^/\s]*@")  # user and password of a URL


def passed_password(engine: str, environment: Mapping[str, str]) -> str:
    """Return the password of a descriptor that this process got from its caller.

    The engine runs several times, and a pipe can be read once.

    Args:
        environment: With BORG_PASSPHRASE_FD, or RESTIC_PASSWORD_FILE=/dev/fd/N.

    Returns:
        "" if the variables of the engine name no descriptor, or another source counts first.

    Raises:
        KeyMissingError: It cannot be read, or is empty.
        UsageError: It is not text in UTF-8.
        PermissionDeniedError: As for `refuse_roots_secret`.
    """
    if engine == "borg":
        variable = "BORG_PASSPHRASE_FD"
        is_first = not {"BORG_PASSPHRASE", "BORG_PASSCOMMAND"} & environment.keys()
        path = f"/dev/fd/{environment.get(variable, '')}"
    else:
        variable, is_first = "RESTIC_PASSWORD_FILE", True
        path = environment.get(variable, "")
    descriptor = passed_descriptor(path)
    if descriptor is None or not is_first:
        return ""
    refuse_roots_secret(engine, variable)
    try:
        found = os.fstat(descriptor)
        content = _read_once(path, found.st_dev, found.st_ino)
    except OSError as error:
        raise KeyMissingError(f"{variable}: descriptor {descriptor} cannot be read") from error
    password = decode_given(content, variable).rstrip("\r\n")
    if not password:
        raise KeyMissingError(f"{variable}: descriptor {descriptor} has no password")
    return password


@functools.lru_cache
def _read_once(path: str, _device: int, _inode: int) -> bytes:
    return read_given_file(Path(path))


def with_own_home(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an engine with root's home directory, if root has another user's.

    Under `sudo`, HOME can be that of the caller. A configuration of rclone or AWS there names
    commands, and a link in the cache leads elsewhere, with root's rights.
    """
    found = dict(environment)
    if not os.geteuid() and _owners(Path(found.get("HOME", os.sep))) != {0}:
        found = {name: value for name, value in found.items() if not name.startswith("XDG_")}
        found["HOME"] = own_account().home or os.sep
    return found


def _owners(directory: Path) -> set[int]:
    """Return the users that can change where a directory is, or what is in it."""
    with contextlib.suppress(OSError):
        return {0, *path_owners(directory), os.stat(directory).st_uid}
    return {0}


def refuse_roots_secrets(engine: str, environment: Mapping[str, str]) -> None:
    """Check that an engine with another user's rights gets no secret of root's environment.

    Args:
        environment: Of the engine, with its repository.

    Raises:
        PermissionDeniedError: It would.
    """
    if taken_account() is None:
        return
    names = [
        name
        for name, value in environment.items()
        if value and (_SECRET.search(name) or _LOGIN.search(value))
    ]
    if names:
        refuse_roots_secret(engine, ", ".join(sorted(names)))


def refuse_roots_secret(engine: str, what: str) -> None:
    """Refuse a secret if this process took the rights of another user.

    Args:
        what: Its source, such as `RESTIC_PASSWORD`.

    Raises:
        PermissionDeniedError: This process did.
    """
    account = taken_account()
    if account is None:
        return
    name = f"#{account.uid}" if account.name.startswith("uid ") else account.name
    raise PermissionDeniedError(
        f"{engine}: runs with the rights of {account.name}, who could read root's {what};"
        " nothing was changed",
        hint=f"sudo -u {shell_word(name)} sagewai-ops ...  # with a password of that user",
    )
