"""The JSON Schemas of docs/json/, and the differences of a value from one."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

DIRECTORY = Path(__file__).parent.parent / "docs" / "json"


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problems(name: str, value: object) -> list[str]:
    """Return where a value breaks the schema `docs/json/<name>.json`."""
    return [f"{error.json_path}: {error.message}" for error in _validator(name).iter_errors(value)]
