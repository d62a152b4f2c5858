"""Add the execution mode of workflow runs."""

from alembic import op

from sagewai_ops.migrations.columns import (
    TEXT,
    in_list,
    required,
)

revision = "005_execution_mode"
down_revision = "004_sealed_revocations"


def upgrade() -> None:
    op.add_column("workflow_runs", required("execution_mode", TEXT, "bare"))
    op.create_check_constraint(
        "runs_execution_mode_valid",
        "workflow_runs",
        in_list("execution_mode", "bare", "sandboxed", "identity", "full", "full_jit"),
    )


def downgrade() -> None:
    op.drop_constraint("runs_execution_mode_valid", "workflow_runs", type_="check")
    op.drop_column("workflow_runs", "execution_mode")
