"""Connectors: credentials (in plain text), triggers, cursors and the custom ones."""

from sqlalchemy import Index, Table

from sagewai_ops.schema.tables.columns import (
    BOOLEAN,
    INSTANT,
    INTEGER,
    JSON_BINARY,
    JSON_TEXT,
    TEXT,
    key,
    metadata,
    optional,
    required,
    stamp,
    varchar,
)

connector_credentials = Table(
    "connector_credentials",
    metadata,
    key("id", varchar(100)),
    required("project_id", TEXT, "default"),
    required("connector_name", varchar(255)),
    required("display_name", varchar(255), ""),
    required("config", JSON_BINARY),
    required("status", varchar(50), "not_configured"),
    optional("access_token", TEXT),
    optional("refresh_token", TEXT),
    optional("token_type", varchar(50)),
    optional("expires_at", INSTANT),
    optional("scope", TEXT),
    stamp("created_at"),
    stamp("updated_at"),
    Index(
        "ix_connector_credentials_project_connector", "project_id", "connector_name", unique=True
    ),
    Index("ix_connector_credentials_project_id", "project_id"),
)

connector_triggers = Table(
    "connector_triggers",
    metadata,
    key("id", varchar(36)),
    required("project_id", TEXT, "default"),
    required("source", varchar(100)),
    required("strategy", varchar(20)),
    optional("poll_interval_seconds", INTEGER),
    required("filter_json", JSON_TEXT),
    required("target", varchar(200)),
    required("action", varchar(50)),
    required("context_json", JSON_TEXT),
    required("enabled", BOOLEAN, "true"),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index("ix_connector_triggers_project_id", "project_id"),
)

connector_cursors = Table(
    "connector_cursors",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("connector_name", varchar(100)),
    required("channel", varchar(255)),
    required("cursor_value", TEXT),
    stamp("updated_at", lax=True),
    Index(
        "ix_connector_cursors_project_connector_channel",
        "project_id",
        "connector_name",
        "channel",
        unique=True,
    ),
    Index("ix_connector_cursors_project_id", "project_id"),
)

custom_connectors = Table(
    "custom_connectors",
    metadata,
    key("name", varchar(100)),
    required("project_id", TEXT, "default"),
    required("display_name", varchar(200)),
    required("category", varchar(100), "custom"),
    required("description", TEXT, ""),
    required("auth_type", varchar(20), "api_key"),
    required("auth_fields_json", JSON_TEXT),
    required("mcp_command_json", JSON_TEXT),
    optional("docs_url", TEXT),
    required("agent_description", TEXT, ""),
    required("example_prompt", TEXT, ""),
    optional("oauth_authorize_url", TEXT),
    optional("oauth_token_url", TEXT),
    optional("oauth_scopes_json", JSON_TEXT),
    required("supports_webhook", BOOLEAN, "false"),
    required("supports_listener", BOOLEAN, "false"),
    required("supports_poller", BOOLEAN, "false"),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index("ix_custom_connectors_project_id", "project_id"),
)
