"""Addresses of remote places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.errors import UsageError
from sagewai_ops.remote.address import (
    Address,
    is_remote,
    open_store,
    parse_address,
    repository_address,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", Address("s3", "bucket")),
        ("S3://bucket/", Address("s3", "bucket")),
        ("s3://bucket/a/b", Address("s3", "bucket", "a/b")),
        ("gs://bucket/a", Address("gs", "bucket", "a")),
        ("az://account/container/a/b/", Address("az", "container", "a/b", "account")),
        ("sftp://host/srv/backup", Address("sftp", "host", "/srv/backup")),
        ("sftp://me@host:2222/b", Address("sftp", "host", "/b", user="me", port=2222)),
        ("sftp://host/~/b", Address("sftp", "host", "b")),
        ("sftp://host/~", Address("sftp", "host", "")),
        ("sftp://[fe80::1%eth0]:22/b", Address("sftp", "fe80::1%eth0", "/b", port=22)),
    ],
)
def test_a_url_is_parsed(text: str, expected: Address) -> None:
    """Each kind of URL has a bucket or host, and a prefix."""
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://b",
        "s3:///prefix",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "s3://bucket/a b",
        "s3://bucket/a%2e%2e",
        "s3://bucket/a\nb",
        "az://account",
        "az://Account!/container",
        "sftp://",
        "sftp:///path",
        "sftp://-oProxyCommand=id/path",
        "sftp://me@-oProxyCommand=id/path",
        "sftp://-me@host/path",
        "sftp://host:0/path",
        "sftp://host:99999/path",
        "sftp://host:22x/path",
        "sftp://ho\x07st/path",
        "sftp://host/../etc",
        "https://example.org/bucket",
        "file:///srv",
        "unknown:",
    ],
)
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    """A malformed address exits with 2, on one line, with the forms that exist."""
    with pytest.raises(UsageError) as caught:
        parse_address(text)

    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert "\x07" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAKEY:hunter2@bucket/prefix",
        "s3://hunter2@bucket/prefix",
        "az://account:hunter2@container/prefix",
        "az://account/container/prefix?sv=2021&sig=hunter2",
        "sftp://me:hunter2@host/path",
        "sftp://host/path#hunter2",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_shown(text: str) -> None:
    """Arguments are in the process list, so a password there is an error."""
    with pytest.raises(UsageError) as caught:
        parse_address(text)

    assert "hunter2" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", True),
        ("offsite:", True),
        ("offsite:sub", True),
        ("unknown://x", True),
        ("/srv/snapshots", False),
        ("snapshots", False),
        ("./offsite:", False),
        ("/a:b", False),
        ("C:", False),
        ("-", False),
        ("", False),
        ("a:/b", False),
        ("2026-01-01T12:00", True),
    ],
)
def test_a_place_and_a_path_differ(text: str, expected: bool) -> None:  # noqa: FBT001
    """What begins with a scheme or a name and a colon is a place."""
    assert is_remote(text) is expected


def test_a_name_of_the_configuration_has_an_endpoint_and_a_directory() -> None:
    """`NAME:PATH` is a directory of the place that the table describes."""
    remotes = {
        "offsite": {
            "url": "s3://bucket/prefix/",
            "endpoint": "https://s3.example.org/",
            "region": "eu",
            "path-style": False,
            "credentials-file": "/etc/keys",
        }
    }

    found = parse_address("offsite:/host/", remotes)

    assert found == Address(
        "s3",
        "bucket",
        "prefix/host",
        endpoint="https://s3.example.org",
        region="eu",
        path_style=False,
        credentials_file="/etc/keys",
    )
    assert found.shown == "offsite:host"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, "no url"),
        ({"url": "/srv"}, "not a URL"),
        ({"url": "other:"}, "not a URL"),
        ({"url": "s3://bucket", "secret": "x"}, "unknown"),
        ({"url": "s3://bucket", "path-style": "no"}, "not true or false"),
        ({"url": "s3://bucket", "region": 3}, "not a text"),
        ({"url": "s3://bucket", "endpoint": "https://a:hunter2@host"}, "without user"),
        ({"url": "sftp://host/a", "region": "eu"}, "unknown for sftp"),
    ],
)
def test_a_wrong_table_is_a_usage_error(table: dict[str, object], expected: str) -> None:
    """The key is named, and no secret is shown."""
    with pytest.raises(UsageError, match=expected) as caught:
        parse_address("offsite:", {"offsite": table})

    assert "hunter2" not in caught.value.message


def test_an_unknown_name_lists_those_that_exist() -> None:
    """A typo is answered with the names of the configuration."""
    with pytest.raises(UsageError, match="offsit: not in the configuration") as caught:
        parse_address("offsit:", {"offsite": {"url": "s3://bucket"}})

    assert "offsite" in caught.value.hint


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text has another outcome than an address or a usage error."""
    for scheme in ("", "s3://", "az://", "sftp://", "sftp://host/"):
        try:
            found = parse_address(f"{scheme}{text}")
        except UsageError:
            continue
        assert parse_address(str(found)) == found


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra names the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "obstore", None)

    with pytest.raises(UsageError, match="not installed") as caught:
        open_store(parse_address("s3://bucket"), {})

    assert "sagewai-ops[remote]" in caught.value.hint


def test_a_password_in_the_name_of_a_repository_is_hidden_to_its_end() -> None:
    """It can contain `@`; an option of rclone with a secret is refused."""
    shown = repository_address("restic", "rest:https://u:p@ss@host/path@x")

    assert shown == "restic:rest:https://u:***@host/path@x"
    named = "rclone:named:bucket/a,b"
    assert repository_address("restic", named) == f"restic:{named}"
    with pytest.raises(UsageError) as raised:
        repository_address("restic", "rclone::s3,endpoint=https://h,secret_access_key=planted:b")
    assert "planted" not in str(raised.value)
