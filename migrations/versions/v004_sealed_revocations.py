"""Add revocations of sealed secrets and of the runs that used them."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BIGINT,
    BOOLEAN,
    INSTANT,
    TEXT,
    index,
    optional,
    required,
    serial,
    stamp,
)

revision = "004_sealed_revocations"
down_revision = "003_sealed"


def upgrade() -> None:
    op.create_table(
        "sealed_revocations",
        serial("id", BIGINT),
        required("profile_id", TEXT),
        required("secret_key", TEXT),
        stamp("revoked_at"),
        optional("revoked_by", TEXT),
        required("reason", TEXT),
        required("hard", BOOLEAN, "false"),
        optional("lifted_at", INSTANT),
        optional("lifted_by", TEXT),
    )
    index(
        "idx_sealed_revocations_active",
        "sealed_revocations",
        "profile_id",
        "secret_key",
        unique=True,
        where="lifted_at IS NULL",
    )
    index("idx_sealed_revocations_profile", "sealed_revocations", "profile_id", "revoked_at DESC")
    op.add_column("workflow_runs", optional("revoked_at", INSTANT))
    op.add_column("workflow_runs", optional("revoke_reason", TEXT))


def downgrade() -> None:
    op.drop_column("workflow_runs", "revoke_reason")
    op.drop_column("workflow_runs", "revoked_at")
    op.drop_table("sealed_revocations")
