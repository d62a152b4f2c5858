"""The argument that names a snapshot, and the archive that it names."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Run
from sagewai_ops.home.paths import Home

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

    path = find_path(run, snapshot, snapshots)
    decryption = unlock_of(
        run.terminal, identity or [], passphrase_file, allow_work_factor=allow_work_factor
    )
    return path, decryption


def find_path(run: Run, snapshot: str, snapshots: Path | None) -> Path:
    """Return the path of the snapshot that the user names."""
    from sagewai_ops.snapshots import catalog
    from sagewai_ops.snapshots.ownership import home_ids

    home = run.home()
    directory = run.snapshots(home, snapshots)
    return catalog.find_snapshot(
        directory, snapshot, home_ids(home), confirm_of(run, home, directory)
    )


def confirm_of(run: Run, home: Home, directory: Path) -> Any:
    """Return the function that confirms the snapshots of a directory."""
    from sagewai_ops.snapshots.trust import confirm, trust_of

    def confirm_all(found: Any) -> Any:
        return confirm(directory, found, trust_of(home, directory, run.settings.environment))

    return confirm_all


def origin_keys(run: Run, extra_key: Path | None = None) -> tuple[Any, ...]:
    """Return the keys that authenticate snapshots of the home."""
    from sagewai_ops.snapshots.trust import keys_of

    return keys_of(run.home(), run.settings.environment, key_file=extra_key)
