"""docs/json/ is generated from the types of the results, and has every field of version 0.1."""

import json
from pathlib import Path
from typing import Any

import pytest

import result_schemas
from json_schemas import DIRECTORY

FIELDS: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "json_fields_0.1.json").read_text()
)


def _paths(schema: dict[str, Any], root: dict[str, Any], place: str = "") -> set[str]:
    """Return the path of each field: `a.b`, `a[].b` in lists, `a{}.b` in maps."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    found = set()
    for choice in schema.get("anyOf", []):
        found |= _paths(choice, root, place)
    for name, inner in schema.get("properties", {}).items():
        path = f"{place}.{name}".lstrip(".")
        found |= {path} | _paths(inner, root, path)
    if isinstance(schema.get("additionalProperties"), dict):
        found |= _paths(schema["additionalProperties"], root, f"{place}{{}}")
    if "items" in schema:
        found |= _paths(schema["items"], root, f"{place}[]")
    return found


def test_the_schemas_are_current() -> None:
    """Run `make json` after a change of a result."""
    for name, text in result_schemas.schemas().items():
        assert (DIRECTORY / f"{name}.json").read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_older_versions_remain(name: str) -> None:
    """Scripts that read the JSON of 0.1 continue to work."""
    schema = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))

    assert set(FIELDS[name]) - _paths(schema, schema) == set()


def test_every_result_is_a_dataclass() -> None:
    """No schema of a command is written by hand."""
    assert [
        name for name, command in result_schemas.commands() if not command.callback.result
    ] == []
