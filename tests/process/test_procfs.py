"""The environment of child processes."""

import pytest

from sagewai_ops.process.procfs import minimal_environment


def test_child_processes_get_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables with keys and passwords are removed, those with paths are not."""
    for name in ("SAGEWAI_MASTER_KEY", "PGPASSWORD", "DATABASE_URL", "SAGEWAI_OPS_PING_URL"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("LC_ALL", "C")

    environment = minimal_environment()

    assert "planted" not in environment.values()
    assert environment["PATH"] == "/bin"
    assert environment["LC_ALL"] == "C"
