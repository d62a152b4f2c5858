"""Report runs to a monitoring service by HTTP, in the manner of healthchecks.io.

`URL/start` at the start, `URL` after success, `URL/fail` after a failure; the body has the last
lines. Everyone who knows the URL can send such reports, so messages contain only its host. A ping
takes ten seconds at most, whatever the server does, and never raises. Redirects are followed to the
same scheme only: one from https to http would show the URL to the network.
"""

import re
from enum import Enum
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sagewai_ops.errors import UsageError
from sagewai_ops.process.threads import Thread

TIMEOUT_SECONDS = 10.0  # of a whole ping: name, connection, answer
_REDIRECTED = "redirected to another scheme, not followed"
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
    is_valid = re.fullmatch(r"https?://[!-?A-~]+", url) is not None  # printable ASCII, no @
    try:
        parts = urlsplit(url)
        is_valid = is_valid and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
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
    problems = [f"no answer in {timeout:.0f} s"]

    def run() -> None:
        problems[0] = _post(_address(url, event), body.encode()[-MOST_BODY_BYTES:], timeout)

    # The timeout of a socket restarts with each byte, and name resolution has none, so a thread
    # waits that can be abandoned.
    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    return problems[0]


def _address(url: str, event: Event) -> str:
    """Add the event to the path, before a query."""
    if not event.value:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{event.value}", fragment=""))


def _post(address: str, body: bytes, timeout: float) -> str:
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        address, data=body, headers={"Content-Type": "text/plain; charset=utf-8"}, method="POST"
    )
    scheme = urlsplit(address).scheme

    class SameScheme(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
            *_, target = arguments
            if urlsplit(target).scheme != scheme:
                raise http.client.HTTPException(_REDIRECTED)
            return super().redirect_request(*arguments)

    try:
        opener = urllib.request.build_opener(SameScheme)
        with opener.open(request, timeout=timeout) as response:
            response.read(1)
    except urllib.error.HTTPError as error:
        error.close()
        return f"answered {error.code}"
    except urllib.error.URLError as error:
        return _reason(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)
    return ""


def _reason(error: object) -> str:
    """Return the reason of an error, in texts of the system and OpenSSL, which lack the URL."""
    if isinstance(error, Exception) and error.args == (_REDIRECTED,):
        return _REDIRECTED
    for name in ("verify_message", "reason", "strerror"):
        if text := getattr(error, name, None):
            return str(text).lower().replace("_", " ")
    return "no answer in time" if isinstance(error, TimeoutError) else "not HTTP"
