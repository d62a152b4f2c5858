"""The pictures: well formed, loading nothing from elsewhere, and shown on a page."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_whole_and_shown(path: Path) -> None:
    """Drawn by `make pictures` from a real command, and shown by the README or a page."""
    text = path.read_text(encoding="utf-8")

    ET.fromstring(text)  # noqa: S314 - our own file
    assert "@font-face" not in text
    assert "sagewai-ops" in text
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"pictures/{path.name})" in page.read_text(encoding="utf-8") for page in pages)


def test_there_are_pictures() -> None:
    """A backup in progress and done, a preflight, an export."""
    assert {path.stem for path in PICTURES} == {
        "backup-progress", "backup", "preflight", "export",
    }  # fmt: skip
