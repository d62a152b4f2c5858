"""Add the replay of workflow runs from a step."""

from alembic import op

from sagewai_ops.migrations.columns import (
    INTEGER,
    TEXT,
    index,
    optional,
)

revision = "006_replay_snapshots"
down_revision = "005_execution_mode"


def upgrade() -> None:
    op.add_column("workflow_runs", optional("replay_of_run_id", TEXT))
    op.add_column("workflow_runs", optional("replay_from_step", INTEGER))
    op.add_column("workflow_runs", optional("code_hash", TEXT))
    index(
        "idx_workflow_runs_replay_of",
        "workflow_runs",
        "replay_of_run_id",
        where="replay_of_run_id IS NOT NULL",
    )


def downgrade() -> None:
    op.drop_index("idx_workflow_runs_replay_of", table_name="workflow_runs")
    op.drop_column("workflow_runs", "code_hash")
    op.drop_column("workflow_runs", "replay_from_step")
    op.drop_column("workflow_runs", "replay_of_run_id")
