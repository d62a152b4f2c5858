"""Runs inside the environment of the real Sagewai: times its migrations, imports not counted.

python sagewai_migrations.py URL...     prints a JSON list, seconds for each database
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import resources


def main(urls: list[str]) -> None:
    """Bring each database to the head and print what each took."""
    # Loads the dialect and the driver, which the first run would pay for otherwise.
    import asyncpg  # noqa: F401
    import sqlalchemy.dialects.postgresql.asyncpg  # noqa: F401
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("sagewai.db") / "migrations"))
    seconds = []
    for url in urls:
        os.environ["SAGEWAI_DATABASE_URL"] = url
        started = time.perf_counter()
        command.upgrade(config, "head")
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
