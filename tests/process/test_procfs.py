"""Other processes: what those that we start are given of our environment."""

import pytest

from sagewai_ops.process.procfs import bare_environment


def test_what_we_start_is_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a password and a token stay with us; where programs and libraries are does not."""
    for name in ("SAGEWAI_MASTER_KEY", "PGPASSWORD", "DATABASE_URL", "SAGEWAI_OPS_PING_URL"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("LC_ALL", "C")

    given = bare_environment()

    assert "planted" not in given.values()
    assert given["PATH"] == "/bin"
    assert given["LC_ALL"] == "C"
