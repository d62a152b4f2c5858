"""Tell a watchdog over HTTP that a run began, ended well, or failed: healthchecks.io's manner.

`URL/start` when it begins, `URL` when it ended well, `URL/fail` when it did not; the body has the
last lines. Whoever knows the URL can report in our name, so that no message holds more of it than
its host. A ping takes ten seconds at most, whatever the other side does, and never raises.
"""

import re
import threading
from enum import Enum
from urllib.parse import urlsplit, urlunsplit

from sagewai_ops.errors import UsageError

TIMEOUT_SECONDS = 10.0  # of a whole ping: name, connection, answer
MOST_BODY_BYTES = 10_000  # what healthchecks.io keeps of a body at least; the end is what counts


class Event(str, Enum):
    """What is told: the last part of the path."""

    START = "start"
    SUCCESS = ""
    FAIL = "fail"


def checked(url: str) -> str:
    """Give a URL that can be asked.

    Raises:
        UsageError: It is none; the message holds no part of it.
    """
    # Before urlsplit, which drops line ends in silence.
    is_good = re.fullmatch(r"https?://[!-?A-~]+", url) is not None  # printable ASCII, no @
    try:
        parts = urlsplit(url)
        is_good = is_good and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:
        raise UsageError(
            "ping URL: cannot be used",
            hint="give one as https://HOST/PATH, without a user and a password",
        )
    return url


def shown(url: str) -> str:
    """Name the other side without giving the URL away."""
    return f"ping of {urlsplit(url).hostname}"


def ping(url: str, event: Event, body: str = "", *, timeout: float = TIMEOUT_SECONDS) -> str:
    """Tell one thing.

    Args:
        url: From `checked`.
        timeout: In seconds, for all of it.

    Returns:
        What went wrong, in a phrase; "" if the other side took it.
    """
    problems = [f"no answer in {timeout:.0f} s"]

    def ask() -> None:
        problems[0] = _asked(_address(url, event), body.encode()[-MOST_BODY_BYTES:], timeout)

    # A socket's time-out begins anew with each byte, and a name's resolution has none: only who
    # waits elsewhere can stop waiting. A daemon dies with the process.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return problems[0]


def _address(url: str, event: Event) -> str:
    """Put the event at the end of the path, in front of a query."""
    if not event.value:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{event.value}", fragment=""))


def _asked(address: str, body: bytes, timeout: float) -> str:
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        address, data=body, headers={"Content-Type": "text/plain; charset=utf-8"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
            answer.read(1)
    except urllib.error.HTTPError as error:
        error.close()
        return f"answered {error.code}"
    except urllib.error.URLError as error:
        return _reason(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)
    return ""


def _reason(error: object) -> str:
    """Say why, in words that cannot hold the URL: the system's and OpenSSL's own."""
    for name in ("verify_message", "reason", "strerror"):
        if text := getattr(error, name, None):
            return str(text).lower().replace("_", " ")
    return "no answer in time" if isinstance(error, TimeoutError) else "no HTTP"
