"""The credentials of object stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.remote.address import parse_address
from sagewai_ops.remote.object_credentials import find_credentials

S3 = parse_address("s3://bucket")
AZURE = parse_address("az://account/container")


def private(path: Path, text: str) -> str:
    """Write a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_the_profile_of_aws_is_read(tmp_path: Path) -> None:
    """Keys come from ~/.aws/credentials, region and endpoint from ~/.aws/config."""
    private(
        tmp_path / ".aws/credentials",
        "[default]\naws_access_key_id = A\naws_secret_access_key = B\n"
        "[other]\naws_access_key_id=C\naws_secret_access_key=D%(x)\naws_session_token=E\n",
    )
    private(tmp_path / ".aws/config", "[profile other]\nregion = eu\nendpoint_url = https://e\n")
    home = {"HOME": str(tmp_path)}

    default = find_credentials(S3, home)
    other = find_credentials(S3, {**home, "AWS_PROFILE": "other"})

    assert default.values == {"access_key_id": "A", "secret_access_key": "B"}
    assert other.values["secret_access_key"] == "D%(x)"
    assert other.values["session_token"] == "E"
    assert (other.region, other.endpoint) == ("eu", "https://e")
    assert "D%(x)" not in repr(other)


def test_variables_have_priority_over_the_profile(tmp_path: Path) -> None:
    """Nothing of a profile is mixed with keys from the environment."""
    private(tmp_path / ".aws/credentials", "[default]\naws_session_token=E\n")

    found = find_credentials(
        S3, {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B"}
    )

    assert found.values == {"access_key_id": "A", "secret_access_key": "B"}


def test_a_variable_can_name_a_file(tmp_path: Path) -> None:
    """`VARIABLE_FILE` is the path of a value, as containers mount secrets."""
    key = private(tmp_path / "key", "secret\n")
    environment = {"HOME": str(tmp_path), "AZURE_STORAGE_ACCOUNT_KEY_FILE": key}

    assert find_credentials(AZURE, environment).values == {"account_key": "secret"}


def test_the_file_of_a_place_has_priority(tmp_path: Path) -> None:
    """Two places can have two users, whatever the environment contains."""
    table = {
        "url": "s3://bucket",
        "credentials-file": private(
            tmp_path / "keys", "[default]\naws_access_key_id=C\naws_secret_access_key=D\n"
        ),
    }
    environment = {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "A", "AWS_SESSION_TOKEN": "T"}

    found = find_credentials(parse_address("p:", {"p": table}), environment)

    assert found.values == {"access_key_id": "C", "secret_access_key": "D"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not an ini file hunter2", "not an INI file"),
        ("[default]\nother = hunter2\n", "has none of"),
        ("", "no section"),
    ],
)
def test_a_malformed_file_is_a_usage_error(tmp_path: Path, text: str, expected: str) -> None:
    """No byte of the file is shown."""
    table = {"url": "s3://bucket", "credentials-file": private(tmp_path / "keys", text)}

    with pytest.raises(UsageError, match=expected) as caught:
        find_credentials(parse_address("p:", {"p": table}), {"HOME": str(tmp_path)})

    assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    """A missing file is an error, not a fall-back to other credentials."""
    missing = str(tmp_path / "missing")
    home = {"HOME": str(tmp_path)}

    with pytest.raises(NotFoundError, match="AWS_SECRET_ACCESS_KEY_FILE"):
        find_credentials(S3, {**home, "AWS_SECRET_ACCESS_KEY_FILE": missing})
    with pytest.raises(NotFoundError, match="AWS file"):
        find_credentials(S3, {**home, "AWS_SHARED_CREDENTIALS_FILE": missing})
    with pytest.raises(UsageError, match="no such profile"):
        find_credentials(S3, {**home, "AWS_PROFILE": "missing"})


def test_a_profile_that_needs_another_program_is_refused(tmp_path: Path) -> None:
    """Such a profile is an error with the command that exports its credentials."""
    private(tmp_path / ".aws/config", "[default]\ncredential_process = /bin/false\n")

    with pytest.raises(UsageError, match="credential_process is not supported") as caught:
        find_credentials(S3, {"HOME": str(tmp_path)})

    assert "export-credentials" in caught.value.hint
