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
        configuration_path: The configuration file that was read; None if there is none.
        environment: The process's, and below it what the configuration sets for all commands.
            May hold keys and passwords, so it is never shown.
    """

    home_option: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    configuration_path: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
