"""The cache of the cards of a repository: only where no other user can lead root elsewhere."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from sagewai_ops.engines.engine import StoredObject
from sagewai_ops.engines.repository import Connection, _Cache
from unprivileged import NO_USER

_CARD = StoredObject("a" * 64, "card.json", 4, datetime.now(timezone.utc))
_OTHER = "b" * 64


def _cache(home: Path) -> _Cache:
    return _Cache(Connection("restic", "restic:/r", "/r", {"HOME": str(home)}))


def test_card_is_kept_and_removed_with_its_object(tmp_path: Path) -> None:
    """A read finds it until the repository has it no more."""
    cache = _cache(tmp_path)

    cache.write(_CARD, b"card")

    assert cache.read(_CARD) == b"card"
    cache.keep([])
    assert cache.read(_CARD) is None


@pytest.mark.parametrize("is_link", [True, False])
def test_another_users_cache_is_neither_read_nor_changed_by_root(
    tmp_path: Path, *, is_link: bool
) -> None:
    """The link of a user leads nowhere, and nothing is written to a directory of the user."""
    cache = _cache(tmp_path / "root")
    cache.write(_CARD, b"card")
    (real,) = (tmp_path / "root/.cache/sagewai-ops").iterdir()
    (real / _OTHER).write_text("of another repository")
    home = tmp_path / "user"
    if is_link:
        (home / ".cache/sagewai-ops").mkdir(parents=True)
        (home / ".cache/sagewai-ops" / real.name).symlink_to(real)
    else:
        (home / ".cache").mkdir(parents=True)
    _change_owner(home)
    ours = _cache(home)

    ours.keep([])
    ours.write(_CARD, b"new!")

    assert (real / _OTHER).exists()
    assert len([*real.iterdir()]) == 2
    assert ours.read(_CARD) is None
    assert is_link or not (home / ".cache/sagewai-ops").exists()


def test_directory_that_others_can_write_is_no_cache(tmp_path: Path) -> None:
    """What others could have put there is not read."""
    cache = _cache(tmp_path)
    cache.write(_CARD, b"card")

    (tmp_path / ".cache/sagewai-ops").chmod(0o777)

    assert cache.read(_CARD) is None


def _change_owner(home: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    for path in (home, *home.rglob("*")):
        os.chown(path, NO_USER, NO_USER, follow_symlinks=False)
