"""How a snapshot is encrypted if its command names no recipient.

A plain archive is not written next to encrypted ones by accident: a nightly backup that lost its
option fails, and an automatic snapshot is encrypted to the recipients of the newest one. Others may
write metadata files, so recorded recipients count only with an HMAC under a master key of the home.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagewai_ops.archive.age import Encryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.errors import UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.home.paths import Home
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots.cards import is_authentic
from sagewai_ops.snapshots.catalog import Snapshot, list_snapshots
from sagewai_ops.snapshots.mark import read_mark
from sagewai_ops.snapshots.ownership import home_ids
from sagewai_ops.snapshots.trust import keys_of
from sagewai_ops.text import shell_word

FIELD = "recipients"  # of a metadata file


def has_plain_history(home: Home, directory: Path, environment: Mapping[str, str]) -> bool:
    """Return whether the home's newest snapshot in a remote place is its own and not encrypted."""
    newest = _newest(home, directory)
    return newest is not None and _is_own(home, directory, newest, environment)


def with_encryption(home: Home, directory: Path, options: BackupOptions) -> BackupOptions:
    """Return the options, encrypted like the newest snapshot of the home in a directory.

    Raises:
        UsageError: That one is encrypted, and this one would not be.
    """
    if options.encryption or options.unencrypted:
        return options
    newest = _newest(home, directory)
    if newest is None:
        return options
    if not newest.is_encrypted:
        is_own = options.is_automatic and _is_own(home, directory, newest, options.key_environment)
        return replace(options, allow_clear=options.allow_clear or is_own)
    if options.is_automatic:
        keys = keys_of(home, options.key_environment)
        if recipients := _recorded(newest, keys):
            return replace(options, encryption=Encryption(recipients=recipients))
    raise UsageError(
        f"snapshot directory {directory}: the newest snapshot {newest.id} is encrypted, this one"
        " would not be",
        hint=f"sagewai-ops backup --snapshots {shell_word(directory)} --recipient age1..."
        "  # or --recipients-file, or --unencrypted",
    )


def record(
    snapshot_id: str, encryption: Encryption | None, key: AuthenticationKey | None
) -> Mapping[str, Any]:
    """Return the field of a metadata file with the recipients, for later automatic snapshots."""
    if encryption is None or not encryption.recipients or key is None:
        return {}
    facts = {"id": snapshot_id, "keys": list(encryption.recipients)}
    return {FIELD: {**facts, "mac": key.record_mac(FIELD, facts)}}


def _is_own(home: Home, directory: Path, newest: Snapshot, environment: Mapping[str, str]) -> bool:
    """Return whether this home wrote its newest snapshot, which is not encrypted.

    In a remote place others may write, too: a plain archive allows more of them only with the HMAC
    of this home.
    """
    mark = read_mark(home, directory, environment)
    is_newest = not mark or newest.sequence >= mark.sequence
    is_plain = not newest.is_encrypted
    return is_plain and is_newest and is_authentic(newest.card, keys_of(home, environment))


def _newest(home: Home, directory: Path) -> Snapshot | None:
    """Return the newest snapshot of a home whose file no other user can have planted."""
    ids, trusted = set(home_ids(home)), {0, os.geteuid()}
    # An encrypted one without a metadata file may be of any home.
    own = [
        item
        for item in list_snapshots(directory)
        if item.home_id in ids or (item.is_encrypted and not item.home_id)
    ]
    for snapshot in reversed(own):
        if is_remote(snapshot.path):  # others can only make the backup fail
            return snapshot
        try:
            if beneath.status(snapshot.path).st_uid in trusted:
                return snapshot
        except FileNotFoundError:
            continue
    return None


def _recorded(snapshot: Snapshot, keys: Iterable[AuthenticationKey]) -> tuple[str, ...]:
    recorded = snapshot.card.get(FIELD, {})
    listed, mac = recorded.get("keys"), recorded.get("mac")
    if not isinstance(listed, list) or not isinstance(mac, str) or not mac.isascii():
        return ()
    facts = {"id": snapshot.id, "keys": listed}
    if any(hmac.compare_digest(mac, key.record_mac(FIELD, facts)) for key in keys):
        return tuple(map(str, listed))
    return ()
