"""Add API tokens of organisations and projects."""

from alembic import op

from sagewai_ops.migrations.columns import (
    INSTANT,
    TEXT,
    index,
    key,
    optional,
    required,
    stamp,
)

revision = "017_api_tokens"
down_revision = "016_rate_limits"


def upgrade() -> None:
    op.create_table(
        "api_token",
        required("id", TEXT),
        required("org_id", TEXT),
        optional("project_id", TEXT),
        required("subject_user_id", TEXT),
        required("token_hash", TEXT),
        required("scopes", TEXT),
        optional("name", TEXT),
        optional("expires_at", INSTANT),
        optional("last_used_at", INSTANT),
        stamp("created_at", null=True),
        optional("revoked_at", INSTANT),
        key("id"),
    )
    index("ix_api_token_org_project", "api_token", "org_id", "project_id")
    index("ux_api_token_hash", "api_token", "token_hash", unique=True)
    index(
        "ux_api_token_org_name",
        "api_token",
        "org_id",
        "name",
        unique=True,
        where="project_id IS NULL AND name IS NOT NULL",
    )
    index(
        "ux_api_token_org_proj_name",
        "api_token",
        "org_id",
        "project_id",
        "name",
        unique=True,
        where="project_id IS NOT NULL AND name IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_table("api_token")
