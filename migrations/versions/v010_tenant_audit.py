"""Add the audit log, whose events form a hash chain."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BIGINT,
    JSONB,
    TEXT,
    index,
    optional,
    reference,
    required,
    serial,
    stamp,
)

revision = "010_tenant_audit"
down_revision = "009_tenancy_identity"


def upgrade() -> None:
    op.create_table(
        "audit_event",
        serial("id", BIGINT),
        required("org_id", TEXT),
        optional("project_id", TEXT),
        optional("actor_user_id", TEXT),
        required("action", TEXT),
        optional("target_type", TEXT),
        optional("target_id", TEXT),
        required("metadata", JSONB, "{}"),
        required("seq", BIGINT),
        optional("prev_hash", TEXT),
        required("hash", TEXT),
        stamp("created_at"),
        reference(["org_id"], "org", ["id"]),
        reference(["org_id", "project_id"], "project", ["org_id", "id"]),
    )
    index(
        "ux_audit_seq_org", "audit_event", "org_id", "seq", unique=True, where="project_id IS NULL"
    )
    index(
        "ux_audit_seq_proj",
        "audit_event",
        "org_id",
        "project_id",
        "seq",
        unique=True,
        where="project_id IS NOT NULL",
    )
    op.create_table(
        "audit_chain_head",
        serial("id", BIGINT),
        required("org_id", TEXT),
        optional("project_id", TEXT),
        required("seq", BIGINT),
        required("hash", TEXT),
        stamp("updated_at"),
        reference(["org_id"], "org", ["id"]),
        reference(["org_id", "project_id"], "project", ["org_id", "id"]),
    )
    index(
        "ux_audit_head_org", "audit_chain_head", "org_id", unique=True, where="project_id IS NULL"
    )
    index(
        "ux_audit_head_proj",
        "audit_chain_head",
        "org_id",
        "project_id",
        unique=True,
        where="project_id IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_table("audit_chain_head")
    op.drop_table("audit_event")
