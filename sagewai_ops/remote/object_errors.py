"""The errors of obstore in the words of this program, without secrets.

obstore's texts contain the request and the whole answer. Of an answer, the status, the code and the
message of the provider are shown; URLs lose their queries, which contain signatures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sagewai_ops.errors import NotFoundError, OpsError, PermissionDeniedError, RemoteError
from sagewai_ops.text import printable

_MOST_CHARACTERS = 300
_STATUS = re.compile(r"status code: (\d{3} [A-Za-z ]+)")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})")
_REQUEST = re.compile(
    r"Error performing \S+(?: request)? \S+ in [^,]*?s(?:, after .*?  ?)? - "
    r"|Error performing list request: "
)
_NO_PLACE = ("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "InvalidBucketName")
# The addresses of the metadata services of instances, and how the others answer without login.
_INSTANCE = re.compile(r"169\.254\.16\d\.\d+|fd00:ec2::|metadata\.google\.internal")
_SECRETS = (
    (re.compile(r"(https?://[^\s?\"']*)\?[^\s\"']*"), r"\1"),
    (re.compile(r"(https?://)[^\s/@]*@"), r"\1"),
    (re.compile(r"(?i)\b(bearer|sharedkey|basic) +[A-Za-z0-9+/=._:~-]+"), r"\1 (hidden)"),
    (
        re.compile(
            r"(?i)\b(sig|[\w-]*(?:signature|credential|token|secret|password|access_?key"
            r"|account_?key)[\w-]*)([=:]\s*)[^\s&,;]+"
        ),
        r"\1\2(hidden)",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), "(hidden)"),
)


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """Return a text without queries of URLs, keys, signatures and tokens.

    Args:
        secrets: Further strings that are removed.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "(hidden)")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def translate_error(
    error: Exception, place: str, name: str = "", secrets: Sequence[str] = ()
) -> OpsError:
    """Return the error of this program for one of obstore.

    Args:
        place: The address.
        name: Of the object; "" for the place itself.
        secrets: The credentials that are used.
    """
    text = str(error)
    code = (_CODE.search(text) or ("", ""))[1]
    status = (_STATUS.search(text) or ("", ""))[1].strip()
    where = f"{place}: {printable(name)}" if name else place
    if code in _NO_PLACE:
        return NotFoundError(
            f"{place}: the bucket or container does not exist ({code})",
            hint="create it with the tools of the provider; it is never created here",
        )
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: not found", hint=f"sagewai-ops remote check {place}")
    if _INSTANCE.search(text):
        return PermissionDeniedError(
            f"{place}: no credentials in the environment, the usual files or the instance",
            hint="sagewai-ops remote init --help  # where they are read from",
        )
    summary = redact(_summary(text, status, code), secrets)
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or status[:3] in (
        "401",
        "403",
    ):
        return PermissionDeniedError(
            f"{where}: {summary}",
            hint=f"sagewai-ops remote check {place}  # shows the smallest policy",
        )
    return RemoteError(f"{where}: {summary}", hint=f"sagewai-ops remote check {place}")


def _summary(text: str, status: str, code: str) -> str:
    if status:
        message = (_MESSAGE.search(text) or ("", ""))[1].strip().rstrip(".")
        return printable(": ".join(filter(None, (f"answered {status}", code, message))))
    first = text.split("\n", 1)[0]
    first = _REQUEST.sub("", first).partition("<")[0].strip()
    return printable(first[:_MOST_CHARACTERS]) or "failed without a message"
