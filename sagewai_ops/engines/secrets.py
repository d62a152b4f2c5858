"""Secrets that an engine gets: none of root's where it runs with the rights of another user.

A user can read the environment and the memory of its own processes, so what an engine gets while
root works on another user's home is known to that user.
"""

import re
from collections.abc import Mapping

from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.process.privileges import taken_account
from sagewai_ops.text import shell_word

_SECRET = re.compile(r"(PASS|PASSWD|PASSWORD|PASSPHRASE|SECRET|TOKEN|KEY|SAS)\Z")
_LOGIN = re.compile(r"://[^/\s]*:[^/\s]*@")  # user and password of a URL


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
