"""Results as JSON values, and their JSON Schemas: both from the dataclasses.

A result is a dataclass whose fields have the names and order of the JSON object (docs/json.md);
paths become strings, UTC times end in Z. A dataclass has its field `warnings` in the envelope only.
The schemas are made by msgspec, whose import takes longer than the start of a command.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Any, get_type_hints, is_typeddict

_IN_ENVELOPE = "warnings"
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def to_json(result: object) -> Any:
    """Return a result as JSON values: objects, lists, strings, numbers, booleans and None."""
    found = _encode(result)
    if isinstance(found, dict) and _has_envelope_warnings(type(result)):
        found.pop(_IN_ENVELOPE, None)
    return found


def schema_of(kinds: Sequence[type], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a command's results.

    Args:
        kinds: The dataclasses, one for each shape of the result.
    """
    import msgspec

    found, definitions = msgspec.json.schema_components(kinds, schema_hook=_schema)
    definitions = _contract({"$defs": definitions})["$defs"]
    for kind in filter(_has_envelope_warnings, kinds):
        definition = definitions[kind.__name__]
        del definition["properties"][_IN_ENVELOPE]
        definition["required"].remove(_IN_ENVELOPE)
    for kind in kinds:
        for hint in get_type_hints(kind).values():
            if is_typeddict(hint):  # its keys can be missing, those of dataclasses cannot
                definitions[hint.__name__]["required"] = sorted(hint.__required_keys__)
    schema = found[0] if len(found) == 1 else {"anyOf": list(found)}
    return {"$schema": DRAFT, "title": title, **schema, "$defs": definitions}


def _has_envelope_warnings(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and any(
        field.name == _IN_ENVELOPE and not field.metadata.get("in_result")
        for field in dataclasses.fields(kind)
    )


def _encode(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Enum):
        return _encode(value.value)
    if isinstance(value, str):  # a subclass, such as SQLAlchemy's names
        return str.__str__(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _encode(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {_encode(key): _encode(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_encode(inner) for inner in value]
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
