"""The settings of a run: the global options and the environment, as one frozen value."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.errors import OpsError, UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote, parse_place

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

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
        repository: Of `--engine` and `--repository`; None without.
        repository_password: Returns the password of every repository of the run; None to leave it
            to the engine's own variables.
        work_dir: Where a tree of a repository is written for a while; None for next to the home.
        key_file: With a key of the home, for the metadata files of a repository.
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
    repository: Path | None = None
    repository_password: Callable[[], str] | None = field(default=None, repr=False)
    work_dir: Path | None = None
    key_file: Path | None = None

    def snapshots(self, home: "Home", option: Path | None = None) -> Path:
        """Find the snapshot directory as it is named: by an option, the variable, or the home.

        Raises:
            UsageError: Two options name one.
        """
        if self.repository:
            if option:
                raise UsageError("--repository: contradicts --snapshots")
            return self.bound(self.repository, home)
        return self.directory(home, option)

    def directory(self, home: "Home", option: Path | None = None) -> Path:
        """Do as `snapshots`, without `--repository`."""
        variable = self.environment.get(SNAPSHOTS_VARIABLE)
        named = option or (parse_place(variable) if variable else None)
        return self.bound(named, home).expanduser().absolute() if named else home.snapshots

    def bound(self, path: Path, home: "Home") -> Path:
        """Return a path; that of a remote place opens it with these settings."""
        if is_remote(path):
            place, text = path.place, path.place.address
            place.connect = lambda: self._open(text)
            with contextlib.suppress(OpsError):  # which `connect` raises too
                place.has_trees = self.address_of(text).is_repository
            if place.has_trees:
                place.connect = lambda: self._open_repository(text, path, home)
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

    def _open_repository(self, text: str, path: Path, home: "Home") -> "Store":
        from sagewai_ops.engines.repository import Connection, RepositoryStore
        from sagewai_ops.fs import locks
        from sagewai_ops.remote.address import find_repository
        from sagewai_ops.snapshots import catalog
        from sagewai_ops.snapshots.scratch import scratch_directory, work_parent
        from sagewai_ops.snapshots.trust import find_genuine

        def scratch() -> "AbstractContextManager[Path]":
            parent = work_parent(home.root, self.work_dir, snapshots=path)
            # What a killed run left: with a new home, no snapshot directory has a link to it.
            with contextlib.suppress(OSError, OpsError), locks.sweep_guard(parent):
                catalog.sweep(parent)
            return scratch_directory(parent, home.snapshots)

        address = self.address_of(text)
        return RepositoryStore(
            Connection(
                address.scheme,
                address.shown,
                find_repository(address, self.environment),
                self.environment,
                self.repository_password,
                self.limit_upload,
                self.limit_download,
            ),
            scratch,
            find_genuine(home, self.environment, self.key_file),
        )
