"""What every command is told: the global flags and the environment, as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SNAPSHOTS_VARIABLE = "SAGEWAI_OPS_SNAPSHOTS"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options of one run.

    Attributes:
        home_option: `--home` or its variable; None leaves the choice to Sagewai's own rules.
        environment: May hold keys and passwords, so it is never shown.
    """

    home_option: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
