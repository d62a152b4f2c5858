"""The chained audit: events, each with the hash of the one before, and the head of each chain."""

from sqlalchemy import ForeignKeyConstraint, Table

from sagewai_ops.schema.tables.columns import (
    BIGINT,
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

audit_event = Table(
    "audit_event",
    metadata,
    key("id", LONG),
    required("org_id", TEXT),
    optional("project_id", TEXT),
    optional("actor_user_id", TEXT),
    required("action", TEXT),
    optional("target_type", TEXT),
    optional("target_id", TEXT),
    required("metadata", JSON_BINARY),
    required("seq", BIGINT),
    optional("prev_hash", TEXT),
    required("hash", TEXT),
    stamp("created_at"),
    ForeignKeyConstraint(["org_id", "project_id"], ["project.org_id", "project.id"]),
    ForeignKeyConstraint(["org_id"], ["org.id"]),
    partial("ux_audit_seq_org", "org_id", "seq", where="project_id IS NULL", unique=True),
    partial(
        "ux_audit_seq_proj",
        "org_id",
        "project_id",
        "seq",
        where="project_id IS NOT NULL",
        unique=True,
    ),
)

audit_chain_head = Table(
    "audit_chain_head",
    metadata,
    key("id", LONG),
    required("org_id", TEXT),
    optional("project_id", TEXT),
    required("seq", BIGINT),
    required("hash", TEXT),
    stamp("updated_at"),
    ForeignKeyConstraint(["org_id", "project_id"], ["project.org_id", "project.id"]),
    ForeignKeyConstraint(["org_id"], ["org.id"]),
    partial("ux_audit_head_org", "org_id", where="project_id IS NULL", unique=True),
    partial(
        "ux_audit_head_proj", "org_id", "project_id", where="project_id IS NOT NULL", unique=True
    ),
)
