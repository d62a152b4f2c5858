"""Add profiles and secrets to workflow runs, and an audit log of sealed secrets."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BIGINT,
    JSONB,
    STRINGS,
    TEXT,
    index,
    optional,
    required,
    serial,
    stamp,
)

revision = "003_sealed"
down_revision = "002_sandbox_requirements"


def upgrade() -> None:
    op.create_table(
        "sealed_audit_events",
        serial("id", BIGINT),
        required("event_type", TEXT),
        required("actor_type", TEXT),
        optional("actor_id", TEXT),
        optional("profile_id", TEXT),
        optional("secret_key", TEXT),
        optional("run_id", TEXT),
        optional("project_id", TEXT),
        required("details", JSONB, "{}"),
        stamp("created_at"),
    )
    index("idx_sealed_audit_profile", "sealed_audit_events", "profile_id", "created_at DESC")
    index("idx_sealed_audit_recent", "sealed_audit_events", "event_type", "created_at DESC")
    index(
        "idx_sealed_audit_run",
        "sealed_audit_events",
        "run_id",
        "created_at DESC",
        where="run_id IS NOT NULL",
    )
    op.add_column("workflow_runs", optional("security_profile_ref", TEXT))
    op.add_column("workflow_runs", required("effective_env_keys", STRINGS, "{}"))
    op.add_column("workflow_runs", required("effective_secret_keys", STRINGS, "{}"))


def downgrade() -> None:
    op.drop_column("workflow_runs", "effective_secret_keys")
    op.drop_column("workflow_runs", "effective_env_keys")
    op.drop_column("workflow_runs", "security_profile_ref")
    op.drop_table("sealed_audit_events")
