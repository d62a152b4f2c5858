"""Notifications: channels, triggers and what was sent."""

from sqlalchemy import Index, Table, UniqueConstraint

from sagewai_ops.schema.tables.columns import (
    BOOLEAN,
    INTEGER,
    JSON_AS_TEXT,
    TEXT,
    key,
    metadata,
    optional,
    required,
    stamp,
)

notification_channels = Table(
    "notification_channels",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("channel_type", TEXT),
    required("enabled", BOOLEAN, "true", lax=True),
    required("config", JSON_AS_TEXT, "{}", lax=True),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    UniqueConstraint("project_id", "channel_type"),
)

notification_triggers = Table(
    "notification_triggers",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("trigger", TEXT),
    required("channel_type", TEXT),
    required("enabled", BOOLEAN, "true", lax=True),
    stamp("created_at", lax=True),
    UniqueConstraint("project_id", "trigger", "channel_type"),
)

notification_history = Table(
    "notification_history",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("trigger", TEXT),
    required("title", TEXT),
    optional("body", TEXT),
    required("severity", TEXT, "info", lax=True),
    optional("agent_name", TEXT),
    required("channel_type", TEXT),
    required("delivered", BOOLEAN, "false", lax=True),
    optional("error", TEXT),
    stamp("created_at", lax=True),
    Index("ix_notification_history_created_at", "created_at"),
    Index("ix_notification_history_project_id", "project_id"),
    Index("ix_notification_history_trigger", "trigger"),
)
