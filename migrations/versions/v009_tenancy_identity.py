"""Add organisations, users, projects, memberships, invitations and sessions."""

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
    reference,
    required,
    stamp,
    unique,
)

revision = "009_tenancy_identity"
down_revision = "008_directives"

# A role belongs to an organisation or to one of its projects, never to both.
_IN_ORGANISATION = in_list("role", "org:owner", "org:admin", "org:member")
_IN_PROJECT = in_list("role", "project:admin", "project:member", "project:viewer")
ROLE_SCOPE = (
    f"(project_id IS NULL AND {_IN_ORGANISATION}) OR (project_id IS NOT NULL AND {_IN_PROJECT})"
)


def upgrade() -> None:
    op.create_table(
        "org",
        required("id", TEXT),
        required("name", TEXT),
        required("slug", TEXT),
        optional("contact_email", TEXT),
        required("timezone", TEXT, "UTC"),
        required("settings", JSONB, "{}"),
        optional("master_key_ref", TEXT),
        stamp("created_at"),
        key("id"),
        unique("slug"),
    )
    op.create_table(
        "user_account",
        required("id", TEXT),
        required("org_id", TEXT),
        required("email", TEXT),
        optional("name", TEXT),
        optional("password_hash", TEXT),
        optional("password_salt", TEXT),
        optional("oidc_sub", TEXT),
        optional("oidc_provider", TEXT),
        required("status", TEXT, "active"),
        stamp("created_at"),
        optional("last_login_at", INSTANT),
        key("id"),
        unique("org_id", "id", name="uq_user_account_org_id"),
        reference(["org_id"], "org", ["id"]),
    )
    index("ux_user_account_org_email", "user_account", "org_id", "email", unique=True)
    op.create_table(
        "project",
        required("id", TEXT),
        required("org_id", TEXT),
        required("slug", TEXT),
        required("name", TEXT),
        required("environment", TEXT, "production"),
        required("status", TEXT, "active"),
        required("settings", JSONB, "{}"),
        optional("data_key_ref", TEXT),
        stamp("created_at"),
        stamp("updated_at"),
        key("id"),
        unique("org_id", "id", name="uq_project_org_id"),
        reference(["org_id"], "org", ["id"]),
    )
    index("ux_project_org_slug", "project", "org_id", "slug", unique=True)
    op.create_table(
        "membership",
        required("id", TEXT),
        required("user_id", TEXT),
        required("org_id", TEXT),
        optional("project_id", TEXT),
        required("role", TEXT),
        stamp("created_at"),
        key("id"),
        reference(["org_id", "project_id"], "project", ["org_id", "id"], on_delete="CASCADE"),
        reference(["org_id", "user_id"], "user_account", ["org_id", "id"], on_delete="CASCADE"),
        sa.CheckConstraint(ROLE_SCOPE, name="ck_membership_role_scope"),
    )
    index(
        "ux_membership_org",
        "membership",
        "user_id",
        "org_id",
        unique=True,
        where="project_id IS NULL",
    )
    index(
        "ux_membership_proj",
        "membership",
        "user_id",
        "org_id",
        "project_id",
        unique=True,
        where="project_id IS NOT NULL",
    )
    op.create_table(
        "invitation",
        required("id", TEXT),
        required("org_id", TEXT),
        optional("project_id", TEXT),
        required("email", TEXT),
        required("role", TEXT),
        required("token_hash", TEXT),
        required("expires_at", INSTANT),
        required("invited_by", TEXT),
        optional("accepted_at", INSTANT),
        key("id"),
        reference(["org_id", "invited_by"], "user_account", ["org_id", "id"]),
        reference(["org_id", "project_id"], "project", ["org_id", "id"]),
        sa.CheckConstraint(ROLE_SCOPE, name="ck_invitation_role_scope"),
    )
    index("ux_invitation_token_hash", "invitation", "token_hash", unique=True)
    op.create_table(
        "user_session",
        required("id", TEXT),
        required("org_id", TEXT),
        required("user_id", TEXT),
        required("token_hash", TEXT),
        stamp("created_at"),
        required("expires_at", INSTANT),
        optional("last_used_at", INSTANT),
        key("id"),
        unique("token_hash"),
        reference(["org_id", "user_id"], "user_account", ["org_id", "id"], on_delete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("user_session")
    op.drop_table("invitation")
    op.drop_table("membership")
    op.drop_table("project")
    op.drop_table("user_account")
    op.drop_table("org")
