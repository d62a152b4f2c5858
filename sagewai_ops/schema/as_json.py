"""The JSON of an upgrade, for the drill."""

from __future__ import annotations

import dataclasses
from typing import Any

from sagewai_ops.schema.results import describe_upgrade
from sagewai_ops.schema.upgrade_sqlite import Upgrade


def of_upgraded(done: Upgrade) -> dict[str, Any]:
    """Return the JSON of an upgrade of a home's SQLite database."""
    return dataclasses.asdict(describe_upgrade(done))
