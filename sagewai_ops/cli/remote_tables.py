"""The tables `[remote.NAME]` of the configuration file: where a place is, and its retention."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagewai_ops.errors import UsageError
from sagewai_ops.remote.address import check_remote_name, parse_address
from sagewai_ops.text import printable

_COMMANDS = ("init", "check")  # of the group `remote`, whose options have tables too
_CREDENTIALS = "credentials-file"
_KEEP: Mapping[str, type] = {
    **dict.fromkeys(
        (f"keep-{rule}" for rule in ("last", "hourly", "daily", "weekly", "monthly", "yearly")), int
    ),
    "keep-within": str,
    "keep-tag": list,
}


def take_remotes(path: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Remove the tables of remote places from a configuration, and check them.

    Args:
        path: Of the file; paths in it are relative to its directory.
        values: The file's; they are changed.

    Returns:
        The tables, by name.

    Raises:
        UsageError: A table is invalid.
    """
    tables = values.get("remote")
    if not isinstance(tables, dict):
        return {}
    names = [name for name, table in tables.items() if isinstance(table, dict)]
    found = {name: tables.pop(name) for name in names if name not in _COMMANDS}
    if not tables:
        del values["remote"]
    for name, table in found.items():
        where = f"{path}: [remote.{printable(name)}]"
        if not check_remote_name(name):
            raise UsageError(
                f"{where}: not a name of letters, digits, - and _, with at least two of them",
                hint='[remote.offsite]\nurl = "s3://BUCKET/PREFIX"',
            )
        for key in (key for key in table if key.startswith("keep-") and key not in _KEEP):
            raise UsageError(f"{where} {key}: unknown", hint=f"known here: {', '.join(_KEEP)}")
        for key, kind in _KEEP.items():
            if key in table and type(table[key]) is not kind:
                raise UsageError(f"{where} {key}: not of the type of --{key}, {table[key]!r:.80}")
        try:
            parse_address(f"{name}:", {name: without_rules(table)})
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}", hint=error.hint) from error
        if _CREDENTIALS in table:
            named = os.path.expanduser(table[_CREDENTIALS])
            table[_CREDENTIALS] = os.path.join(path.parent, named)
    return found


def without_rules(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without the rules of retention."""
    return {key: value for key, value in table.items() if not key.startswith("keep-")}


def rules_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rules of retention of a table, such as `keep_last`."""
    return {key.replace("-", "_"): table[key] for key in _KEEP if key in table}
