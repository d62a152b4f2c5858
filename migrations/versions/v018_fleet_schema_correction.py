"""Add names, secrets and approvals of workers, and allow workers without a project.

The downgrade moves workers without a project to the project `default`.
"""

import sqlalchemy as sa
from alembic import op

from sagewai_ops.migrations.columns import (
    INSTANT,
    TEXT,
    optional,
)

revision = "018_fleet_schema_correction"
down_revision = "017_api_tokens"


def upgrade() -> None:
    op.alter_column("workers", "project_id", nullable=True, server_default=None)
    op.add_column("workers", optional("name", TEXT))
    op.add_column("workers", optional("secret_hash", TEXT))
    op.add_column("workers", optional("approved_at", INSTANT))
    op.add_column("workers", optional("approved_by", TEXT))


def downgrade() -> None:
    op.drop_column("workers", "approved_by")
    op.drop_column("workers", "approved_at")
    op.drop_column("workers", "secret_hash")
    op.drop_column("workers", "name")
    workers = sa.table("workers", sa.column("project_id", sa.Text()))
    op.execute(workers.update().where(workers.c.project_id.is_(None)).values(project_id="default"))
    op.alter_column("workers", "project_id", nullable=False, server_default="default")
