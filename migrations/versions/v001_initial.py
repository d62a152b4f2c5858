"""Create the 45 tables that all later revisions build on."""

import re
from pathlib import Path

from alembic import op

revision = "001_initial"
down_revision = None

_SCRIPT = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")


def upgrade() -> None:
    for statement in _SCRIPT.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    for table in reversed(re.findall(r"^CREATE TABLE (\w+)", _SCRIPT, re.MULTILINE)):
        op.drop_table(table)
