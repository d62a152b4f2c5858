"""Add model providers, per project or global."""

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

revision = "011_tenant_provider"
down_revision = "010_tenant_audit"


def upgrade() -> None:
    op.create_table(
        "provider",
        required("id", TEXT),
        optional("project_id", TEXT),
        required("provider_name", TEXT),
        required("is_default", BOOLEAN, "false"),
        required("data", JSON),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("id"),
    )
    index("ix_provider_project_id", "provider", "project_id")
    index(
        "ux_provider_global_name",
        "provider",
        "provider_name",
        unique=True,
        where="project_id IS NULL",
    )
    index(
        "ux_provider_proj_name",
        "provider",
        "project_id",
        "provider_name",
        unique=True,
        where="project_id IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_table("provider")
