"""Send a POST request with the standard library, and describe what failed without its URL."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from sagewai_ops.process.threads import Thread

TIMEOUT_SECONDS = 10.0  # of a whole request: name, connection, answer
_SCHEME = "redirected to another scheme, not followed"
_HOST = "redirected to another host, not followed"


def post(
    address: str,
    body: bytes,
    content_type: str,
    *,
    timeout: float = TIMEOUT_SECONDS,
    same_host: bool = False,
) -> str:
    """Send a request; of the answer only the status is read.

    Args:
        timeout: In seconds, for all of it.
        same_host: Follow a redirect to the same scheme, host and port only, with the body; else to
            the same scheme, without it.

    Returns:
        What failed, in a phrase; "" after success.
    """
    return wait_for(
        timeout, lambda: _post(address, body, content_type, timeout, same_host=same_host)
    )


def wait_for(seconds: float, work: Callable[[], str]) -> str:
    """Return what a function returns, or after some seconds that there is no answer.

    The timeout of a socket restarts with each byte, and name resolution has none, so a thread waits
    that can be abandoned.
    """
    problems = [f"no answer in {seconds:.0f} s"]

    def run() -> None:
        problems[0] = work()

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[0]


def is_web_url(url: str) -> bool:
    """Return whether a URL has a host and a possible port, and no user or password."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return False


def _post(address: str, body: bytes, content_type: str, timeout: float, *, same_host: bool) -> str:
    import http.client
    import urllib.error
    import urllib.request

    headers = {"Content-Type": content_type, "User-Agent": "sagewai-ops"}
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        address, data=body, headers=headers, method="POST"
    )
    scheme, host = urlsplit(address)[:2]

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(
            self,
            req: urllib.request.Request,
            fp: Any,
            code: int,
            msg: str,
            headers: Any,
            newurl: str,
        ) -> urllib.request.Request | None:
            fp.close()  # urllib would read all of the answer, which can be endless
            target = urlsplit(newurl)
            if target.scheme != scheme:
                raise http.client.HTTPException(_SCHEME)
            if not same_host:
                return super().redirect_request(req, fp, code, msg, headers, newurl)
            if target.netloc != host:
                raise http.client.HTTPException(_HOST)
            return urllib.request.Request(  # noqa: S310 - of the same scheme
                newurl, data=body, headers=dict(request.header_items()), method="POST"
            )

    Redirects.http_error_308 = Redirects.http_error_307  # type: ignore[attr-defined] # Python 3.10
    try:
        opener = urllib.request.build_opener(Redirects)
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
    if isinstance(error, Exception) and error.args in ((_SCHEME,), (_HOST,)):
        return str(error.args[0])
    for name in ("verify_message", "reason", "strerror"):
        if text := getattr(error, name, None):
            return str(text).lower().replace("_", " ")
    return "no answer in time" if isinstance(error, TimeoutError) else "not HTTP"
