"""The modes of a home: secrets are accessible to their owner alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.permissions.modes import directory_mode, file_mode

MODES = st.integers(0, 0o7777)


@given(MODES)
@pytest.mark.parametrize("path", ["db/sagewai.db", "db/notes", "secrets/master.key", "sagewai.db"])
def test_secret_is_private_whatever_it_was(path: str, mode: int) -> None:
    """Readable and writable by the owner alone."""
    assert file_mode(path, mode) == 0o600


@given(MODES)
def test_other_file_keeps_the_permissions_that_the_rules_allow(mode: int) -> None:
    """It is not writable by others and has no special bits."""
    assert file_mode("data/artifacts/report.md", mode) == mode & 0o755


@given(MODES)
def test_conversations_are_private(mode: int) -> None:
    """They contain the messages of people."""
    assert directory_mode("sessions", mode) & 0o077 == 0


@given(MODES)
@pytest.mark.parametrize("path", ["secrets", "secrets/sops", "secrets/sops/deep"])
def test_directory_of_secrets_is_private_at_every_depth(path: str, mode: int) -> None:
    """Other users cannot even list it."""
    assert directory_mode(path, mode) == 0o700


@given(MODES)
@pytest.mark.parametrize("path", ["", "config", "db"])
def test_directory_of_the_home_is_usable_and_writable_by_its_owner_alone(
    path: str, mode: int
) -> None:
    """Others can read it as before; they cannot create files in it."""
    restored = directory_mode(path, mode)

    assert restored & 0o700 == 0o700
    assert restored & 0o022 == 0
    assert restored & 0o055 == mode & 0o055


@given(MODES)
@pytest.mark.parametrize("path", ["data/artifacts", "data/a/b", "own"])
def test_directory_of_data_stays_readable_for_others(path: str, mode: int) -> None:
    """The output of tasks stays readable for others, but not writable."""
    assert directory_mode(path, mode) == mode & 0o755


@pytest.mark.parametrize(
    "path",
    [
        "db/sagewai.db",
        "db/sagewai.db-wal",
        "secrets/master.key",
        "secrets/profiles.json",
        "secrets/sops/prod.yaml",
        "config/admin-state.json",
        "config/admin-state.json.bak-v0-20240101T000000_000000-abcdef",
        "config/connections.json",
        "fleet/worker-1.json",
        "master.key",
        "admin-state.json",
        "profiles.json",
        "config.old/connections.json",
        "config/before/admin-state.json",
        "kept/master.key",
        "db/copies/sagewai.db",
        "sagewai.db",
    ],
)
def test_every_path_of_secrets_is_known(path: str) -> None:
    """The mode follows from the path in the home alone."""
    assert file_mode(path, 0o666) == 0o600
