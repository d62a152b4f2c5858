"""The organisation that a home's fleet rows belong to, in an install of one organisation.

Sagewai makes its id from the path of the state file, so a home that moves loses sight of its rows:
`default:` and 16 hex digits of the SHA-256 of `<path of the state file>:<administrator's id>`.
"""

import hashlib
import os
from pathlib import Path

_BEFORE_SETUP = "default"  # stands for the administrator until there is one
_ORGANISATION_DIGITS = 16


def fleet_organisation(state: Path, administrator: str) -> str:
    """Give the organisation id that Sagewai gives fleet rows of a home without tenants.

    Args:
        state: Path of the state file, which is a part of it.
        administrator: Their id in that file; empty before the set-up.
    """
    text = f"{state}:{administrator or _BEFORE_SETUP}"
    return f"default:{hashlib.sha256(os.fsencode(text)).hexdigest()[:_ORGANISATION_DIGITS]}"
