"""The JSON Schemas of docs/json/, and a validator for the words that they use.

It knows few words of JSON Schema and refuses the others, so that a schema never says more than is
checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent.parent / "docs" / "json"
_KNOWN = {
    *("$schema", "title", "type", "enum", "anyOf", "items", "minimum"),
    *("required", "properties", "additionalProperties"),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
    "boolean": (bool,),
}


def problems(name: str, value: object) -> list[str]:
    """List where a value breaks the schema `docs/json/<name>.json`."""
    schema = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    return list(_problems(schema, value, "$"))


def _problems(schema: dict[str, Any], value: object, place: str) -> Iterator[str]:
    unknown = schema.keys() - _KNOWN
    assert not unknown, f"{place}: the schema uses {unknown}"
    if "anyOf" in schema:
        tried = [list(_problems(one, value, place)) for one in schema["anyOf"]]
        if all(tried):
            yield from min(tried, key=len)
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{place}: {value!r} is no {' or '.join(kinds)}"
        return
    if isinstance(value, (int, float)) and value < schema.get("minimum", value):
        yield f"{place}: {value} is below {schema['minimum']}"
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _problems(schema.get("items", {}), item, f"{place}[{number}]")
    if isinstance(value, dict):
        yield from _object(schema, value, place)


def _object(schema: dict[str, Any], value: dict[str, Any], place: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            yield f"{place}.{name}: is missing"
    others = schema.get("additionalProperties", {})
    for name, inner in value.items():
        if name in properties:
            yield from _problems(properties[name], inner, f"{place}.{name}")
        elif others is False:
            yield f"{place}.{name}: is not in the schema"
        else:
            yield from _problems(others, inner, f"{place}.{name}")


def _is(value: object, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (isinstance(value, bool) == (kind == "boolean"))
