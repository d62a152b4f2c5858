"""Add the artifact destination of workflow runs."""

from alembic import op

from sagewai_ops.migrations.columns import (
    JSON,
    optional,
)

revision = "006_artifact_destination"
down_revision = "005_execution_mode"


def upgrade() -> None:
    op.add_column("workflow_runs", optional("artifact_destination", JSON))


def downgrade() -> None:
    op.drop_column("workflow_runs", "artifact_destination")
