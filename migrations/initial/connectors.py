"""Connectors: credentials, triggers, cursors and the custom ones."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    INSTANT,
    INTEGER,
    JSON,
    JSONB,
    TEXT,
    index,
    key,
    optional,
    required,
    serial,
    stamp,
    unique,
    varchar,
)

TABLES = (
    "connector_credentials",
    "connector_triggers",
    "connector_cursors",
    "custom_connectors",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "connector_credentials",
        required("id", varchar(100)),
        required("project_id", TEXT, "default"),
        required("connector_name", varchar(255)),
        required("display_name", varchar(255), ""),
        required("config", JSONB, "{}"),
        required("status", varchar(50), "not_configured"),
        optional("access_token", TEXT),
        optional("refresh_token", TEXT),
        optional("token_type", varchar(50)),
        optional("expires_at", INSTANT),
        optional("scope", TEXT),
        stamp("created_at"),
        stamp("updated_at"),
        key("id"),
        unique("project_id", "connector_name"),
    )
    index(
        "ix_connector_credentials_project_connector",
        "connector_credentials",
        "project_id",
        "connector_name",
    )
    index("ix_connector_credentials_project_id", "connector_credentials", "project_id")
    op.create_table(
        "connector_triggers",
        required("id", varchar(36)),
        required("project_id", TEXT, "default"),
        required("source", varchar(100)),
        required("strategy", varchar(20)),
        optional("poll_interval_seconds", INTEGER),
        required("filter_json", JSON, "{}"),
        required("target", varchar(200)),
        required("action", varchar(50)),
        required("context_json", JSON, "{}"),
        required("enabled", BOOLEAN, "true"),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("id"),
    )
    index("ix_connector_triggers_project_id", "connector_triggers", "project_id")
    op.create_table(
        "connector_cursors",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("connector_name", varchar(100)),
        required("channel", varchar(255)),
        required("cursor_value", TEXT),
        stamp("updated_at", null=True),
        unique("project_id", "connector_name", "channel"),
    )
    index("ix_connector_cursors_project_id", "connector_cursors", "project_id")
    op.create_table(
        "custom_connectors",
        required("name", varchar(100)),
        required("project_id", TEXT, "default"),
        required("display_name", varchar(200)),
        required("category", varchar(100), "custom"),
        required("description", TEXT, ""),
        required("auth_type", varchar(20), "api_key"),
        required("auth_fields_json", JSON, "[]"),
        required("mcp_command_json", JSON, "[]"),
        optional("docs_url", TEXT),
        required("agent_description", TEXT, ""),
        required("example_prompt", TEXT, ""),
        optional("oauth_authorize_url", TEXT),
        optional("oauth_token_url", TEXT),
        optional("oauth_scopes_json", JSON, "[]"),
        required("supports_webhook", BOOLEAN, "false"),
        required("supports_listener", BOOLEAN, "false"),
        required("supports_poller", BOOLEAN, "false"),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("name"),
    )
    index("ix_custom_connectors_project_id", "custom_connectors", "project_id")
