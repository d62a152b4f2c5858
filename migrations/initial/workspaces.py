"""Users, organisations, workspaces and who is in them."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    INSTANT,
    INTEGER,
    JSONB,
    TEXT,
    index,
    key,
    optional,
    reference,
    required,
    serial,
    stamp,
    unique,
    varchar,
)

TABLES = (
    "users",
    "organizations",
    "workspaces",
    "workspace_members",
    "llm_providers",
    "invitations",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "users",
        required("id", TEXT),
        required("email", varchar(255)),
        optional("password_hash", TEXT),
        required("display_name", varchar(255), ""),
        optional("avatar_url", TEXT),
        optional("oauth_provider", varchar(50)),
        optional("oauth_id", varchar(255)),
        required("is_active", BOOLEAN, "true"),
        optional("totp_secret", varchar(64)),
        stamp("created_at"),
        key("id"),
        unique("email"),
    )
    index("ix_users_email", "users", "email", unique=True)
    index("ix_users_oauth", "users", "oauth_provider", "oauth_id")
    op.create_table(
        "organizations",
        required("id", TEXT),
        required("name", varchar(255)),
        required("slug", varchar(255)),
        required("owner_id", TEXT),
        stamp("created_at"),
        key("id"),
        unique("slug"),
        reference(["owner_id"], "users", ["id"]),
    )
    index("ix_organizations_owner", "organizations", "owner_id")
    index("ix_organizations_slug", "organizations", "slug", unique=True)
    op.create_table(
        "workspaces",
        required("id", TEXT),
        required("org_id", TEXT),
        required("name", varchar(255)),
        required("slug", varchar(100)),
        optional("settings", JSONB, "{}"),
        stamp("created_at"),
        key("id"),
        unique("org_id", "slug"),
        reference(["org_id"], "organizations", ["id"]),
    )
    index("ix_workspaces_org", "workspaces", "org_id")
    op.create_table(
        "workspace_members",
        serial("id", INTEGER),
        required("workspace_id", TEXT),
        required("user_id", TEXT),
        required("role", varchar(20), "member"),
        stamp("created_at"),
        unique("workspace_id", "user_id"),
        reference(["user_id"], "users", ["id"], on_delete="CASCADE"),
        reference(["workspace_id"], "workspaces", ["id"], on_delete="CASCADE"),
    )
    index("ix_wm_user", "workspace_members", "user_id")
    index("ix_wm_workspace", "workspace_members", "workspace_id")
    op.create_table(
        "llm_providers",
        serial("id", INTEGER),
        required("workspace_id", TEXT),
        required("provider_name", varchar(50)),
        required("api_key_encrypted", TEXT),
        required("display_name", varchar(255), ""),
        required("is_default", BOOLEAN, "false"),
        stamp("created_at"),
        unique("workspace_id", "provider_name"),
        reference(["workspace_id"], "workspaces", ["id"], on_delete="CASCADE"),
    )
    index("ix_llm_providers_workspace", "llm_providers", "workspace_id")
    op.create_table(
        "invitations",
        required("id", TEXT),
        required("workspace_id", TEXT),
        required("email", varchar(255)),
        required("role", varchar(20), "member"),
        required("invited_by", TEXT),
        required("expires_at", INSTANT),
        optional("accepted_at", INSTANT),
        stamp("created_at"),
        key("id"),
        reference(["invited_by"], "users", ["id"]),
        reference(["workspace_id"], "workspaces", ["id"], on_delete="CASCADE"),
    )
    index("ix_invitations_email", "invitations", "email")
    index("ix_invitations_workspace", "invitations", "workspace_id")
