"""Resources that an administrator sets up: providers, connections, anything else by kind."""

from sqlalchemy import Index, Table

from sagewai_ops.schema.tables.columns import (
    BOOLEAN,
    JSON_TEXT,
    TEXT,
    key,
    metadata,
    optional,
    partial,
    required,
    stamp,
)

provider = Table(
    "provider",
    metadata,
    key("id", TEXT),
    optional("project_id", TEXT),
    required("provider_name", TEXT),
    required("is_default", BOOLEAN, "false"),
    required("data", JSON_TEXT),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index("ix_provider_project_id", "project_id"),
    partial("ux_provider_global_name", "provider_name", where="project_id IS NULL", unique=True),
    partial(
        "ux_provider_proj_name",
        "project_id",
        "provider_name",
        where="project_id IS NOT NULL",
        unique=True,
    ),
)

connection = Table(
    "connection",
    metadata,
    key("id", TEXT),
    optional("project_id", TEXT),
    required("protocol", TEXT),
    required("display_name", TEXT),
    required("tags", JSON_TEXT),
    optional("credentials_backend", JSON_TEXT),
    required("status", TEXT, "pending"),
    optional("last_tested_at", TEXT),
    optional("last_test_ok", BOOLEAN),
    required("is_default", BOOLEAN, "false"),
    optional("last_error", JSON_TEXT),
    required("protocol_data", JSON_TEXT),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index("ix_connection_project_id", "project_id"),
    Index("ix_connection_protocol", "protocol"),
    partial(
        "ux_connection_global_name",
        "protocol",
        "display_name",
        where="project_id IS NULL",
        unique=True,
    ),
    partial(
        "ux_connection_proj_name",
        "project_id",
        "protocol",
        "display_name",
        where="project_id IS NOT NULL",
        unique=True,
    ),
)

admin_resources = Table(
    "admin_resources",
    metadata,
    key("kind", TEXT),
    key("resource_id", TEXT),
    optional("project_id", TEXT),
    optional("name", TEXT),
    required("data", JSON_TEXT),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index("ix_admin_resources_kind", "kind"),
    Index("ix_admin_resources_project_id", "project_id"),
    partial(
        "ux_admin_resources_kind_proj_name",
        "kind",
        "project_id",
        "name",
        where="name IS NOT NULL",
        unique=True,
    ),
)
