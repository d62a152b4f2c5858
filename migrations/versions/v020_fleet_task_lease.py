"""Add leases of fleet tasks: an expired one frees the task for another worker."""

from alembic import op

from sagewai_ops.migrations.columns import (
    INSTANT,
    INTEGER,
    index,
    optional,
    required,
)

revision = "020_fleet_task_lease"
down_revision = "019_fleet_tasks"


def upgrade() -> None:
    op.add_column("fleet_tasks", optional("lease_expires_at", INSTANT))
    op.add_column("fleet_tasks", required("attempts", INTEGER, "0"))
    index("ix_fleet_tasks_lease", "fleet_tasks", "status", "lease_expires_at")


def downgrade() -> None:
    op.drop_index("ix_fleet_tasks_lease", table_name="fleet_tasks")
    op.drop_column("fleet_tasks", "attempts")
    op.drop_column("fleet_tasks", "lease_expires_at")
