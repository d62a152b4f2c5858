"""Results as JSON values, and their JSON Schemas: both from the dataclasses, by msgspec.

A result is a dataclass whose fields have the names and order of the JSON object (docs/json.md);
paths become strings, UTC times end in Z. A dataclass has its field `warnings` in the envelope only.
Only `--json` and reports of runs load msgspec.
"""

import os
from pathlib import PurePath
from typing import Any

_IN_ENVELOPE = "warnings"
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def to_json(result: object) -> Any:
    """Return a result as JSON values: objects, lists, strings, numbers, booleans and None."""
    import msgspec

    found = msgspec.to_builtins(result, enc_hook=_encode)
    if isinstance(found, dict) and not isinstance(result, dict):
        found.pop(_IN_ENVELOPE, None)
    return found


def schema_of(result: Any, title: str) -> dict[str, Any]:
    """Return the JSON Schema of a type of results.

    Args:
        result: A dataclass, or a type that contains some.
    """
    import msgspec

    schema: dict[str, Any] = _contract(msgspec.json.schema(result, schema_hook=_schema))
    kinds = [kind["$ref"] for kind in schema.get("anyOf", [schema]) if "$ref" in kind]
    for kind in kinds:
        definition = schema["$defs"][kind.rpartition("/")[2]]
        if _IN_ENVELOPE in definition["properties"]:
            del definition["properties"][_IN_ENVELOPE]
            definition["required"].remove(_IN_ENVELOPE)
    return {"$schema": DRAFT, "title": title, **schema}


def _encode(value: object) -> object:
    if isinstance(value, PurePath):
        return os.fspath(value)
    if isinstance(value, str):  # a subclass, such as SQLAlchemy's names
        return str.__str__(value)
    raise NotImplementedError(type(value).__name__)


def _schema(kind: type) -> dict[str, Any]:
    if issubclass(kind, PurePath):
        return {"type": "string"}
    raise NotImplementedError(kind.__name__)


def _contract(schema: Any) -> Any:
    """Return a schema without the texts of the code: every field is written, integers count."""
    if isinstance(schema, list):
        return [_contract(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: _contract(inner) for name, inner in value.items()}
        if key in ("properties", "$defs")
        else _contract(value)
        for key, value in schema.items()
        if key not in ("title", "description", "default")
    }
    if "properties" in found:
        found["required"] = list(found["properties"])
    if found.get("type") == "integer":
        found["minimum"] = 0
    return found
