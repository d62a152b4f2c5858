"""Errors of object stores: no secret, one line, the right exit code."""

from __future__ import annotations

import pytest

from sagewai_ops.errors import NotFoundError, OpsError, PermissionDeniedError, RemoteError
from sagewai_ops.remote.object_errors import redact, translate_error

SECRETS = (
    "https://host/bucket/key?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2&X-Amz-Date=1",
    "https://user:hunter2@host/bucket",
    "Authorization: Bearer hunter2.hunter2",
    "authorization=SharedKey account:hunter2=",
    "sig=hunter2&se=2026",
    "AccessKeyId: hunter2",
    "account_key=hunter2==",
    "x-amz-security-token: hunter2",
    "client_secret = hunter2".replace(" ", ""),
    "AKIAHUNTER2HUNTER200",
)


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_removed(text: str) -> None:
    """Queries, keys, signatures and tokens are hidden; the rest remains."""
    shown = redact(f"before {text} after")

    assert "hunter2" not in shown.lower()
    assert shown.startswith("before ")
    assert shown.endswith(" after")


def test_a_known_secret_is_removed_anywhere() -> None:
    """The credentials in use are hidden, wherever a server repeats them."""
    assert redact("the key s3cr3t+/= is wrong", ["s3cr3t+/=", ""]) == "the key (hidden) is wrong"


ANSWER = (
    "Generic S3 error: Error performing PUT http://h/b/k?X-Amz-Signature=hunter2 in 2.3ms, after"
    " 2 retries, max_retries: 2, retry_timeout: 180s  - Server returned non-2xx status code:"
    " {status}: <Error><Code>{code}</Code><Message>{message}</Message>"
    "<AWSAccessKeyId>hunter2</AWSAccessKeyId><StringToSign>hunter2</StringToSign></Error>"
    "\n\nDebug source:\nhunter2"
)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("403 Forbidden", "SignatureDoesNotMatch", PermissionDeniedError),
        ("401 Unauthorized", "AuthenticationFailed", PermissionDeniedError),
        ("404 Not Found", "NoSuchBucket", NotFoundError),
        ("404 Not Found", "ContainerNotFound", NotFoundError),
        ("500 Internal Server Error", "InternalError", RemoteError),
        ("503 Service Unavailable", "SlowDown", RemoteError),
    ],
)
def test_an_answer_is_summarised(status: str, code: str, expected: type[OpsError]) -> None:
    """Status, code and message are shown; the request and the rest of the answer are not."""
    text = ANSWER.format(status=status, code=code, message="The reason.")

    found = translate_error(RuntimeError(text), "s3://bucket", "card")

    assert type(found) is expected
    assert code in found.message
    assert found.next_step
    assert not {"hunter2", "\n", "StringToSign"} & {found.message, found.hint}
    assert "hunter2" not in found.message + found.hint


def test_text_of_a_server_cannot_control_the_terminal() -> None:
    """Control characters in a message of a server are escaped."""
    text = ANSWER.format(status="500 Error", code="Odd", message="a\x1b[2Jb")

    assert "\x1b" not in translate_error(RuntimeError(text), "s3://bucket").message


def test_missing_credentials_are_explained() -> None:
    """Where obstore asks an instance in vain, the message names the missing credentials."""
    text = (
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s,"
        " after 3 retries, max_retries: 3, retry_timeout: 180s  - HTTP error: error sending request"
    )

    found = translate_error(RuntimeError(text), "s3://bucket")

    assert isinstance(found, PermissionDeniedError)
    assert "no credentials" in found.message
