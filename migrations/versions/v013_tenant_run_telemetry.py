"""Allow agent runs and prompt logs without a project.

The downgrade moves rows without a project to the project `default`.
"""

import sqlalchemy as sa
from alembic import op

revision = "013_tenant_run_telemetry"
down_revision = "012_tenant_agent"

TABLES = ("agent_runs", "prompt_logs")


def upgrade() -> None:
    for table in TABLES:
        op.alter_column(table, "project_id", nullable=True)


def downgrade() -> None:
    for name in TABLES:
        table = sa.table(name, sa.column("project_id", sa.Text()))
        op.execute(table.update().where(table.c.project_id.is_(None)).values(project_id="default"))
        op.alter_column(name, "project_id", nullable=False)
