"""Changes of owners, modes and access lists, and the record that undoes them."""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sagewai_ops.errors import NotFoundError, OpsError, PermissionDeniedError, UsageError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.fs.trust import require_trusted_directory
from sagewai_ops.home.paths import OWN_PREFIX, Home
from sagewai_ops.permissions.entry_kinds import EntryState
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

RECORD_SCHEMA = "sagewai-ops-permissions/1"
_RECORD_PREFIX = f"{OWN_PREFIX}permissions-"
_MOMENT = "%Y%m%dT%H%M%S%fZ"
_RECORD_BYTES = 1 << 28  # ten times the size of 100,000 changes


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the state of an entry.

    Attributes:
        root: `home` or `snapshots`.
        path: Relative to that; "" is the root itself.
        rules: Ids of the rules that require it.
        inode: Of the entry.
    """

    root: str
    path: str
    rules: tuple[str, ...]
    before: EntryState
    after: EntryState
    inode: int


def describe_change(before: EntryState, after: EntryState) -> str:
    """Return the difference between two states in a phrase."""
    words = []
    if before.mode != after.mode:
        words.append(f"mode {before.mode:04o} -> {after.mode:04o}")
    if (before.uid, before.gid) != (after.uid, after.gid):
        words.append(f"owner {before.uid}:{before.gid} -> {after.uid}:{after.gid}")
    for name, old, new in (
        ("access list", before.access_list, after.access_list),
        ("default access list", before.default_list, after.default_list),
    ):
        if old != new:
            words.append(f"{name} {'restored' if new else 'removed'}")
    return ", ".join(words)


def state_as_dict(state: EntryState) -> dict[str, Any]:
    """Return the JSON of a state."""
    return {
        "mode": f"{state.mode:04o}",
        "uid": state.uid,
        "gid": state.gid,
        "access_list": state.access_list and state.access_list.hex(),
        "default_list": state.default_list and state.default_list.hex(),
    }


def write_record(
    directory: Path, roots: Mapping[str, Path], moment: datetime, changes: Sequence[Change]
) -> Path:
    """Write the record that undoes changes.

    Args:
        directory: Of the record.
        roots: The paths of `home` and `snapshots`.
        moment: UTC.

    Raises:
        PermissionDeniedError, NoSpaceError: The system refused.
    """
    content = {
        "schema": RECORD_SCHEMA,
        "created_at": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        "roots": {name: os.fspath(path) for name, path in roots.items()},
        "changes": [
            {
                "root": change.root,
                "path": change.path,
                "rules": list(change.rules),
                "before": state_as_dict(change.before),
                "after": state_as_dict(change.after),
                "inode": change.inode,
            }
            for change in changes
        ],
    }
    sweep_leftovers(directory, atomic.partial_names(rf"{re.escape(_RECORD_PREFIX)}.*"))
    record = directory / f"{_RECORD_PREFIX}{moment:{_MOMENT}}.json"
    atomic.replace(record, json.dumps(content, indent=1).encode("ascii"))
    return record


def read_record(home: Home, record: Path) -> tuple[dict[str, Path], list[Change]]:
    """Read a record of this home: the paths of its roots, and its changes.

    Raises:
        NotFoundError: The record does not exist.
        UsageError: The file is not a record, or that of another home.
        PermissionDeniedError: Others can write the record.
    """
    try:
        # A user who can write the record decides which modes root sets.
        require_trusted_directory(record.parent)
        descriptor = beneath.open_file(record)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"undo record {record}: not found",
            hint=f"ls -a {shell_word(home.root)}  # {_RECORD_PREFIX}*.json",
        ) from error
    except OSError as error:
        raise from_os_error(error, record) from error
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & beneath.OTHERS_WRITE:
            raise PermissionDeniedError(
                f"undo record {record}: writable by others, "
                f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
            )
        content = stream.read(_RECORD_BYTES)
    try:
        parsed = json.loads(content)
        is_ours = parsed["schema"] == RECORD_SCHEMA
        roots = {str(name): Path(path) for name, path in parsed["roots"].items()}
        changes = [_change(entry) for entry in parsed["changes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"undo record {record}: not a record of this program") from error
    if not is_ours:
        raise UsageError(f"undo record {record}: unknown version {parsed['schema']}")
    if roots.get("home") != home.root:
        raise UsageError(
            f"undo record {record}: of the home {roots.get('home')}, not of {home.root}",
            hint=f"sagewai-ops --home {shell_word(str(roots.get('home')))}"
            f" verify-perms --undo {shell_word(record)}",
        )
    if any(change.root not in roots for change in changes):
        raise OpsError(f"undo record {record}: a change has an unknown root")
    return roots, changes


def _change(entry: Mapping[str, Any]) -> Change:
    path = str(entry["path"])
    if path and any(step in ("", ".", "..") for step in path.split("/")):
        raise ValueError(path)
    return Change(
        root=str(entry["root"]),
        path=path,
        rules=tuple(entry["rules"]),
        before=_state(entry["before"]),
        after=_state(entry["after"]),
        inode=int(entry["inode"]),
    )


def _state(entry: Mapping[str, Any]) -> EntryState:
    access_list, default_list = entry["access_list"], entry["default_list"]
    return EntryState(
        mode=int(entry["mode"], 8),
        uid=int(entry["uid"]),
        gid=int(entry["gid"]),
        access_list=bytes.fromhex(access_list) if access_list else None,
        default_list=bytes.fromhex(default_list) if default_list else None,
    )
