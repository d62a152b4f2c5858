"""Notifications: channels, triggers and what was sent."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    INTEGER,
    TEXT,
    index,
    optional,
    required,
    serial,
    stamp,
    unique,
)

TABLES = (
    "notification_channels",
    "notification_triggers",
    "notification_history",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "notification_channels",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("channel_type", TEXT),
        optional("enabled", BOOLEAN, "true"),
        optional("config", TEXT, "{}"),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        unique("project_id", "channel_type"),
    )
    op.create_table(
        "notification_triggers",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("trigger", TEXT),
        required("channel_type", TEXT),
        optional("enabled", BOOLEAN, "true"),
        stamp("created_at", null=True),
        unique("project_id", "trigger", "channel_type"),
    )
    op.create_table(
        "notification_history",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("trigger", TEXT),
        required("title", TEXT),
        optional("body", TEXT),
        optional("severity", TEXT, "info"),
        optional("agent_name", TEXT),
        required("channel_type", TEXT),
        optional("delivered", BOOLEAN, "false"),
        optional("error", TEXT),
        stamp("created_at", null=True),
    )
    index("ix_notification_history_created_at", "notification_history", "created_at")
    index("ix_notification_history_project_id", "notification_history", "project_id")
    index("ix_notification_history_trigger", "notification_history", "trigger")
