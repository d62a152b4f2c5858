"""Add request counters per time window, shared by all processes."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BIGINT,
    INTEGER,
    TEXT,
    index,
    key,
    required,
)

revision = "016_rate_limits"
down_revision = "015_admin_resources"


def upgrade() -> None:
    op.create_table(
        "rate_limits",
        required("bucket_key", TEXT),
        required("window_start", BIGINT),
        required("count", INTEGER, "0"),
        key("bucket_key", "window_start"),
    )
    index("ix_rate_limits_window_start", "rate_limits", "window_start")


def downgrade() -> None:
    op.drop_table("rate_limits")
