"""The settings of a run: the global options and the environment, as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagewai_ops.home.paths import Home

SNAPSHOTS_VARIABLE = "SAGEWAI_OPS_SNAPSHOTS"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options of one run.

    Attributes:
        home_option: `--home` or its variable; None for the rules of Sagewai.
        configuration_path: The configuration file that was read, or None.
        environment: That of the process, completed by what the configuration sets for all
            commands. May contain keys and passwords, so it is never shown.
    """

    home_option: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    configuration_path: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def snapshots(self, home: "Home", option: Path | None = None) -> Path:
        """Find the snapshot directory as it is named: by the option, the variable, or the home."""
        named = option or self.environment.get(SNAPSHOTS_VARIABLE)
        return Path(named).expanduser().absolute() if named else home.snapshots
