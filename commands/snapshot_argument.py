"""The argument that names a snapshot, and the archive that it names."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Run
from sagewai_ops.errors import UsageError

SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT|latest", help="An id, the beginning of an id, or a path.")
]


def is_piped(snapshot: str | None, **files: Any) -> bool:
    """Return whether the archive is on standard input.

    Args:
        files: The values of options that name files: none of them can be read from there too.

    Raises:
        UsageError: One is, or standard input is a terminal.
    """
    from sagewai_ops.snapshots.piped_archive import NAMES, require_input

    if snapshot not in NAMES:
        return False
    require_input()
    for parameter, value in files.items():
        values = value if isinstance(value, list) else [value]
        if any(str(item) in NAMES for item in values):
            flag = parameter.replace("_", "-")
            raise UsageError(
                f"--{flag}: standard input is the archive",
                hint=f"--{flag} FILE  # a file, or another descriptor: <(COMMAND)",
            )
    return True


def find_named(
    run: Run, snapshot: str, snapshots: Path | None, *, or_newest: bool = False
) -> tuple[Path, tuple[Any, ...]]:
    """Return the path of the snapshot that the user names, and the newer ones that it skips.

    Each skipped one is reported as a warning.

    Args:
        or_newest: As for `catalog.find_snapshot`, for a command that only shows what it finds.
    """
    from sagewai_ops.snapshots import catalog
    from sagewai_ops.snapshots.trust import confirm, ids_at_place, trust_of

    home = run.home()
    directory = run.snapshots(home, snapshots)
    trust = trust_of(home, directory, run.settings.environment)
    known = catalog.list_snapshots(directory) if len(trust.home_ids) == 1 else []
    ids = ids_at_place(home, known, trust)
    if snapshot == "latest":
        catalog.require_single_home(directory, known, ids - trust.home_ids)
    skipped: list[Any] = []
    path = catalog.find_snapshot(
        directory,
        snapshot,
        ids,
        lambda found: confirm(directory, found, trust),
        report_skipped=skipped.extend,
        or_newest=or_newest,
    )
    newer = [item for item in skipped if item.path != path]
    for item in skipped[: len(skipped) - len(newer)]:
        run.warn(f"snapshot {item.id}: {', '.join(item.faults)}, and no other is good")
    for line in catalog.describe_skipped(newer):
        run.warn(line)
    return path, tuple(newer)


def origin_keys(run: Run, extra_key: Path | None = None) -> tuple[Any, ...]:
    """Return the keys that authenticate snapshots of the home."""
    from sagewai_ops.snapshots.trust import keys_of

    return keys_of(run.home(), run.settings.environment, key_file=extra_key)
