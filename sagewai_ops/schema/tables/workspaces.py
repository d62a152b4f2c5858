"""Workspaces of the hosted product: users, organisations, members, providers, invitations."""

from sqlalchemy import ForeignKeyConstraint, Index, Table, UniqueConstraint

from sagewai_ops.schema.tables.columns import (
    BOOLEAN,
    INSTANT,
    INTEGER,
    TEXT,
    TEXT_AS_JSON,
    key,
    metadata,
    optional,
    required,
    stamp,
    varchar,
)

users = Table(
    "users",
    metadata,
    key("id", TEXT),
    required("email", varchar(255)),
    optional("password_hash", TEXT),
    required("display_name", varchar(255)),
    optional("avatar_url", TEXT),
    optional("oauth_provider", varchar(50)),
    optional("oauth_id", varchar(255)),
    required("is_active", BOOLEAN),
    stamp("created_at"),
    UniqueConstraint("email"),
    Index("ix_users_email", "email", unique=True),
    Index("ix_users_oauth", "oauth_provider", "oauth_id"),
)

organizations = Table(
    "organizations",
    metadata,
    key("id", TEXT),
    required("name", varchar(255)),
    required("slug", varchar(255)),
    required("owner_id", TEXT),
    stamp("created_at"),
    UniqueConstraint("slug"),
    ForeignKeyConstraint(["owner_id"], ["users.id"]),
    Index("ix_organizations_owner", "owner_id"),
    Index("ix_organizations_slug", "slug", unique=True),
)

workspaces = Table(
    "workspaces",
    metadata,
    key("id", TEXT),
    required("org_id", TEXT),
    required("name", varchar(255)),
    required("slug", varchar(100)),
    optional("settings", TEXT_AS_JSON),
    stamp("created_at"),
    ForeignKeyConstraint(["org_id"], ["organizations.id"]),
    Index("ix_workspaces_org", "org_id"),
    Index("ix_workspaces_org_slug", "org_id", "slug", unique=True),
)

workspace_members = Table(
    "workspace_members",
    metadata,
    key("id", INTEGER),
    required("workspace_id", TEXT),
    required("user_id", TEXT),
    required("role", varchar(20)),
    stamp("created_at"),
    ForeignKeyConstraint(["workspace_id"], ["workspaces.id"]),
    ForeignKeyConstraint(["user_id"], ["users.id"]),
    Index("ix_wm_user", "user_id"),
    Index("ix_wm_workspace", "workspace_id"),
    Index("ix_wm_workspace_user", "workspace_id", "user_id", unique=True),
)

llm_providers = Table(
    "llm_providers",
    metadata,
    key("id", INTEGER),
    required("workspace_id", TEXT),
    required("provider_name", varchar(50)),
    required("api_key_encrypted", TEXT),
    required("display_name", varchar(255)),
    required("is_default", BOOLEAN),
    stamp("created_at"),
    ForeignKeyConstraint(["workspace_id"], ["workspaces.id"]),
    Index("ix_llm_providers_workspace", "workspace_id"),
    Index("ix_llm_providers_ws_provider", "workspace_id", "provider_name", unique=True),
)

invitations = Table(
    "invitations",
    metadata,
    key("id", TEXT),
    required("workspace_id", TEXT),
    required("email", varchar(255)),
    required("role", varchar(20)),
    required("invited_by", TEXT),
    required("expires_at", INSTANT),
    optional("accepted_at", INSTANT),
    stamp("created_at"),
    ForeignKeyConstraint(["workspace_id"], ["workspaces.id"]),
    ForeignKeyConstraint(["invited_by"], ["users.id"]),
    Index("ix_invitations_email", "email"),
    Index("ix_invitations_workspace", "workspace_id"),
)
