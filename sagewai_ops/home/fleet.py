"""The organisation of a home's fleet rows, in an installation with one organisation.

Sagewai derives its id from the path of the state file, so a home that moves loses access to its
rows: `default:` and 16 hex digits of the SHA-256 of `<path of the state file>:<administrator's
id>`.
"""

import hashlib
import os
from pathlib import Path

_BEFORE_SETUP = "default"  # in place of the administrator
_ORGANISATION_DIGITS = 16


def fleet_organisation(state: Path, administrator: str) -> str:
    """Return the organisation id of the fleet rows of a home without tenants.

    Args:
        state: The path of the state file.
        administrator: The id in that file; empty before the set-up.
    """
    text = f"{state}:{administrator or _BEFORE_SETUP}"
    return f"default:{hashlib.sha256(os.fsencode(text)).hexdigest()[:_ORGANISATION_DIGITS]}"
