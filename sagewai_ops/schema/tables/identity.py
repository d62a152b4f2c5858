"""Organisations, the people in them, their projects, roles, sessions and API tokens."""

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, Table, UniqueConstraint

from sagewai_ops.schema.tables.columns import (
    INSTANT,
    JSON_BINARY,
    TEXT,
    key,
    metadata,
    one_of,
    optional,
    partial,
    required,
    stamp,
)

# A role belongs to an organisation or to one of its projects, never to both.
_IN_ORGANISATION = one_of("role", "org:owner", "org:admin", "org:member")
_IN_PROJECT = one_of("role", "project:admin", "project:member", "project:viewer")
ROLE_SCOPE = (
    f"(project_id IS NULL AND {_IN_ORGANISATION}) OR (project_id IS NOT NULL AND {_IN_PROJECT})"
)

org = Table(
    "org",
    metadata,
    key("id", TEXT),
    required("name", TEXT),
    required("slug", TEXT),
    optional("contact_email", TEXT),
    required("timezone", TEXT),
    required("settings", JSON_BINARY),
    optional("master_key_ref", TEXT),
    stamp("created_at"),
    UniqueConstraint("slug"),
)

user_account = Table(
    "user_account",
    metadata,
    key("id", TEXT),
    required("org_id", TEXT),
    required("email", TEXT),
    optional("name", TEXT),
    optional("password_hash", TEXT),
    optional("password_salt", TEXT),
    optional("oidc_sub", TEXT),
    optional("oidc_provider", TEXT),
    required("status", TEXT),
    stamp("created_at"),
    optional("last_login_at", INSTANT),
    UniqueConstraint("org_id", "id", name="uq_user_account_org_id"),
    ForeignKeyConstraint(["org_id"], ["org.id"]),
    Index("ux_user_account_org_email", "org_id", "email", unique=True),
)

project = Table(
    "project",
    metadata,
    key("id", TEXT),
    required("org_id", TEXT),
    required("slug", TEXT),
    required("name", TEXT),
    required("environment", TEXT),
    required("status", TEXT),
    required("settings", JSON_BINARY),
    optional("data_key_ref", TEXT),
    stamp("created_at"),
    stamp("updated_at"),
    UniqueConstraint("org_id", "id", name="uq_project_org_id"),
    ForeignKeyConstraint(["org_id"], ["org.id"]),
    Index("ux_project_org_slug", "org_id", "slug", unique=True),
)

membership = Table(
    "membership",
    metadata,
    key("id", TEXT),
    required("user_id", TEXT),
    required("org_id", TEXT),
    optional("project_id", TEXT),
    required("role", TEXT),
    stamp("created_at"),
    ForeignKeyConstraint(
        ["org_id", "user_id"], ["user_account.org_id", "user_account.id"], ondelete="CASCADE"
    ),
    ForeignKeyConstraint(
        ["org_id", "project_id"], ["project.org_id", "project.id"], ondelete="CASCADE"
    ),
    CheckConstraint(
        ROLE_SCOPE,
        name="ck_membership_role_scope",
    ),
    partial("ux_membership_org", "user_id", "org_id", where="project_id IS NULL", unique=True),
    partial(
        "ux_membership_proj",
        "user_id",
        "org_id",
        "project_id",
        where="project_id IS NOT NULL",
        unique=True,
    ),
)

invitation = Table(
    "invitation",
    metadata,
    key("id", TEXT),
    required("org_id", TEXT),
    optional("project_id", TEXT),
    required("email", TEXT),
    required("role", TEXT),
    required("token_hash", TEXT),
    required("expires_at", INSTANT),
    required("invited_by", TEXT),
    optional("accepted_at", INSTANT),
    ForeignKeyConstraint(["org_id", "invited_by"], ["user_account.org_id", "user_account.id"]),
    ForeignKeyConstraint(["org_id", "project_id"], ["project.org_id", "project.id"]),
    CheckConstraint(
        ROLE_SCOPE,
        name="ck_invitation_role_scope",
    ),
    Index("ux_invitation_token_hash", "token_hash", unique=True),
)

user_session = Table(
    "user_session",
    metadata,
    key("id", TEXT),
    required("org_id", TEXT),
    required("user_id", TEXT),
    required("token_hash", TEXT),
    stamp("created_at"),
    required("expires_at", INSTANT),
    optional("last_used_at", INSTANT),
    ForeignKeyConstraint(
        ["org_id", "user_id"], ["user_account.org_id", "user_account.id"], ondelete="CASCADE"
    ),
    UniqueConstraint("token_hash"),
)

api_token = Table(
    "api_token",
    metadata,
    key("id", TEXT),
    required("org_id", TEXT),
    optional("project_id", TEXT),
    required("subject_user_id", TEXT),
    required("token_hash", TEXT),
    required("scopes", TEXT),
    optional("name", TEXT),
    optional("expires_at", INSTANT),
    optional("last_used_at", INSTANT),
    stamp("created_at", lax=True),
    optional("revoked_at", INSTANT),
    Index("ix_api_token_org_project", "org_id", "project_id"),
    Index("ux_api_token_hash", "token_hash", unique=True),
    partial(
        "ux_api_token_org_name",
        "org_id",
        "name",
        where="project_id IS NULL AND name IS NOT NULL",
        unique=True,
    ),
    partial(
        "ux_api_token_org_proj_name",
        "org_id",
        "project_id",
        "name",
        where="project_id IS NOT NULL AND name IS NOT NULL",
        unique=True,
    ),
)
