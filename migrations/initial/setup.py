"""What the first set-up writes: projects, its state, providers. PostgreSQL only."""

import sqlalchemy as sa
from alembic import op

from sagewai_ops.migrations.columns import (
    INSTANT,
    INTEGER,
    JSONB,
    TEXT,
    index,
    key,
    optional,
    required,
    stamp,
    varchar,
)

TABLES = (
    "projects",
    "setup_state",
    "llm_provider_configs",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "projects",
        required("slug", TEXT),
        required("name", TEXT),
        required("environment", TEXT, "development"),
        required("allowed_origins", TEXT, ""),
        required("status", TEXT, "active"),
        optional("default_model", TEXT),
        required("config", JSONB, "{}"),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("slug"),
    )
    op.create_table(
        "setup_state",
        required("id", INTEGER, "1"),
        required("project_id", TEXT, "default"),
        required("org_name", TEXT),
        required("org_slug", TEXT),
        required("admin_email", TEXT),
        required("app_url", TEXT, ""),
        required("contact_email", TEXT, ""),
        required("timezone", varchar(100), "UTC"),
        required("industry", TEXT, ""),
        required("team_size", TEXT, ""),
        required("admin_password_hash", TEXT, ""),
        required("admin_display_name", TEXT, ""),
        optional("session_invalidated_at", INSTANT),
        stamp("completed_at", null=True),
        key("id"),
        sa.CheckConstraint("id = 1", name="setup_state_single_row"),
    )
    op.create_table(
        "llm_provider_configs",
        required("id", TEXT),
        required("project_id", TEXT, "default"),
        required("provider_name", TEXT),
        required("provider_type", TEXT, "hosted"),
        required("display_name", TEXT, ""),
        required("config", JSONB, "{}"),
        required("status", TEXT, "not_configured"),
        stamp("created_at", null=True),
        key("id"),
    )
    index("ix_llm_provider_configs_project_id", "llm_provider_configs", "project_id")
