"""Add resources of administrators, by kind, in one table."""

from alembic import op

from sagewai_ops.migrations.columns import (
    JSON,
    TEXT,
    index,
    key,
    optional,
    required,
    stamp,
)

revision = "015_admin_resources"
down_revision = "014_tenant_connection"


def upgrade() -> None:
    op.create_table(
        "admin_resources",
        required("kind", TEXT),
        required("resource_id", TEXT),
        optional("project_id", TEXT),
        optional("name", TEXT),
        required("data", JSON),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("kind", "resource_id"),
    )
    index("ix_admin_resources_kind", "admin_resources", "kind")
    index("ix_admin_resources_project_id", "admin_resources", "project_id")
    index(
        "ux_admin_resources_kind_proj_name",
        "admin_resources",
        "kind",
        "project_id",
        "name",
        unique=True,
        where="name IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_table("admin_resources")
