"""The period in which an object store keeps an object against every user."""

from __future__ import annotations

from datetime import datetime, timezone
from urllib.parse import urlsplit

# Of S3, Azure and Google Cloud Storage.
_HEADERS = (
    "x-amz-object-lock-retain-until-date",
    "x-ms-immutability-policy-until-date",
    "x-goog-retention-expiration",
)


def retention_of(url: str, timeout_seconds: float) -> datetime | None:
    """Return until when an object is locked; None if it is not, or the answer does not state it.

    Args:
        url: Signed for HEAD; a secret. Redirects are not followed.

    Raises:
        OSError: The server cannot be reached.
    """
    import http.client  # takes longer to load than a request, and few stores lock objects

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_seconds)
    try:
        connection.request("HEAD", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        value = next((found for name in _HEADERS if (found := answer.getheader(name))), None)
    except http.client.HTTPException:
        return None
    finally:
        connection.close()
    return _parse(value) if value else None


def _parse(text: str) -> datetime | None:
    """Parse a time in ISO 8601, as S3 writes it, or in the form of HTTP, as Azure does."""
    import email.utils

    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        try:
            found = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
