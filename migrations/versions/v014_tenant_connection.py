"""Add connections, per project or global."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    JSON,
    TEXT,
    index,
    key,
    optional,
    required,
    stamp,
)

revision = "014_tenant_connection"
down_revision = "013_tenant_run_telemetry"


def upgrade() -> None:
    op.create_table(
        "connection",
        required("id", TEXT),
        optional("project_id", TEXT),
        required("protocol", TEXT),
        required("display_name", TEXT),
        required("tags", JSON),
        optional("credentials_backend", JSON),
        required("status", TEXT, "pending"),
        optional("last_tested_at", TEXT),
        optional("last_test_ok", BOOLEAN),
        required("is_default", BOOLEAN, "false"),
        optional("last_error", JSON),
        required("protocol_data", JSON),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("id"),
    )
    index("ix_connection_project_id", "connection", "project_id")
    index("ix_connection_protocol", "connection", "protocol")
    index(
        "ux_connection_global_name",
        "connection",
        "protocol",
        "display_name",
        unique=True,
        where="project_id IS NULL",
    )
    index(
        "ux_connection_proj_name",
        "connection",
        "project_id",
        "protocol",
        "display_name",
        unique=True,
        where="project_id IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_table("connection")
