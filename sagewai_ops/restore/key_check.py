"""Find the master key that opens a snapshot's encrypted values, and install it.

A restored home without its key is worse than none: Sagewai creates a new key when it starts, and
the encrypted values stay unreadable. So a restore finds the key before it replaces anything, and
installs it where the home had it.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import KeyMissingError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.home.paths import LEGACY_MASTER_KEY, MASTER_KEY, Home
from sagewai_ops.keys.candidates import (
    KEY_FILE,
    Candidate,
    find_candidates,
    key_from_bytes,
    shown_source,
)
from sagewai_ops.keys.inventory import SERVER
from sagewai_ops.keys.locations import SealedValue
from sagewai_ops.keys.trial_decryption import SealedReport, Unopened, try_keys
from sagewai_ops.records import dataclass
from sagewai_ops.restore.plan import RestoreOptions, includes_secrets
from sagewai_ops.snapshots.member_paths import EXTERNAL_KEY, is_within

_KEY_BYTES = 4096  # a key has 44


@dataclass(frozen=True, slots=True)
class KeyChoice:
    """The key of the restored home.

    Attributes:
        key: The one from `--install-key`, else the home's previous one, else the one that opens
            the most values; None without any.
        candidates: All keys tried.
        keys: Values opened by each.
    """

    key: Candidate | None
    candidates: tuple[Candidate, ...]
    keys: SealedReport


def check_key(
    reader: ArchiveReader,
    documents: Mapping[str, bytes],
    target: Home,
    staged: Home,
    options: RestoreOptions,
    others: Iterable[SealedValue] = (),
) -> KeyChoice:
    """Check that every encrypted value can be opened, and return the key to use.

    Args:
        documents: Of the staged home.
        staged: The extracted home, before the swap.
        others: Values of the database on a server.

    Raises:
        KeyMissingError: Some cannot, and `without_key` is not set.
    """
    candidates = _candidates(target, staged, options)
    database = staged.database if staged.database.exists() else None
    keys = try_keys(documents, database, candidates, others=others)
    wanted = str(reader.header.facts.get("key_fingerprint") or "")
    if not options.without_key:
        _require_useful_file(candidates, keys, wanted, options)
        recorded = reader.manifest.facts.get("keys", {})
        closed = _closed(keys, recorded, to_sqlite=options.to_sqlite)
        if closed or (keys.total and not keys.opened):
            tried = ", ".join(
                f"{shown_source(candidate.source)} ({candidate.fingerprint})"
                for candidate in candidates
                if candidate.value
            )
            raise KeyMissingError(
                f"snapshot {reader.header.id}: no available key opens "
                f"{len(closed) or keys.total} of {keys.total} encrypted values, which need key "
                f"{wanted or 'unknown'}; tried {tried or 'none'}",
                hint="name the key: --install-key FILE\n"
                "or restore without it: --without-key  # Sagewai creates a new key when it starts",
            )
    return KeyChoice(_choose(candidates, keys, wanted), candidates, keys)


def check_database_key(
    reader: ArchiveReader,
    database: Path,
    target: Home,
    staged: Home,
    options: RestoreOptions,
    name: str,
) -> None:
    """Check that the key of a snapshot opens the encrypted values of another database.

    Args:
        name: Of the database, for the error.

    Raises:
        KeyMissingError: It does not, and `without_key` is not set.
    """
    wanted = str(reader.header.facts.get("key_fingerprint") or "")
    if options.without_key or not wanted:
        return  # `check_key` tries all keys
    keys = [key for key in _candidates(target, staged, options) if key.fingerprint == wanted]
    found = try_keys({}, database, keys)
    closed = _closed(found, reader.manifest.facts.get("keys", {}), to_sqlite=False)
    if closed:
        raise KeyMissingError(
            f"{name}: key {wanted} of snapshot {reader.header.id} does not open {len(closed)} of"
            f" {found.total} encrypted values, for example {closed[0].place} {closed[0].where}",
            hint="name the key: --install-key FILE\n"
            "or choose a moment before the key was rotated: --database-from litestream:TIMESTAMP",
        )


def install_keys(
    choice: KeyChoice, reader: ArchiveReader, target: Home, staged: Home, options: RestoreOptions
) -> bool:
    """Write the keys to the restored home that its snapshot does not contain.

    Returns:
        Whether the chosen key was among them.
    """
    if not includes_secrets(options):
        return False
    useful = {candidate.fingerprint for candidate in choice.keys.by_key}
    useful.add(str(reader.header.facts.get("key_fingerprint") or ""))
    installed = set()
    key = choice.key
    # Only root creates files for another owner.
    is_foreign = os.geteuid() == 0 and target.root.is_dir()
    home = os.stat(target.root if is_foreign else staged.root)
    if key and key.source == KEY_FILE:
        installed.add(_install(key, staged.master_key, home))
    for candidate in find_candidates(target, {}):
        # The target's key files keep their paths if the snapshot's values need them.
        path = staged.root / candidate.source
        if (
            candidate.fingerprint in useful
            and _is_replaced(candidate, options)
            and not os.path.lexists(path)
        ):
            installed.add(_install(candidate, path, home))
    if key is None:
        return False
    if key.is_file and key.value not in _key_values(staged):
        installed.add(_install(key, _key_path(reader, key, staged), home))
    return key.value in installed


def unused_keys(target: Home, staged: Home, options: RestoreOptions) -> list[Candidate]:
    """Return the keys in the target's files that open nothing in the snapshot."""
    if not includes_secrets(options):
        return []
    installed = _key_values(staged)
    return [
        candidate
        for candidate in find_candidates(target, {})
        if candidate.value and candidate.value not in installed and _is_replaced(candidate, options)
    ]


def _key_values(home: Home) -> set[bytes]:
    return {candidate.value for candidate in find_candidates(home, {})}


def _candidates(target: Home, staged: Home, options: RestoreOptions) -> tuple[Candidate, ...]:
    """Collect the keys that may open the values, the one from `--install-key` first."""
    found = list(find_candidates(staged, {}, key_file=options.key_file))
    external = staged.root / EXTERNAL_KEY
    if beneath.exists(external):
        with contextlib.suppress(OSError), open(beneath.open_file(external), "rb") as stream:
            found.append(key_from_bytes(EXTERNAL_KEY, stream.read(_KEY_BYTES)))
    found += find_candidates(target, dict(options.key_environment))
    if options.key_home and options.key_home.root != target.root:
        found += find_candidates(options.key_home, {})
    return tuple(found)


def _choose(candidates: tuple[Candidate, ...], keys: SealedReport, wanted: str) -> Candidate | None:
    named = [key for key in candidates if key.source == KEY_FILE]
    previous = [key for key in candidates if key.value and key.fingerprint == wanted]
    return next(iter([*named, *previous]), None) or keys.best(candidates)


def _require_useful_file(
    candidates: tuple[Candidate, ...], keys: SealedReport, wanted: str, options: RestoreOptions
) -> None:
    useful = {wanted, *(candidate.fingerprint for candidate in keys.by_key)}
    for key in candidates:
        if key.source == KEY_FILE and keys.total and key.fingerprint not in useful:
            raise KeyMissingError(
                f"key file {options.key_file}: {key.fingerprint} opens none of the {keys.total} "
                f"encrypted values, which need key {wanted or 'unknown'}",
                hint="omit --install-key to use the available keys",
            )


def _closed(keys: SealedReport, recorded: Mapping[str, Any], *, to_sqlite: bool) -> list[Unopened]:
    """Return the values that no key opens, except those that no key opened at the backup.

    Args:
        to_sqlite: Those of the server are in the home's own database.
    """
    prefix = SERVER if to_sqlite else ""
    unopened_at_backup = {
        (item["place"], item["where"].removeprefix(prefix)) for item in recorded.get("unopened", ())
    }
    return [item for item in keys.unopened if (item.place, item.where) not in unopened_at_backup]


def _key_path(reader: ArchiveReader, key: Candidate, staged: Home) -> Path:
    """Return the path for a key: at the root only where the home had one there and no other."""
    omitted = {item["path"] for item in reader.manifest.facts.get("left_out", ())}
    is_flat = LEGACY_MASTER_KEY in omitted and MASTER_KEY not in omitted
    if is_flat and key.source != KEY_FILE and not os.path.lexists(staged.legacy_master_key):
        return staged.legacy_master_key
    return staged.master_key


def _install(key: Candidate, path: Path, home: os.stat_result) -> bytes:
    """Write a key with mode 0600, preserving the directory's times; return the key.

    Args:
        home: The owner of a directory that has to be created.
    """
    if beneath.exists(path):
        with contextlib.suppress(OSError), open(beneath.open_file(path), "rb") as present:
            if present.read(len(key.value) + 1) == key.value:
                return key.value
    above = path.parent if beneath.exists(path.parent) else path.parent.parent
    times = beneath.status(above)
    owner = times if above == path.parent else home
    atomic.make_directory(path.parent, owner=owner)
    atomic.replace(path, key.value, owner=owner)
    beneath.set_times(above, times.st_mtime_ns, times.st_atime_ns)
    if key.path is not None:
        mtime_ns = os.stat(key.path).st_mtime_ns
        beneath.set_times(path, mtime_ns)
    return key.value


def _is_replaced(key: Candidate, options: RestoreOptions) -> bool:
    """Return whether the restore replaces a key file of the target."""
    parts = [part.strip("/") for part in options.only]
    return not parts or any(is_within(key.source, part) for part in parts)
