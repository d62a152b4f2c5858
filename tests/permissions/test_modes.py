"""The modes of a home: whatever a file had, secrets are their owner's alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.permissions.modes import directory_mode, file_mode

MODES = st.integers(0, 0o7777)


@given(MODES)
@pytest.mark.parametrize("path", ["db/sagewai.db", "db/notes", "secrets/master.key", "sagewai.db"])
def test_secret_is_private_whatever_it_was(path: str, mode: int) -> None:
    """Read and written by the owner, and by nobody else."""
    assert file_mode(path, mode) == 0o600


@given(MODES)
def test_other_file_keeps_its_permissions_as_far_as_the_rules_let_it(mode: int) -> None:
    """Others no longer write, and odd bits never come back."""
    assert file_mode("data/artifacts/report.md", mode) == mode & 0o755


@given(MODES)
def test_conversations_are_private(mode: int) -> None:
    """What people said to agents."""
    assert directory_mode("sessions", mode) & 0o077 == 0


@given(MODES)
@pytest.mark.parametrize("path", ["secrets", "secrets/sops", "secrets/sops/deep"])
def test_directory_of_secrets_is_private_at_every_depth(path: str, mode: int) -> None:
    """Nobody else may even look for names in it."""
    assert directory_mode(path, mode) == 0o700


@given(MODES)
@pytest.mark.parametrize("path", ["", "config", "db"])
def test_directory_of_the_home_is_usable_by_its_owner_and_written_by_nobody_else(
    path: str, mode: int
) -> None:
    """Others may read what they could; they cannot put a file of theirs in."""
    given_back = directory_mode(path, mode)

    assert given_back & 0o700 == 0o700
    assert given_back & 0o022 == 0
    assert given_back & 0o055 == mode & 0o055


@given(MODES)
@pytest.mark.parametrize("path", ["data/artifacts", "data/a/b", "own"])
def test_directory_of_data_stays_readable_for_others(path: str, mode: int) -> None:
    """What tasks wrote for others is theirs to read, and no longer to change."""
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
def test_every_place_of_secrets_is_known(path: str) -> None:
    """By its path in the home alone, its mode follows."""
    assert file_mode(path, 0o666) == 0o600
