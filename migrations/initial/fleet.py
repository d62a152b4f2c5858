"""The fleet: workers, the keys with which they enrol, what happened to them."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    INSTANT,
    INTEGER,
    JSONB,
    STRINGS,
    TEXT,
    UUID,
    index,
    key,
    optional,
    required,
    stamp,
)

TABLES = (
    "workers",
    "enrollment_keys",
    "fleet_audit_events",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "workers",
        required("worker_id", TEXT),
        required("pool", TEXT, "default"),
        required("labels", JSONB, "{}"),
        required("project_id", TEXT, "default"),
        required("status", TEXT, "active"),
        required("max_concurrent", INTEGER, "4"),
        stamp("last_heartbeat", null=True),
        stamp("registered_at", null=True),
        required("metadata", JSONB, "{}"),
        optional("org_id", TEXT),
        required("models_supported", STRINGS, "{}"),
        required("models_canonical", STRINGS, "{}"),
        required("approval_status", TEXT, "pending"),
        required("capabilities", JSONB, "{}"),
        optional("last_probe_at", INSTANT),
        optional("probe_status", TEXT),
        optional("sdk_version", TEXT),
        key("worker_id"),
    )
    index("idx_workers_heartbeat", "workers", "last_heartbeat", where="status = 'active'")
    index("idx_workers_pool", "workers", "pool")
    index("idx_workers_project_id", "workers", "project_id")
    index("idx_workers_status", "workers", "status")
    index("ix_workers_models_canonical", "workers", "models_canonical", using="gin")
    index("ix_workers_org_approval", "workers", "org_id", "approval_status")
    op.create_table(
        "enrollment_keys",
        required("id", UUID),
        required("org_id", TEXT),
        optional("name", TEXT),
        required("key_hash", TEXT),
        optional("max_uses", INTEGER),
        required("current_uses", INTEGER, "0"),
        optional("expires_at", INSTANT),
        required("allowed_pools", STRINGS, "{}"),
        required("allowed_models", STRINGS, "{}"),
        stamp("created_at"),
        optional("created_by", TEXT),
        required("revoked", BOOLEAN, "false"),
        key("id"),
    )
    index("ix_enrollment_keys_org", "enrollment_keys", "org_id")
    op.create_table(
        "fleet_audit_events",
        required("id", UUID),
        required("org_id", TEXT),
        required("event_type", TEXT),
        optional("worker_id", TEXT),
        required("details", JSONB, "{}"),
        stamp("created_at"),
        key("id"),
    )
    index("ix_fleet_audit_org_created", "fleet_audit_events", "org_id", "created_at")
