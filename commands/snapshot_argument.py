"""The argument that names a snapshot, and the archive that it names."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Run

SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT|latest", help="An id, the beginning of an id, or a path.")
]


def find_archive(
    run: Run,
    snapshot: str,
    snapshots: Path | None,
    identity: list[Path] | None,
    passphrase_file: str | None,
    *,
    allow_work_factor: bool,
) -> tuple[Path, Any]:
    """Return the path of an archive, and the keys that decrypt it."""
    from sagewai_ops.cli.credentials import unlock_of
    from sagewai_ops.snapshots import catalog
    from sagewai_ops.snapshots.ownership import home_ids

    home = run.home()
    path = catalog.find_snapshot(run.snapshots(home, snapshots), snapshot, home_ids(home))
    decryption = unlock_of(
        run.terminal, identity or [], passphrase_file, allow_work_factor=allow_work_factor
    )
    return path, decryption


def origin_keys(run: Run, extra_key: Path | None = None) -> tuple[Any, ...]:
    """Return the keys that authenticate snapshots of the home."""
    from sagewai_ops.keys.authentication import authentication_keys
    from sagewai_ops.keys.candidates import all_candidates

    found = all_candidates(run.home(), run.settings.environment, key_file=extra_key)
    return authentication_keys(found)
