"""Sealed secrets: what was done with them, and which were revoked."""

from sqlalchemy import Index, Table

from sagewai_ops.schema.tables.columns import (
    BIGINT,
    BOOLEAN,
    INSTANT,
    JSON_BINARY,
    LONG,
    TEXT,
    key,
    metadata,
    optional,
    partial,
    required,
    stamp,
)

sealed_audit_events = Table(
    "sealed_audit_events",
    metadata,
    key("id", LONG),
    required("event_type", TEXT),
    required("actor_type", TEXT),
    optional("actor_id", TEXT),
    optional("profile_id", TEXT),
    optional("secret_key", TEXT),
    optional("run_id", TEXT),
    optional("project_id", TEXT),
    required("details", JSON_BINARY),
    stamp("created_at"),
    Index("idx_sealed_audit_profile", "profile_id", "created_at"),
    Index("idx_sealed_audit_recent", "event_type", "created_at"),
    partial("idx_sealed_audit_run", "run_id", "created_at", where="run_id IS NOT NULL"),
)

sealed_revocations = Table(
    "sealed_revocations",
    metadata,
    key("id", BIGINT),
    required("profile_id", TEXT),
    required("secret_key", TEXT),
    stamp("revoked_at"),
    optional("revoked_by", TEXT),
    required("reason", TEXT),
    required("hard", BOOLEAN, "false"),
    optional("lifted_at", INSTANT),
    optional("lifted_by", TEXT),
    partial(
        "idx_sealed_revocations_active",
        "profile_id",
        "secret_key",
        where="lifted_at IS NULL",
        unique=True,
    ),
    Index("idx_sealed_revocations_profile", "profile_id"),
)
