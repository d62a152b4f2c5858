"""The pictures of the README: well formed, loading nothing from elsewhere, and shown."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_whole_and_shown(path: Path) -> None:
    """Drawn by `make pictures` from a real command, and named by the README."""
    text = path.read_text(encoding="utf-8")

    ET.fromstring(text)  # noqa: S314 - our own file
    assert "@font-face" not in text
    assert "sagewai-ops" in text
    assert f"(docs/pictures/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_pictures() -> None:
    """A backup at work and done, a preflight, an export."""
    assert {path.stem for path in PICTURES} == {
        "backup-progress", "backup", "preflight", "export",
    }  # fmt: skip
