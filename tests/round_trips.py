"""A home through a snapshot and a restore, and what it must equal."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagewai_ops.archive.age import Encryption
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.home.paths import DATABASE, Kind, kind_of, locate
from sagewai_ops.permissions.modes import directory_mode, file_mode
from sagewai_ops.restore.plan import RestoreOptions
from sagewai_ops.restore.restore import RestoreReport, restore
from small_homes import MARK, everything_of, rows_of

_OMITTED = (Kind.SIDECAR, Kind.LOCK, Kind.LEFTOVER, Kind.OWN)


def snapshot_of(
    root: Path,
    *,
    directory: Path | None = None,
    encryption: Encryption | None = None,
    custody: str = "exclude",
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Create a snapshot of a home and return its archive."""
    home = locate(root, environment or {})
    wanted = BackupOptions(
        encryption=encryption, custody=custody, key_environment=environment or {}
    )
    report = create_snapshot(home, directory or root.with_name(f"{root.name}.snapshots"), wanted)
    assert report.path is not None
    return report.path


def bring_back(
    archive: Path,
    target: Path,
    *,
    key_home: Path | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> RestoreReport:
    """Restore an archive to a directory.

    Args:
        key_home: Another home whose key may be used.
        environment: Where keys and overrides come from.
        options: Further fields of `RestoreOptions`.
    """
    variables = environment or {}
    wanted = RestoreOptions(
        key_home=locate(key_home, {}) if key_home else None,
        key_environment=variables,
        **options,
    )
    return restore(archive, locate(target, variables), wanted)


def expected_of(
    source: Path, restored: Path, *left_out: str
) -> dict[str, tuple[int, int, bytes | str]]:
    """Return what a restored home must contain: all of its source, with the modes of the rules.

    A link that names its own home leads to the restored one. Of the database only mode and time
    count here; `assert_same_rows` compares what is in it.

    Args:
        left_out: Paths that a snapshot omits.
    """
    found = {}
    for path, (mode, moment, content) in everything_of(source).items():
        if kind_of(path) in _OMITTED or path in left_out:
            continue
        if stat.S_ISREG(mode):
            mode = stat.S_IFREG | file_mode(path, stat.S_IMODE(mode))
        elif stat.S_ISDIR(mode):
            mode = stat.S_IFDIR | directory_mode(path, stat.S_IMODE(mode))
        elif isinstance(content, str) and content.startswith(f"{source}/"):
            content = f"{restored}{content[len(str(source)) :]}"
        found[path] = (mode, moment, b"" if path == DATABASE else content)
    return found


def found_in(restored: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Return the content of a restored home, to compare with `expected_of`."""
    found = everything_of(restored)
    if DATABASE in found:
        mode, moment, _content = found[DATABASE]
        found[DATABASE] = (mode, moment, b"")
    return found


def assert_same_home(source: Path, restored: Path, *left_out: str) -> None:
    """Check that a restored home equals its source: files, links, times, modes, rows."""
    found, expected = found_in(restored), expected_of(source, restored, *left_out)
    differing = {
        path: (found.get(path), expected.get(path))
        for path in sorted({*found, *expected})
        if found.get(path) != expected.get(path)
    }
    assert not differing, differing
    if (source / DATABASE).exists():
        assert_same_rows(source, restored)


def assert_same_rows(source: Path, restored: Path) -> None:
    """Check that two databases have the same rows, and that the restored one is sound."""
    with contextlib.closing(sqlite3.connect(f"file:{restored / DATABASE}?immutable=1", uri=True)):
        assert sorted(os.listdir(restored / "db")) == ["sagewai.db"]
    assert rows_of(restored / DATABASE) == rows_of(source / DATABASE)
    with contextlib.closing(sqlite3.connect(restored / DATABASE)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def leftovers_beside(target: Path) -> list[str]:
    """List leftovers of a restore in its target and next to it, apart from what it keeps."""
    siblings = [name for name in os.listdir(target.parent) if name.startswith(f".{target.name}.")]
    inside = [
        name
        for name in (os.listdir(target) if target.is_dir() else ())
        if name.startswith(".sagewai-ops-") and "before-restore" not in name and name != MARK
    ]
    return siblings + inside
