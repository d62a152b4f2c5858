"""Add the queue of fleet tasks."""

import sqlalchemy as sa
from alembic import op

from sagewai_ops.migrations.columns import (
    INSTANT,
    JSONB,
    TEXT,
    in_list,
    index,
    key,
    optional,
    required,
    stamp,
)

revision = "019_fleet_tasks"
down_revision = "018_fleet_schema_correction"


def upgrade() -> None:
    op.create_table(
        "fleet_tasks",
        required("run_id", TEXT),
        required("org_id", TEXT),
        optional("project_id", TEXT),
        required("pool", TEXT, "default"),
        optional("model", TEXT),
        required("labels", JSONB, "{}"),
        required("payload", JSONB, "{}"),
        required("status", TEXT, "pending"),
        optional("worker_id", TEXT),
        optional("claimed_at", INSTANT),
        optional("output", TEXT),
        optional("error", TEXT),
        optional("reported_at", INSTANT),
        stamp("created_at"),
        key("run_id"),
        sa.CheckConstraint(
            in_list("status", "pending", "claimed", "completed", "failed"),
            name="ck_fleet_tasks_status",
        ),
    )
    index(
        "ix_fleet_tasks_claim",
        "fleet_tasks",
        "status",
        "org_id",
        "project_id",
        "pool",
        "created_at",
    )
    index("ix_fleet_tasks_scope", "fleet_tasks", "org_id", "project_id", "created_at")


def downgrade() -> None:
    op.drop_table("fleet_tasks")
