"""Bring a home from one master key to another in one journaled step, or back.

Three stores have to change together: a database, files, and the key. So the table of tokens is made
durable first; then the database commits, the files are replaced, everything is looked at again, and
the key comes last. Each of these can be done again and can be taken back, by the table alone: a run
that finds the journal of a dead one needs no old key, and whatever was written meanwhile stays.
"""

import errno
import fcntl
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path

from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.home.paths import Home
from sagewai_ops.home.state_files import state_lock
from sagewai_ops.keys import rotation_journal
from sagewai_ops.keys.candidates import fingerprint
from sagewai_ops.keys.postgres import substitute_on_server
from sagewai_ops.keys.reencrypt import substitute_in_database, substituted
from sagewai_ops.keys.rotation_journal import Journal
from sagewai_ops.text import shell_word


class Standing(Enum):
    """What stands in the place that a journal gives to the new key."""

    OLD = "what stood there before, or nothing as before"
    NEW = "the new key"
    GONE = "nothing, where something was"
    STRANGE = "something else"


def require_writable(home: Home, journal: Journal) -> None:
    """Check that every directory may be written in which something is to be replaced.

    Raises:
        PermissionDeniedError: One may not.
    """
    files = [*journal.documents, *filter(None, [journal.database])]
    directories = [home.root, *((home.root / name).parent for name in files)]
    if journal.place:
        directories.append((home.root / journal.place).parent)
    atomic.require_writable(
        directory for directory in dict.fromkeys(directories) if directory.is_dir()
    )


def carry_out(
    home: Home,
    journal: Journal,
    verify: Callable[[], None],
    *,
    server: PostgresUrl | None,
    wait_seconds: float,
) -> None:
    """Go to the new key, proved; the caller holds the home.

    Args:
        verify: Raises unless all that opened before opens with the new key; the new key is not yet
            in its place.
        server: Of `journal.server`.

    Raises:
        OpsError: The system refused, or the proof failed; everything is as it was. Where even that
            was refused, the journal stays and the hint says how to go on.
    """
    before = read_place(home.root, journal.place)
    with rotation_journal.written(home.root, journal):
        try:
            with translate_os_errors(home.root):
                forward(home, journal, server=server, wait_seconds=wait_seconds)
                verify()
                install(home, journal)
                rotation_journal.forget(home.root)
        except BaseException as error:
            try:
                with translate_os_errors(home.root):
                    _put_back_key(home, journal, before)
                    back(home, journal, server=server, wait_seconds=wait_seconds)
                    rotation_journal.forget(home.root)
            except OpsError as refusal:
                raise rotation_journal.stuck(home.root, refusal) from error
            raise


def forward(
    home: Home, journal: Journal, *, server: PostgresUrl | None, wait_seconds: float
) -> None:
    """Apply the table of tokens to every place; twice is as once.

    Raises:
        OSError, OpsError: The system refused.
    """
    _apply(home, journal, journal.tokens, server, wait_seconds)


def back(home: Home, journal: Journal, *, server: PostgresUrl | None, wait_seconds: float) -> None:
    """Apply the table backwards.

    Raises:
        OSError, OpsError: The system refused.
    """
    tokens = {new: old for old, new in journal.tokens.items()}
    _apply(home, journal, tokens, server, wait_seconds)


def install(home: Home, journal: Journal) -> None:
    """Put the new key in its place, 0600; what stands there is kept if the journal says so.

    Raises:
        OpsError: Something else came to stand there meanwhile.
        OSError: The system refused.
    """
    refuse_strangers(home, journal)
    if not journal.place:
        return
    there = read_place(home.root, journal.place)
    if there is not None and journal.kept_as and there != journal.new.value:
        _own(home.root / journal.kept_as, there)
    # Once more where it is there already: its mode and owner are right then.
    _own(home.root / journal.place, journal.new.value)


def standing(home: Home, journal: Journal) -> Standing:
    """Tell what stands in the place of the new key.

    Raises:
        OpsError: It cannot be read.
    """
    there = read_place(home.root, journal.place)
    now = fingerprint(there) if there is not None else ""
    if journal.place and there == journal.new.value:
        return Standing.NEW
    if now == journal.replaces:
        return Standing.OLD
    return Standing.STRANGE if now else Standing.GONE


def refuse_strangers(home: Home, journal: Journal) -> None:
    """Make sure that no key would be written over that somebody put there since.

    Neither way would be right then: what it opens is not known, and with it the old key may be
    gone.

    Raises:
        OpsError: There is one.
    """
    if standing(home, journal) is Standing.STRANGE:
        place = home.root / journal.place
        raise OpsError(
            f"{place}: holds neither the old key nor the new one, somebody put it there meanwhile",
            hint=f"{shlex.join(['mv', str(place), f'{place}.legacy-found'])}  # keeps it\n"
            f"sagewai-ops --home {shell_word(home.root)} keys rotate --recover",
        )


def read_place(root: Path, place: str) -> bytes | None:
    """Read what stands in a key's place; None for nothing.

    Raises:
        OpsError: It cannot be read.
    """
    path = root / place
    if not place or not os.path.lexists(path):
        return None
    with translate_os_errors(path):
        if not os.path.exists(path):  # a link that leads nowhere
            return b""
        if not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return path.read_bytes()


def sweep_halves(home: Home, documents: Iterator[Path] | list[Path]) -> None:
    """Remove what runs that died had half written beside the documents and the key."""
    for path in (*documents, home.master_key, home.legacy_master_key):
        sweep_leftovers(path.parent, atomic.partial_names(re.escape(path.name)))


def _apply(
    home: Home,
    journal: Journal,
    tokens: Mapping[bytes, bytes],
    server: PostgresUrl | None,
    wait_seconds: float,
) -> None:
    # What is refused most easily comes first: then there is nothing to take back.
    if journal.database and os.path.lexists(home.root / journal.database):
        database = home.root / journal.database
        substitute_in_database(database, tokens, wait_seconds=wait_seconds)
    if server is not None:
        substitute_on_server(server, tokens)
    with state_lock(home.admin_state, fcntl.LOCK_EX):
        for name in journal.documents:
            _substitute_in_file(home.root / name, tokens)


def _substitute_in_file(path: Path, tokens: Mapping[bytes, bytes]) -> None:
    """Replace a file by one with other tokens, of the same mode and owner."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return  # a copy that somebody removed meanwhile
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        content = file.read()
    other = substituted(content, tokens)
    if other != content:
        atomic.replace(path, other, mode=stat.S_IMODE(status.st_mode), owner=status)


def _own(place: Path, value: bytes) -> None:
    """Write a key for the owner of what stands there, or of the directory."""
    above = place.parent if place.parent.is_dir() else place.parent.parent
    atomic.make_directory(place.parent, owner=os.stat(above))
    atomic.replace(place, value, owner=os.stat(place if place.exists() else place.parent))


def _put_back_key(home: Home, journal: Journal, before: bytes | None) -> None:
    if standing(home, journal) is not Standing.NEW:
        return
    place = home.root / journal.place
    if before is None:
        place.unlink()
        atomic.sync_directory(place.parent)
    else:
        _own(place, before)
    if journal.kept_as:
        (home.root / journal.kept_as).unlink(missing_ok=True)
