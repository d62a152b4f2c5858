"""Directives: what was evaluated, and what waits for a decision."""

from sqlalchemy import Index, Table, UniqueConstraint

from sagewai_ops.schema.tables.columns import (
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

directive_evaluations = Table(
    "directive_evaluations",
    metadata,
    key("id", LONG),
    required("event_type", TEXT),
    optional("decision_id", TEXT),
    required("run_id", TEXT),
    optional("project_id", TEXT),
    required("workflow_name", TEXT),
    optional("policy_id", TEXT),
    optional("signal_kind", TEXT),
    optional("severity", TEXT),
    required("details", JSON_BINARY),
    stamp("created_at"),
    partial(
        "idx_directive_eval_decision", "decision_id", "created_at", where="decision_id IS NOT NULL"
    ),
    Index("idx_directive_eval_recent", "event_type", "created_at"),
    Index("idx_directive_eval_run", "run_id", "created_at"),
)

pending_directive_approvals = Table(
    "pending_directive_approvals",
    metadata,
    key("id", LONG),
    required("decision_id", TEXT),
    required("run_id", TEXT),
    optional("project_id", TEXT),
    required("workflow_name", TEXT),
    required("policy_id", TEXT),
    required("triggering_signal", JSON_BINARY),
    required("proposed_action", JSON_BINARY),
    stamp("requested_at"),
    required("status", TEXT, "pending"),
    optional("decided_at", INSTANT),
    optional("decided_by", TEXT),
    optional("operator_note", TEXT),
    required("expires_at", INSTANT),
    UniqueConstraint("decision_id"),
    partial(
        "idx_directive_approvals_pending", "status", "requested_at", where="status = 'pending'"
    ),
    Index("idx_directive_approvals_run", "run_id", "requested_at"),
)
