"""Add agent definitions, per project or global."""

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

revision = "012_tenant_agent"
down_revision = "011_tenant_provider"


def upgrade() -> None:
    op.create_table(
        "agent",
        required("id", TEXT),
        optional("project_id", TEXT),
        required("name", TEXT),
        required("spec", JSON),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("id"),
    )
    index("ix_agent_project_id", "agent", "project_id")
    index("ux_agent_global_name", "agent", "name", unique=True, where="project_id IS NULL")
    index(
        "ux_agent_proj_name",
        "agent",
        "project_id",
        "name",
        unique=True,
        where="project_id IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_table("agent")
