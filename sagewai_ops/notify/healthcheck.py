"""Report runs to a monitoring service by HTTP, in the manner of healthchecks.io.

`URL/start` at the start, `URL` after success, `URL/fail` after a failure; the body has the last
lines. Everyone who knows the URL can send such reports, so messages contain only its host. A ping
takes ten seconds at most, whatever the server does, and never raises. Redirects are followed to the
same scheme only: one from https to http would show the URL to the network.
"""

import re
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

from sagewai_ops.errors import UsageError
from sagewai_ops.notify.http import TIMEOUT_SECONDS, is_web_url, post

_CONTENT_TYPE = "text/plain; charset=utf-8"
MOST_BODY_BYTES = 10_000  # which healthchecks.io stores; the end of a longer body is sent


class Event(str, Enum):
    """An event; the value is the last part of the path."""

    START = "start"
    SUCCESS = ""
    FAIL = "fail"


def check_url(url: str) -> str:
    """Return a URL that can be used.

    Raises:
        UsageError: It cannot; the message contains no part of it.
    """
    # Before urlsplit, which silently removes line breaks.
    is_printable = re.fullmatch(r"https?://[!-?A-~]+", url) is not None  # ASCII, no @
    if not (is_printable and is_web_url(url)):
        raise UsageError(
            "ping URL: not https://HOST/PATH or http://HOST/PATH, without user and password"
        )
    return url


def describe_host(url: str) -> str:
    """Return a phrase with the host of a URL, whose path is a secret."""
    return f"ping of {urlsplit(url).hostname}"


def ping(url: str, event: Event, body: str = "", *, timeout: float = TIMEOUT_SECONDS) -> str:
    """Send an event.

    Args:
        url: From `check_url`.
        timeout: In seconds, for the whole ping.

    Returns:
        What failed, in a phrase; "" after success.
    """
    return post(
        _address(url, event), body.encode()[-MOST_BODY_BYTES:], _CONTENT_TYPE, timeout=timeout
    )


def _address(url: str, event: Event) -> str:
    """Add the event to the path, before a query."""
    if not event.value:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{event.value}", fragment=""))
