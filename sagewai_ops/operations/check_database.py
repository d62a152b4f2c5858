"""Check a home's database for `db check`: damage, schema, references, and values.

The exporter decides which values PostgreSQL accepts, so that a check and an export agree.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.connect import stored_bytes
from sagewai_ops.database.sqlite.read_transaction import WAIT_SECONDS
from sagewai_ops.operations.check_worker import start_worker
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    from sagewai_ops.schema import check_sqlite

# Of a database that two processes check: the start of one takes as long as a check of 10 MB.
_WORKER_BYTES = 32 * 1024 * 1024


def check_database(
    path: Path, *, wait_seconds: float = WAIT_SECONDS, progress: Progress | None = None
) -> check_sqlite.Checked:
    """Check a home's database and every value in it; see `check_sqlite.check_database`."""
    with start_worker() if stored_bytes(path) >= _WORKER_BYTES else nullcontext() as worker:
        # The worker starts in the time that these take.
        from sagewai_ops.export.validate.home_values import check_values
        from sagewai_ops.process.malloc import keep_large_blocks
        from sagewai_ops.schema import check_sqlite

        keep_large_blocks()  # for the joined texts
        return check_sqlite.check_database(
            path,
            wait_seconds=wait_seconds,
            check_values=check_values,
            worker=worker,
            progress=progress,
        )
