"""Bring a home from one master key to another in one journaled step, or roll it back.

Three stores have to change together: a database, files and the key. So the table of tokens is made
durable first; then the database commits, the files are replaced, everything is checked, and the key
is written last. Each of these steps can be repeated and undone with the table alone: a recovery
needs no old key, and keeps what was written since.
"""

import contextlib
import fcntl
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path

from sagewai_ops.database.postgres.sessions import require_home_unused
from sagewai_ops.database.sqlite.companions import remove_companions
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import OpsError, UsageError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.journal import LeftValue, Recovery
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.home.paths import Home
from sagewai_ops.home.state_files import state_lock
from sagewai_ops.keys import postgres, rotation_journal
from sagewai_ops.keys.candidates import (
    ENVIRONMENT,
    KEYRING,
    Candidate,
    active_key,
    all_candidates,
    find_candidates,
    fingerprint,
)
from sagewai_ops.keys.inventory import database_server, sealed_values
from sagewai_ops.keys.reencrypt import reencrypt_values, replace_tokens, replace_tokens_in_database
from sagewai_ops.keys.rotation_journal import Journal
from sagewai_ops.keys.trial_decryption import Unopened
from sagewai_ops.process.signals import mark_completed, uninterrupted
from sagewai_ops.text import shell_word


class KeyState(Enum):
    """The file in the place of the new key."""

    OLD = "the same as before, or none as before"
    NEW = "the new key"
    MISSING = "removed since"
    UNKNOWN = "another file"


def require_writable(home: Home, journal: Journal) -> None:
    """Check that each directory is writable in which a file will be replaced.

    Raises:
        PermissionDeniedError: One is not.
    """
    files = [*journal.documents, *filter(None, [journal.database])]
    directories = [home.root, *((home.root / name).parent for name in files)]
    if journal.place:
        directories.append((home.root / journal.place).parent)
    atomic.require_writable(
        directory for directory in dict.fromkeys(directories) if directory.is_dir()
    )


def change_key(
    home: Home,
    journal: Journal,
    verify: Callable[[], None],
    *,
    server: PostgresUrl | None,
    wait_seconds: float,
) -> None:
    """Bring a home to the new key, verified; the caller has locked the home.

    Args:
        verify: Raises unless all that opened before opens with the new key, which is not in its
            place yet.
        server: Of `journal.server`.

    Raises:
        OpsError: The system refused, or the verification failed; everything is unchanged. Where
            the rollback was refused too, the journal stays and the hint names `recover`.
    """
    before = read_place(home.root, journal.place)
    with rotation_journal.written(home.root, journal):
        try:
            with translate_os_errors(home.root):
                apply(home, journal, server=server, wait_seconds=wait_seconds)
                verify()
                install(home, journal)
                with uninterrupted():
                    rotation_journal.forget(home.root)
                    mark_completed()
        except BaseException as error:
            try:
                with uninterrupted(), translate_os_errors(home.root):
                    _restore_key(home, journal, before)
                    roll_back(home, journal, server=server, wait_seconds=wait_seconds)
                    rotation_journal.forget(home.root)
            except OpsError as refusal:
                raise rotation_journal.stuck(home.root, refusal) from error
            raise


def recover(home: Home, environment: Mapping[str, str], *, wait_seconds: float = 0.0) -> Recovery:
    """Complete a pending key rotation, or roll it back if that fails; the caller has locked home.

    Raises:
        TargetBusyError: A process has the home or its database open.
        UsageError: It changed a database on a server, which the environment does not name.
        OpsError: The system refused both, or an unknown key is in the place of the new one; it can
            be run again.
    """
    journals = rotation_journal.journals(home.root)
    if not any(rotation_journal.is_pending(path) for path in journals):
        rotation_journal.sweep(home.root)
        return Recovery()
    journal = rotation_journal.read(home.root)
    refuse_unknown_key(home, journal)
    with rotation_journal.held(home.root):
        url = _server_for(home, environment, journal)
        require_home_unused(home, environment)
        sweep_partial_files(home, [home.root / name for name in journal.documents])
        try:
            closed = _complete(home, environment, journal, url, wait_seconds)
        except (OSError, OpsError) as error:
            if key_state(home, journal) is not KeyState.OLD:
                raise  # there may be no other key than the new one
            roll_back(home, journal, server=url, wait_seconds=wait_seconds)
            rotation_journal.forget(home.root)
            recovery = Recovery(
                rotation_journal.NAME, "rolled back", str(error), journal.old_fingerprint
            )
        else:
            _, steps = remaining_steps(home, environment, journal.new, journal.place)
            recovery = Recovery(
                rotation_journal.NAME,
                "completed",
                key_fingerprint=journal.new.fingerprint,
                left=tuple(LeftValue(value.place, value.where, value.reason) for value in closed),
                steps=steps,
            )
    rotation_journal.sweep(home.root)
    return recovery


def remaining_steps(
    home: Home, environment: Mapping[str, str], new: Candidate, place: str
) -> tuple[bool, tuple[str, ...]]:
    """Return whether Sagewai would use the new key as things are, and else what remains to be done.

    Args:
        place: The path of the new key, relative to the home; "" for none.
    """
    candidates = find_candidates(home, environment)
    own = active_key(candidates)
    if own and own.value == new.value:
        return True, ()
    sources = [candidate.source for candidate in candidates]
    steps = ["Sagewai would not use the new key yet: before it starts"]
    content = f"the content of {home.root / place}" if place else "the new key"
    if ENVIRONMENT in sources:
        steps.append(f"set {ENVIRONMENT} to {content}, in the environment of Sagewai's service")
        if place:
            steps.append(f"or unset {ENVIRONMENT} there: Sagewai then uses that file")
    elif KEYRING in sources:
        file = shell_word(home.root / place)
        source = f" < {file}" if place else "  # and enter the new key"
        steps.append(f"keyring set sagewai-master-key sealed{source}")
        if place:
            steps.append("or: keyring del sagewai-master-key sealed  # Sagewai then uses that file")
    else:
        steps.append(f"put the new key into {home.master_key}, mode 0600")
    return False, tuple(steps)


def _complete(
    home: Home,
    environment: Mapping[str, str],
    journal: Journal,
    url: PostgresUrl | None,
    wait_seconds: float,
) -> tuple[Unopened, ...]:
    """Complete a journal, with the values that were sealed under the old key since."""
    apply(home, journal, server=url, wait_seconds=wait_seconds)
    candidates = all_candidates(home, environment)
    late = reencrypt_values(sealed_values(home, environment), candidates, journal.new)
    if late.tokens:
        everything = {**journal.tokens, **late.tokens}
        rotation_journal.add_tokens(home.root, everything)
        journal = rotation_journal.read(home.root)
        apply(home, journal, server=url, wait_seconds=wait_seconds)
    install(home, journal)
    rotation_journal.forget(home.root)
    return late.report.closed


def _server_for(home: Home, environment: Mapping[str, str], journal: Journal) -> PostgresUrl | None:
    """Return the server that a journal is about.

    Raises:
        UsageError: The environment names another, or none.
    """
    url = database_server(home, environment) if home.server_url_variable else None
    shown = url.display if url else ""
    if shown != journal.server:
        raise UsageError(
            f"home {home.root}: database server {shown or 'not set'}, but the pending key rotation"
            f" is of {journal.server or 'no server'}",
            hint="export SAGEWAI_DATABASE_URL=...  # as when it began",
        )
    return url


def apply(home: Home, journal: Journal, *, server: PostgresUrl | None, wait_seconds: float) -> None:
    """Apply the table of tokens to every place; it can be repeated.

    Raises:
        OSError, OpsError: The system refused.
    """
    _apply(home, journal, journal.tokens, server, wait_seconds)


def roll_back(
    home: Home, journal: Journal, *, server: PostgresUrl | None, wait_seconds: float
) -> None:
    """Apply the table in reverse.

    Raises:
        OSError, OpsError: The system refused.
    """
    tokens = {new: old for old, new in journal.tokens.items()}
    _apply(home, journal, tokens, server, wait_seconds)


def install(home: Home, journal: Journal) -> None:
    """Write the new key to its place, mode 0600; the previous file is kept if the journal names it.

    Raises:
        OpsError: An unknown key is there.
        OSError: The system refused.
    """
    refuse_unknown_key(home, journal)
    if not journal.place:
        return
    there = read_place(home.root, journal.place)
    if there is not None and journal.kept_as and there != journal.new.value:
        _write_key(home.root / journal.kept_as, there)
    # Also if it is there already: its mode and owner are right then.
    _write_key(home.root / journal.place, journal.new.value)


def key_state(home: Home, journal: Journal) -> KeyState:
    """Return the state of the file in the place of the new key.

    Raises:
        OpsError: It cannot be read.
    """
    there = read_place(home.root, journal.place)
    now = fingerprint(there) if there is not None else ""
    if journal.place and there == journal.new.value:
        return KeyState.NEW
    if now == journal.replaces:
        return KeyState.OLD
    return KeyState.UNKNOWN if now else KeyState.MISSING


def refuse_unknown_key(home: Home, journal: Journal) -> None:
    """Refuse to overwrite a key that was written after the rotation began.

    It is unknown what it opens, and the old key may be lost.

    Raises:
        OpsError: There is one.
    """
    if key_state(home, journal) is KeyState.UNKNOWN:
        place = home.root / journal.place
        raise OpsError(
            f"{place}: neither the old key nor the new one, written after the rotation began",
            hint=f"{shlex.join(['mv', str(place), f'{place}.legacy-found'])}  # keeps it\n"
            f"sagewai-ops --home {shell_word(home.root)} recover",
        )


def read_place(root: Path, place: str) -> bytes | None:
    """Return the content of a key's place; None without a file.

    Raises:
        OpsError: It cannot be read.
    """
    path = root / place
    if not place or not os.path.lexists(path):
        return None
    with translate_os_errors(path):
        if not os.path.exists(path):  # a broken link
            return b""
        with open(beneath.open_file(path), "rb") as stream:
            return stream.read()


def sweep_partial_files(home: Home, documents: Sequence[Path]) -> None:
    """Remove the partial files of dead runs next to the documents and the key."""
    for path in (*documents, home.master_key, home.legacy_master_key):
        sweep_leftovers(path.parent, atomic.partial_names(re.escape(path.name)))


def _apply(
    home: Home,
    journal: Journal,
    tokens: Mapping[bytes, bytes],
    server: PostgresUrl | None,
    wait_seconds: float,
) -> None:
    # The step most likely to be refused is first: then there is nothing to undo.
    if journal.database and os.path.lexists(home.root / journal.database):
        database = home.root / journal.database
        remove_companions(database)
        replace_tokens_in_database(database, tokens, wait_seconds=wait_seconds)
    if server is not None:
        postgres.replace_tokens_on_server(server, tokens)
    with state_lock(home.admin_state, fcntl.LOCK_EX):
        for name in journal.documents:
            _substitute_in_file(home.root / name, tokens)


def _substitute_in_file(path: Path, tokens: Mapping[bytes, bytes]) -> None:
    """Replace a file by one with other tokens, of the same mode and owner."""
    try:
        descriptor = beneath.open_file(path)
    except FileNotFoundError:
        return  # a copy that was removed since
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        content = file.read()
    other = replace_tokens(content, tokens)
    if other != content:
        atomic.replace(path, other, mode=stat.S_IMODE(status.st_mode), owner=status)


def _write_key(place: Path, value: bytes) -> None:
    """Write a key for the owner of the previous file, or of the directory."""
    above = place.parent if place.parent.is_dir() else place.parent.parent
    atomic.make_directory(place.parent, owner=os.stat(above))
    atomic.replace(place, value, owner=os.stat(place if place.exists() else place.parent))


def _restore_key(home: Home, journal: Journal, before: bytes | None) -> None:
    if key_state(home, journal) is not KeyState.NEW:
        return
    place = home.root / journal.place
    if before is None:
        beneath.unlink(place)
        beneath.sync_directory(place.parent)
    else:
        _write_key(place, before)
    if journal.kept_as:
        with contextlib.suppress(FileNotFoundError):
            beneath.unlink(home.root / journal.kept_as)
