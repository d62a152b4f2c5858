"""Notifications of failed runs: a webhook, or any service that Apprise knows.

`https://` and `http://` get the JSON envelope of the run by POST, with the standard library alone.
Every other URL is one of Apprise (`ntfys://`, `mailtos://`, `slack://`, ...), which is imported
when something is sent. All parts of such a URL can be secret, so messages contain the host of a
webhook, or the scheme of the others. A notification never raises: what failed is returned.
"""

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from sagewai_ops.errors import UsageError
from sagewai_ops.notify.http import TIMEOUT_SECONDS, is_web_url, post, wait_for
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable

_APPRISE_SECONDS = 30.0  # a mail server may greet slowly
_MOST_BYTES = 256 * 1024  # of a body; the result of a run that lists more is left out
_MOST_LINES = 20  # in a message
_WEBHOOK = ("http", "https")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31})://[!-~]*")  # printable ASCII


@dataclass(frozen=True, slots=True)
class Message:
    """A message for people.

    Attributes:
        envelope: The JSON object of the run, for programs.
        is_failure: Whether something is to be done.
    """

    title: str
    lines: tuple[str, ...]
    envelope: Mapping[str, Any]
    is_failure: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was sent, or not.

    Attributes:
        target: Without secrets.
        problem: Why not; "" if it was.
    """

    target: str
    problem: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The result of a test."""

    deliveries: tuple[Delivery, ...]


def check_notify_url(url: str) -> str:
    """Return a URL that can be used.

    Raises:
        UsageError: It cannot; the message contains no part of it.
    """
    match = _URL.fullmatch(url)
    if match is None or (match[1].lower() in _WEBHOOK and not is_web_url(url)):
        raise UsageError(
            "notify URL: neither https://HOST/PATH, without user and password, nor one of Apprise",
            hint="sagewai-ops notify test --notify-file FILE  # with one URL a line",
        )
    return url


def describe_target(url: str) -> str:
    """Return a phrase without secrets: the host of a webhook, the scheme of another URL."""
    parts = urlsplit(url)
    if parts.scheme.lower() in _WEBHOOK:
        return f"notification to {parts.hostname}"
    return f"notification by {url.partition(':')[0].lower()}"


def build_message(envelope: Mapping[str, Any], host: str, *, recovered: bool) -> Message:
    """Return the message about a run.

    Args:
        envelope: Its JSON object.
        recovered: It succeeded after one that failed.
    """
    code = int(envelope["exit_code"])
    state = f"failed, exit {code}" if code else "works again" if recovered else "succeeded"
    error = envelope.get("error") or {}
    lines = [f"home: {envelope['home']}", f"seconds: {envelope['seconds']}"]
    if error:
        lines += [f"error: {error['message']}", *(f"hint: {line}" for line in error["hint"])]
    lines += [f"warning: {text}" for text in envelope.get("warnings") or ()]
    return Message(
        title=printable(f"sagewai-ops on {host}: {envelope['command']} {state}"),
        lines=tuple(map(printable, lines[:_MOST_LINES])),
        envelope=envelope,
        is_failure=code != 0,
    )


def send(url: str, message: Message, *, timeout: float = 0.0) -> str:
    """Send a message.

    Args:
        url: From `check_notify_url`.
        timeout: In seconds, for all of it; 0 for the default of the kind.

    Returns:
        What failed, in a phrase; "" after success.
    """
    if urlsplit(url).scheme.lower() in _WEBHOOK:
        return post(
            url,
            _encode(message.envelope),
            "application/json",
            timeout=timeout or TIMEOUT_SECONDS,
            same_host=True,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of its dependencies are not for users
        return wait_for(timeout or _APPRISE_SECONDS, lambda: _send_by_apprise(url, message))


def _encode(envelope: Mapping[str, Any]) -> bytes:
    text = json.dumps(envelope, default=str).encode()
    if len(text) <= _MOST_BYTES:
        return text
    omitted = f"the result of {len(text)} bytes is not in this notification"
    short = {**envelope, "result": None, "warnings": [omitted]}
    return json.dumps(short, default=str).encode()


def _send_by_apprise(url: str, message: Message) -> str:
    import importlib
    import logging

    # What it logs can contain the URL.
    logger = logging.getLogger("apprise")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    try:
        apprise: Any = importlib.import_module("apprise")
    except ImportError:
        return "Apprise is not installed: pip install 'sagewai-ops[notify]'"
    try:
        service = apprise.Apprise()
        if not service.add(url):
            return "not a URL of Apprise"
        kind = apprise.NotifyType.FAILURE if message.is_failure else apprise.NotifyType.SUCCESS
        is_sent = service.notify(
            title=message.title, body="\n".join(message.lines), notify_type=kind
        )
    except Exception as error:  # noqa: BLE001 - of a plug-in; its text can contain the URL
        return f"failed: {type(error).__name__}"
    return "" if is_sent else "not accepted; apprise -v shows why"
