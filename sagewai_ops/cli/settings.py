"""The settings of a run: the global options and the environment, as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.remote.path import is_remote, parse_place

if TYPE_CHECKING:
    from sagewai_ops.home.paths import Home
    from sagewai_ops.remote.address import Address
    from sagewai_ops.remote.store import Store

SNAPSHOTS_VARIABLE = "SAGEWAI_OPS_SNAPSHOTS"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options of one run.

    Attributes:
        home_option: `--home` or its variable; None for the rules of Sagewai.
        configuration_path: The configuration file that was read, or None.
        environment: That of the process, completed by what the configuration sets for all
            commands. May contain keys and passwords, so it is never shown.
        limit_upload, limit_download: Of remote places, in KiB per second; None without.
        remotes: The tables `[remote.NAME]` of the configuration, by name.
    """

    home_option: Path | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    configuration_path: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    remotes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limit_upload: int | None = None
    limit_download: int | None = None

    def snapshots(self, home: "Home", option: Path | None = None) -> Path:
        """Find the snapshot directory as it is named: by the option, the variable, or the home."""
        variable = self.environment.get(SNAPSHOTS_VARIABLE)
        named = option or (parse_place(variable) if variable else None)
        return self.bound(named).expanduser().absolute() if named else home.snapshots

    def bound(self, path: Path) -> Path:
        """Return a path; that of a remote place opens it with these settings."""
        if is_remote(path):
            address = path.place.address
            path.place.connect = lambda: self._open(address)
        return path

    def retention_of(self, path: Path) -> dict[str, Any]:
        """Return the rules of a place of the configuration, such as `keep_last`; {} without any."""
        from sagewai_ops.cli.remote_tables import rules_of

        name, separator, _below = str(path).partition(":")
        return rules_of(self.remotes.get(name, {})) if separator and is_remote(path) else {}

    def address_of(self, text: str) -> "Address":
        """Parse a URL, or a name of the configuration.

        Raises:
            UsageError: It is neither.
        """
        from sagewai_ops.cli.remote_tables import without_rules
        from sagewai_ops.remote.address import parse_address

        tables = {name: without_rules(table) for name, table in self.remotes.items()}
        return parse_address(text, tables)

    def _open(self, address: str) -> "Store":
        from sagewai_ops.remote.address import open_store
        from sagewai_ops.remote.limits import limit_store
        from sagewai_ops.remote.marker import require_marker

        store = open_store(self.address_of(address), self.environment)
        require_marker(store)
        return limit_store(store, upload_kib=self.limit_upload, download_kib=self.limit_download)
