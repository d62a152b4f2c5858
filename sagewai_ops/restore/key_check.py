"""The gate of the keys: what is sealed in a snapshot must open, and its key must come along.

A home without the key that its values are under is worse than none: Sagewai makes a new key at its
start, and what is sealed stays closed. So a restore finds the key first, and installs it where the
home had it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import KeyMissingError
from sagewai_ops.fs import atomic
from sagewai_ops.home.paths import LEGACY_MASTER_KEY, MASTER_KEY, Home
from sagewai_ops.keys.candidates import KEY_FILE, Candidate, find_candidates, given
from sagewai_ops.keys.trial_decryption import SealedReport, Unopened, examine_keys
from sagewai_ops.restore.plan import RestoreOptions, as_mapping, includes_secrets
from sagewai_ops.snapshots.member_paths import EXTERNAL_KEY


@dataclass(frozen=True, slots=True)
class KeyChoice:
    """Which key the restored home runs on.

    Attributes:
        key: The one that was asked for, else the one that the home had, else the one that opens
            the most; None if there is none of these.
        candidates: All that were tried.
        keys: What each opens.
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
) -> KeyChoice:
    """Make sure that the sealed values will open.

    Args:
        documents: Of the staged home.
        staged: The home as it is in the snapshot, not yet in its place.

    Raises:
        KeyMissingError: They will not, and `without_key` was not asked for.
    """
    candidates = _candidates(target, staged, options)
    database = staged.database if staged.database.exists() else None
    keys = examine_keys(documents, database, candidates)
    wanted = str(reader.header.facts.get("key_fingerprint") or "")
    if not options.without_key:
        _refuse_useless_file(candidates, keys, wanted, options)
        closed = _closed(keys, as_mapping(reader.manifest.facts.get("keys")))
        if closed or (keys.total and not keys.opened):
            tried = ", ".join(
                f"{one.source} ({one.fingerprint})" for one in candidates if one.value
            )
            raise KeyMissingError(
                f"snapshot {reader.header.id}: {len(closed) or keys.total} of {keys.total} sealed "
                f"values open with no key at hand, theirs is {wanted or 'unknown'}, "
                f"tried {tried or 'none'}",
                hint="name the key: --install-key FILE\n"
                "or leave them sealed: --without-key  # Sagewai will make a new key at its start",
            )
    return KeyChoice(_chosen(candidates, keys, wanted), candidates, keys)


def install_keys(
    opening: KeyChoice, reader: ArchiveReader, target: Home, staged: Home, options: RestoreOptions
) -> bool:
    """Put the keys into the restored home that are in files which will not be there.

    Returns:
        Whether the key that it runs on was among them.
    """
    if not includes_secrets(options):
        return False
    useful = {one.fingerprint for one in opening.keys.opened_by}
    useful.add(str(reader.header.facts.get("key_fingerprint") or ""))
    installed = set()
    own = find_candidates(target, {})
    # Without root all of it is ours anyway.
    is_theirs = os.geteuid() == 0 and target.root.is_dir()
    home = os.stat(target.root if is_theirs else staged.root)
    if opening.key and opening.key.source == KEY_FILE:
        installed.add(_install(opening.key, staged.master_key, home))
    for candidate in own:
        # The target's own files keep their places, as far as the snapshot's values need them.
        place = staged.root / candidate.source
        if (
            candidate.fingerprint in useful
            and _is_exchanged(candidate, options)
            and not os.path.lexists(place)
        ):
            installed.add(_install(candidate, place, home))
    key = opening.key
    if key is None:
        return False
    if key.is_file and key.value not in {one.value for one in find_candidates(staged, {})}:
        installed.add(_install(key, _place(reader, key, staged), home))
    return key.value in installed


def unused_keys(target: Home, staged: Home, options: RestoreOptions) -> list[Candidate]:
    """List the keys in the target's own files that do not come along: they open nothing here."""
    if not includes_secrets(options):
        return []
    brought = {one.value for one in find_candidates(staged, {})}
    return [
        one
        for one in find_candidates(target, {})
        if one.value and one.value not in brought and _is_exchanged(one, options)
    ]


def _candidates(target: Home, staged: Home, options: RestoreOptions) -> tuple[Candidate, ...]:
    """Collect the keys that may open the values, the one that is asked for first."""
    found = list(find_candidates(staged, {}, key_file=options.key_file))
    older = staged.root / EXTERNAL_KEY
    if older.is_file():
        found.append(given(EXTERNAL_KEY, older.read_bytes()))
    found += find_candidates(target, dict(options.key_environment))
    if options.key_home and options.key_home.root != target.root:
        found += find_candidates(options.key_home, {})
    return tuple(found)


def _chosen(candidates: tuple[Candidate, ...], keys: SealedReport, wanted: str) -> Candidate | None:
    named = [one for one in candidates if one.source == KEY_FILE]
    had = [one for one in candidates if one.value and one.fingerprint == wanted]
    return next(iter([*named, *had]), None) or keys.best(candidates)


def _refuse_useless_file(
    candidates: tuple[Candidate, ...], keys: SealedReport, wanted: str, options: RestoreOptions
) -> None:
    useful = {wanted, *(one.fingerprint for one in keys.opened_by)}
    for one in candidates:
        if one.source == KEY_FILE and keys.total and one.fingerprint not in useful:
            raise KeyMissingError(
                f"key file {options.key_file}: {one.fingerprint} opens none of the {keys.total} "
                f"sealed values, theirs is {wanted or 'unknown'}",
                hint="name the right one, or leave it away to use the keys at hand",
            )


def _closed(keys: SealedReport, recorded: Mapping[str, Any]) -> list[Unopened]:
    """List what no key opens, without what none opened when the snapshot was taken."""
    before = recorded.get("unopened")
    hopeless = {
        (str(item.get("place")), str(item.get("where")))
        for item in (before if isinstance(before, list) else ())
        if isinstance(item, dict)
    }
    return [item for item in keys.unopened if (item.place, item.where) not in hopeless]


def _place(reader: ArchiveReader, key: Candidate, staged: Home) -> Path:
    """Choose where a key goes: to the root only where the home had one there and no other."""
    left_out = reader.manifest.facts.get("left_out")
    had = {
        item.get("path")
        for item in (left_out if isinstance(left_out, list) else ())
        if isinstance(item, dict)
    }
    is_flat = LEGACY_MASTER_KEY in had and MASTER_KEY not in had
    if is_flat and key.source != KEY_FILE and not os.path.lexists(staged.legacy_master_key):
        return staged.legacy_master_key
    return staged.master_key


def _install(key: Candidate, place: Path, home: os.stat_result) -> bytes:
    """Write a key, as 44 characters that only the owner may read; directory times stay.

    Args:
        home: The directory of the home, whose owner gets a directory that has to be made.
    """
    if place.exists() and not place.is_symlink() and place.read_bytes() == key.value:
        return key.value
    above = place.parent if place.parent.is_dir() else place.parent.parent
    times = os.stat(above)
    owner = times if above == place.parent else home
    atomic.make_directory(place.parent, owner=owner)
    atomic.replace(place, key.value, owner=owner)
    os.utime(above, ns=(times.st_atime_ns, times.st_mtime_ns))
    if key.path is not None:
        moment_ns = os.stat(key.path).st_mtime_ns
        os.utime(place, ns=(moment_ns, moment_ns))
    return key.value


def _is_exchanged(own: Candidate, options: RestoreOptions) -> bool:
    """Tell whether a key file of the target is in what is exchanged."""
    parts = [part.strip("/") for part in options.only]
    path = own.source
    return not parts or any(path == part or path.startswith(part + "/") for part in parts)
