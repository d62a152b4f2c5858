"""Runs inside the environment of the real Sagewai: moves many databases along its own chain.

python chain.py JSON      a list of [URL, `upgrade` or `downgrade`, revision], done in order
"""

from __future__ import annotations

import json
import os
import sys
from importlib import resources


def main(moves: list[tuple[str, str, str]]) -> None:
    """Move each database; the import of all this is paid for once."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("sagewai.db") / "migrations"))
    for url, verb, revision in moves:
        os.environ["SAGEWAI_DATABASE_URL"] = url
        getattr(command, verb)(config, revision)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
