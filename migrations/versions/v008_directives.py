"""Add evaluations of directives and their pending approvals."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BIGINT,
    BOOLEAN,
    DOUBLE,
    INSTANT,
    JSONB,
    TEXT,
    index,
    optional,
    required,
    serial,
    stamp,
    unique,
)

revision = "008_directives"
down_revision = "007_merge_006_branches"


def upgrade() -> None:
    op.create_table(
        "directive_evaluations",
        serial("id", BIGINT),
        required("event_type", TEXT),
        optional("decision_id", TEXT),
        required("run_id", TEXT),
        optional("project_id", TEXT),
        required("workflow_name", TEXT),
        optional("policy_id", TEXT),
        optional("signal_kind", TEXT),
        optional("severity", TEXT),
        required("details", JSONB, "{}"),
        stamp("created_at", sql=True),
    )
    index(
        "idx_directive_eval_decision",
        "directive_evaluations",
        "decision_id",
        "created_at DESC",
        where="decision_id IS NOT NULL",
    )
    index("idx_directive_eval_recent", "directive_evaluations", "event_type", "created_at DESC")
    index("idx_directive_eval_run", "directive_evaluations", "run_id", "created_at DESC")
    op.create_table(
        "pending_directive_approvals",
        serial("id", BIGINT),
        required("decision_id", TEXT),
        required("run_id", TEXT),
        optional("project_id", TEXT),
        required("workflow_name", TEXT),
        required("policy_id", TEXT),
        required("triggering_signal", JSONB),
        required("proposed_action", JSONB),
        stamp("requested_at", sql=True),
        required("status", TEXT, "pending"),
        optional("decided_at", INSTANT),
        optional("decided_by", TEXT),
        optional("operator_note", TEXT),
        required("expires_at", INSTANT),
        unique("decision_id"),
    )
    index(
        "idx_directive_approvals_pending",
        "pending_directive_approvals",
        "status",
        "requested_at",
        where="status = 'pending'",
    )
    index(
        "idx_directive_approvals_run", "pending_directive_approvals", "run_id", "requested_at DESC"
    )
    op.add_column("workflow_runs", required("directive_chain", JSONB, "[]"))
    op.add_column("workflow_runs", optional("estimated_cost_usd", DOUBLE))
    op.add_column("workflow_runs", required("replay_re_evaluate_directives", BOOLEAN, "false"))
    op.add_column("workflow_runs", optional("execution_mode_override", TEXT))
    op.add_column("workflow_runs", optional("identity_from", TEXT))


def downgrade() -> None:
    op.drop_column("workflow_runs", "identity_from")
    op.drop_column("workflow_runs", "execution_mode_override")
    op.drop_column("workflow_runs", "replay_re_evaluate_directives")
    op.drop_column("workflow_runs", "estimated_cost_usd")
    op.drop_column("workflow_runs", "directive_chain")
    op.drop_table("pending_directive_approvals")
    op.drop_table("directive_evaluations")
