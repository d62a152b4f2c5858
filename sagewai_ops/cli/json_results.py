"""Results as JSON values, and their JSON Schemas: both from the dataclasses, by msgspec.

A result is a dataclass whose fields have the names and order of the JSON object (docs/json.md);
paths become strings, UTC times end in Z. Only `--json` and reports of runs load msgspec.
"""

import os
from pathlib import PurePath
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def to_json(result: object) -> Any:
    """Return a result as JSON values: objects, lists, strings, numbers, booleans and None."""
    import msgspec

    return msgspec.to_builtins(result, enc_hook=_encode)


def schema_of(result: Any, title: str) -> dict[str, Any]:
    """Return the JSON Schema of a type of results.

    Args:
        result: A dataclass, or a type that contains some.
    """
    import msgspec

    schema: dict[str, Any] = msgspec.json.schema(result, schema_hook=_schema)
    # Texts about the code are not part of a contract.
    return {"$schema": DRAFT, "title": title, **_without_texts(schema)}


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


def _without_texts(schema: Any) -> Any:
    """Return a schema without texts and defaults: every field is written, and numbers count."""
    if isinstance(schema, list):
        return [_without_texts(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: _without_texts(inner) for name, inner in value.items()}
        if key in ("properties", "$defs")
        else _without_texts(value)
        for key, value in schema.items()
        if key not in ("title", "description", "default")
    }
    if "properties" in found:
        found["required"] = list(found["properties"])
    if found.get("type") == "integer":
        found["minimum"] = 0
    return found
