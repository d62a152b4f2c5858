"""The state directory of the user: what a restore of a home does not replace."""

import os
from collections.abc import Mapping
from pathlib import Path


def state_directory(environment: Mapping[str, str]) -> Path | None:
    """Return the user's state directory, which need not exist; None for a user without a home."""
    named = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(named):
        user_home = environment.get("HOME", "")
        if not os.path.isabs(user_home):
            return None
        named = os.path.join(user_home, ".local/state")
    return Path(os.path.realpath(named)) / "sagewai-ops"
