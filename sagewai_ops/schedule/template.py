"""Templates of schedules: text files with placeholders, a subset of Mustache.

`{{name}}` is replaced by a value. The lines between `{{#name}}` and `{{/name}}`, each on a line of
its own, are repeated for each item of a list, with the item's values. Values are inserted as they
are: each caller escapes them for the language of its template.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from sagewai_ops.errors import UsageError
from sagewai_ops.text import has_control, printable

Value: TypeAlias = "str | int | Sequence[Mapping[str, Value]]"

_DIRECTORY = Path(__file__).parent
_TAG = re.compile(
    r"^\{\{#(\w+)\}\}\n(?P<lines>.*?)^\{\{/\1\}\}\n|\{\{(?P<name>\w+)\}\}", re.MULTILINE | re.DOTALL
)


def fill_template(name: str, values: Mapping[str, Value]) -> str:
    """Return the text of a template with its values."""
    return _fill((_DIRECTORY / f"{name}.template").read_text(encoding="utf-8"), values)


def refuse_control(text: str, place: str) -> None:
    """Refuse a text that could end a line of a schedule, or control the terminal that shows it.

    Raises:
        UsageError: It has such a character.
    """
    if has_control(text):
        raise UsageError(f"{printable(text)}: has a control character, not possible in {place}")


def flag(is_set: object) -> list[dict[str, Value]]:
    """Return a list for lines that appear once or not at all."""
    return [{}] if is_set else []


def _fill(text: str, values: Mapping[str, Value]) -> str:
    def replacement(tag: re.Match[str]) -> str:
        if tag["name"]:
            return str(values[tag["name"]])
        items = values[tag[1]]
        assert not isinstance(items, str | int)
        return "".join(_fill(tag["lines"], {**values, **item}) for item in items)

    return _TAG.sub(replacement, text)
