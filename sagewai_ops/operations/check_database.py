"""Check a home's database for `db check`: damage, schema, references, and values.

The exporter decides which values PostgreSQL accepts, so that a check and an export agree.
"""

from __future__ import annotations

from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import WAIT_SECONDS
from sagewai_ops.export.validate.home_values import check_values
from sagewai_ops.progress import Progress
from sagewai_ops.schema import check_sqlite


def check_database(
    path: Path, *, wait_seconds: float = WAIT_SECONDS, progress: Progress | None = None
) -> check_sqlite.Checked:
    """Check a home's database and every value in it; see `check_sqlite.check_database`."""
    return check_sqlite.check_database(
        path, wait_seconds=wait_seconds, check_values=check_values, progress=progress
    )
