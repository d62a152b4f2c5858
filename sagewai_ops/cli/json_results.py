"""Results as JSON values; their JSON Schemas are made by `make json`, from the same dataclasses.

A result is a dataclass whose fields have the names and order of the JSON object (docs/json.md);
paths become strings, UTC times end in Z. A dataclass has its field `warnings` in the envelope only.
"""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Any

IN_ENVELOPE = "warnings"


def to_json(result: object) -> Any:
    """Return a result as JSON values: objects, lists, strings, numbers, booleans and None."""
    found = _encode(result)
    if isinstance(found, dict) and has_envelope_warnings(type(result)):
        found.pop(IN_ENVELOPE, None)
    return found


def has_envelope_warnings(kind: type) -> bool:
    """Return whether the warnings of a dataclass are in the envelope, and not in the result."""
    return dataclasses.is_dataclass(kind) and any(
        field.name == IN_ENVELOPE and not field.metadata.get("in_result")
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
