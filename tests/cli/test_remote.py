"""`remote init` and `remote check`, as a user sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from json_schemas import problems
from program import Answer, call
from remote_servers import AzureServer, Bucket, S3Server, SshServer, local_ssh
from sagewai_ops.remote.marker import MARKER


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Return a function that runs a command on a bucket, named `test:` in the configuration."""

    def run(bucket: Bucket, command: str, *words: object, below: str = "hosts/one") -> Answer:
        for name, value in bucket.environment.items():
            if name != "HOME":
                monkeypatch.setenv(name, value)
        configuration = tmp_path / "config.toml"
        lines = [f'{key} = "{value}"' for key, value in bucket.remote.items()]
        configuration.write_text("\n".join(("[remote.test]", *lines)))
        configuration.chmod(0o600)
        return call("--config", configuration, "remote", command, f"test:{below}", *words)

    return run


def test_a_place_is_initialised_once_and_checked(
    seaweedfs: S3Server, run: Callable[..., Answer]
) -> None:
    """The results are shown; a second time it is initialised already; a check compares."""
    bucket = seaweedfs.bucket()

    first = run(bucket, "init", "--json")
    second = run(bucket, "init", "--json")
    check = run(bucket, "check", "--json")
    shown = run(bucket, "check")

    assert first.code == 0, first
    assert problems("remote-init", first.result) == []
    assert first.result["capabilities"]["put_if_absent"] is True
    assert second.code == 15
    assert "remote check" in second.document["error"]["hint"][0]
    assert check.code == 0, check
    assert problems("remote-check", check.result) == []
    assert check.result["place_id"] == first.result["place_id"]
    assert check.result["changed"] == []
    rule = json.loads(check.result["advice"]["lifecycle"])["Rules"][0]
    assert rule["Filter"] == {"Prefix": "hosts/one/"}
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    policy = json.loads(check.result["advice"]["policy"])
    assert policy["Statement"][1]["Resource"] == f"arn:aws:s3:::{bucket.name}/hosts/one/*"
    assert "AbortIncompleteMultipartUpload" in shown.out
    assert "s3:DeleteObject" in shown.out


def test_a_gateway_that_is_not_safe_is_refused(
    rclone: S3Server, run: Callable[..., Answer]
) -> None:
    """Findings exit with 4, and no marker is written."""
    bucket = rclone.bucket()

    answer = run(bucket, "init", "--json")
    shown = run(bucket, "init")
    check = run(bucket, "check")

    assert answer.code == 4, answer
    kinds = {finding["kind"] for finding in answer.result["findings"]}
    assert {"put-if-absent", "ranges"} <= kinds
    assert answer.result["place_id"] is None
    assert shown.code == 4
    assert "not initialised" in shown.out
    assert check.code == 10


def test_a_bucket_that_is_missing_is_an_error_with_10(
    seaweedfs: S3Server, run: Callable[..., Answer]
) -> None:
    """A mistyped bucket is not created."""
    bucket = seaweedfs.bucket()
    typo = Bucket("", bucket.port, bucket.environment, {**bucket.remote, "url": f"{bucket.url}x"})

    for _each in range(2):
        answer = run(typo, "init", "--json")

        assert answer.code == 10, answer
        assert "does not exist" in answer.document["error"]["message"]


def test_a_place_without_a_marker_names_the_command(
    azurite: AzureServer, run: Callable[..., Answer]
) -> None:
    """A check of a place that was not initialised exits with 10."""
    container = azurite.container()

    before = run(container, "check", "--json")
    init = run(container, "init")
    after = run(container, "check")

    assert before.code == 10
    assert before.document["error"]["hint"] == ["sagewai-ops remote init test:hosts/one"]
    assert (init.code, after.code) == (0, 0), (init, after)


def test_what_has_changed_since_is_a_finding(
    seaweedfs: S3Server, run: Callable[..., Answer]
) -> None:
    """A bucket whose versions are kept since then is reported with 4."""
    bucket = seaweedfs.bucket()
    assert run(bucket, "init").code == 0
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    seaweedfs.request("PUT", f"/{bucket.name}", "versioning=", body)

    answer = run(bucket, "check", "--json")

    assert answer.code == 4, answer
    assert answer.result["changed"] == ["deleting"]
    assert answer.result["capabilities"]["deleting"] == "hidden"


def test_rights_that_are_missing_are_an_error_with_14(
    seaweedfs: S3Server, run: Callable[..., Answer]
) -> None:
    """No secret is shown."""
    bucket = seaweedfs.bucket()
    wrong = {**bucket.environment, "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
    stranger = Bucket(bucket.url, bucket.port, wrong, bucket.remote)

    answer = run(stranger, "init", "-v")

    assert answer.code == 14, answer
    assert "hunter2" not in answer.out + answer.err


def test_a_directory_over_ssh_is_initialised(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place needs no configuration; the directory has only the marker."""
    url, environment, directory = sshd.place()
    monkeypatch.setenv("PATH", environment["PATH"])

    answer = call("remote", "init", url)
    check = call("remote", "check", url)

    assert (answer.code, check.code) == (0, 0), (answer, check)
    assert os.listdir(directory) == [MARKER]
    assert "internal-sftp" in check.out


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is only listed."""
    local_ssh(tmp_path, monkeypatch)
    (tmp_path / "place").mkdir()

    answer = call("remote", "init", f"sftp://host{tmp_path}/place", "--dry-run")

    assert answer.code == 0
    assert "would create" in answer.out
    assert os.listdir(tmp_path / "place") == []


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/srv/snapshots", 2),
        ("unknown:", 2),
        ("s3://key:hunter2@bucket", 2),
        ("sftp://-oProxyCommand=id/srv", 2),
    ],
)
def test_what_is_no_place_is_a_usage_error(place: str, expected: int) -> None:
    """Nothing is connected to, and no secret is shown."""
    answer = call("remote", "init", place)

    assert answer.code == expected
    assert "hunter2" not in answer.out + answer.err
