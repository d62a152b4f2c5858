"""Filling in the templates of schedules."""

from pathlib import Path

import pytest

from sagewai_ops.schedule import template
from sagewai_ops.schedule.template import fill_template, flag


@pytest.fixture(autouse=True)
def _own_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_DIRECTORY", tmp_path)


def _write(text: str) -> None:
    (template._DIRECTORY / "t.template").write_text(text, encoding="utf-8")


def test_placeholder_becomes_its_value() -> None:
    """Text and numbers, wherever they are in a line."""
    _write("a={{word}}, {{number}}\n")

    assert fill_template("t", {"word": "x", "number": 3}) == "a=x, 3\n"


def test_section_is_repeated_for_each_item() -> None:
    """An empty list leaves the lines out; values from outside are visible in the section."""
    _write("{{#items}}\n- {{name}} of {{all}}\n{{/items}}\nend\n")

    assert fill_template("t", {"all": "A", "items": [{"name": "a"}, {"name": "b"}]}) == (
        "- a of A\n- b of A\nend\n"
    )
    assert fill_template("t", {"all": "A", "items": flag(None)}) == "end\n"


def test_value_that_looks_like_a_placeholder_is_text() -> None:
    """A directory may be called so."""
    _write("{{#items}}\n{{path}}\n{{/items}}\n{{path}}\n")

    text = fill_template("t", {"path": "{{path}}", "items": [{}]})

    assert text == "{{path}}\n{{path}}\n"


def test_placeholder_without_a_value_is_an_error() -> None:
    """No schedule is printed with a gap in it."""
    _write("{{missing}}\n")

    with pytest.raises(KeyError):
        fill_template("t", {})
