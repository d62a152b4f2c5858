"""Let a workflow run say how much of the isolation it uses."""

from alembic import op

from sagewai_ops.migrations.columns import (
    TEXT,
    one_of,
    required,
)

revision = "005_execution_mode"
down_revision = "004_sealed_revocations"


def upgrade() -> None:
    op.add_column("workflow_runs", required("execution_mode", TEXT, "bare"))
    op.create_check_constraint(
        "runs_execution_mode_valid",
        "workflow_runs",
        one_of("execution_mode", "bare", "sandboxed", "identity", "full", "full_jit"),
    )


def downgrade() -> None:
    op.drop_constraint("runs_execution_mode_valid", "workflow_runs", type_="check")
    op.drop_column("workflow_runs", "execution_mode")
