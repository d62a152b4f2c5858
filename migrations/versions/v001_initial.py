"""Create the 45 tables that everything later builds on."""

from alembic import op

from sagewai_ops.migrations.initial import (
    agents,
    connectors,
    context,
    fleet,
    harness,
    hosting,
    notifications,
    setup,
    spending,
    workflows,
    workspaces,
)

revision = "001_initial"
down_revision = None

FAMILIES = (
    workflows,
    agents,
    spending,
    connectors,
    context,
    harness,
    notifications,
    fleet,
    workspaces,
    hosting,
    setup,
)


def upgrade() -> None:
    for family in FAMILIES:
        family.create()


def downgrade() -> None:
    for family in reversed(FAMILIES):
        for table in reversed(family.TABLES):
            op.drop_table(table)
