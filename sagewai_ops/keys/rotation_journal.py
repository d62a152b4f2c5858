"""The journal of a key rotation, so that the run after a killed one can complete or roll it back.

A private directory at the top of the home has the new key, the table of tokens and, written last,
the journal. Without a journal nothing in the home was changed and the directory is garbage. With
one, values may be under either key: every other command refuses until the table was applied to
all places, or reversed in all. No plaintext is in it, and no key but the new one.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from pathlib import Path

from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.fs.journal import Operation, Recovery
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.fs.trust import is_trusted
from sagewai_ops.home.paths import LEGACY_MASTER_KEY, MASTER_KEY, OWN_PREFIX, Home
from sagewai_ops.keys.candidates import Candidate, key_from_bytes
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

DIRECTORY = f"{OWN_PREFIX}rotation"
NAME: Operation = "key rotation"
NEW_KEY = "the new key"  # as a candidate's source
_JOURNAL, _TOKENS, _KEY = "journal.json", "tokens.jsonl", "master.key"
_DRAFT = "journal.partial"
_KEY_BYTES = 4096  # a key has 44


@dataclass(frozen=True, slots=True)
class Journal:
    """A key rotation.

    Attributes:
        old_fingerprint: Of the key that the home used before.
        new: The key that it is to use.
        tokens: Old to new.
        documents: The files that contain some, relative to the home; absolute where outside.
        database: The home's database, likewise; "" without one.
        server: The database on a server, as messages name it; "" without one.
        place: The path of the new key, relative to the home; "" for none.
        replaces: The fingerprint of the file at `place`, whatever it contains; "" without one.
        kept_as: Where that file is kept, relative to the home; "" if it is in a snapshot.
        left: The number of values that no key opens, which stay unchanged.
    """

    old_fingerprint: str
    new: Candidate = field(repr=False)
    tokens: Mapping[bytes, bytes] = field(repr=False)
    documents: tuple[str, ...]
    database: str
    server: str
    place: str
    replaces: str
    kept_as: str
    left: int = 0


@contextlib.contextmanager
def written(root: Path, journal: Journal) -> Iterator[None]:
    """Write the journal, durable, and lock it; the block calls `forget` once it is settled.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused; there is no journal.
    """
    directory = root / DIRECTORY
    try:
        atomic.make_directory(directory)
        with (
            held(root),
            fs_journal.recording(directory / _JOURNAL, NAME, draft=directory / _DRAFT) as write,
        ):
            atomic.replace(directory / _KEY, journal.new.value)
            add_tokens(root, journal.tokens)
            content = asdict(journal)
            del content["new"], content["tokens"]
            try:
                write(content | {"fingerprint": journal.new.fingerprint})
            except BaseException as error:
                # It may have its name without being durable; nothing in it was begun.
                try:
                    with contextlib.suppress(FileNotFoundError):
                        beneath.unlink(directory / _JOURNAL)
                except OSError as refusal:
                    raise stuck(root, from_os_error(refusal, directory)) from error
                raise
            yield
    finally:
        _discard(directory)


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Lock the directory for the length of the block: its run is alive."""
    with translate_os_errors(root / DIRECTORY):
        descriptor = beneath.open_directory(root / DIRECTORY)
    try:
        locks.mark_alive(descriptor)
        yield
    finally:
        os.close(descriptor)


def stuck(root: Path, refusal: OpsError) -> OpsError:
    """Return a refusal as the error of a rotation that leaves its journal."""
    return type(refusal)(
        f"{root}: key rotation neither completed nor rolled back, {refusal.message}",
        hint=f"sagewai-ops --home {shell_word(root)} recover",
    )


def add_tokens(root: Path, tokens: Mapping[bytes, bytes]) -> None:
    """Write the table, or replace it.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused; it is unchanged.
    """
    with atomic.write_stream(root / DIRECTORY / _TOKENS) as stream:
        for old, new in tokens.items():
            stream.write(json.dumps([old.decode(), new.decode()]).encode() + b"\n")


def read(root: Path) -> Journal:
    """Read the journal, the table and the new key.

    Raises:
        OpsError: They cannot be read or used, or another user may have written them.
    """
    directory = root / DIRECTORY
    try:
        fs_journal.require_own_directory(directory)
        content = fs_journal.read(directory / _JOURNAL, NAME)
        with open(beneath.open_file(directory / _KEY), "rb") as key:
            new = key_from_bytes(NEW_KEY, key.read(_KEY_BYTES))
        if not new.value or new.fingerprint != content.pop("fingerprint"):
            raise ValueError("another key than the journal's")  # noqa: TRY301 - handled below
        with open(beneath.open_file(directory / _TOKENS), "rb") as lines:
            pairs = [json.loads(line) for line in lines]
        tokens = {old.encode(): other.encode() for old, other in pairs}
        documents = tuple(content.pop("documents"))
        keys = {os.path.realpath(root / name) for name in (MASTER_KEY, LEGACY_MASTER_KEY)}
        for name in (content["place"], content["kept_as"]):
            if name not in keys:  # where the key is a link to another disk
                fs_journal.require_inside(name)
        return Journal(new=new, tokens=tokens, documents=documents, **content)
    except OSError as error:
        raise from_os_error(error, directory) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise fs_journal.unusable(directory / _JOURNAL, NAME, error) from error


def forget(root: Path) -> None:
    """Remove the journal: from here on the home is under one key, and the rest is garbage.

    Raises:
        OSError: The system refused.
    """
    fs_journal.remove(root / DIRECTORY / _JOURNAL)


def journals(root: Path) -> list[Path]:
    """Return the journal of a home's key rotation, if there is one."""
    directory = root / DIRECTORY
    path = directory / _JOURNAL
    if not fs_journal.trusted([directory]):
        return []
    # Another user's directory may have one.
    is_closed = not os.access(directory, os.R_OK | os.X_OK)
    return [path] if is_closed or os.path.lexists(path) else []


def is_pending(path: Path) -> bool:
    """Return whether a journal is that of a dead run."""
    return not fs_journal.is_live(path.parent)


def sweep(root: Path) -> list[str]:
    """Remove the directory of a dead run without a journal; return its name."""
    directory = root / DIRECTORY
    return _discard(directory) if beneath.exists(directory) and is_trusted(directory) else []


@uninterrupted()
def _discard(directory: Path) -> list[str]:
    if not beneath.exists(directory) or beneath.exists(directory / _JOURNAL):
        return []
    if not locks.is_abandoned(directory):
        return []
    with contextlib.suppress(OSError):
        remove_tree(directory)
        return [DIRECTORY]
    return []


def recover(home: Home, environment: Mapping[str, str], wait_seconds: float) -> Recovery:
    """Complete a pending key rotation, or roll it back; as `rotation.recover`."""
    from sagewai_ops.keys import rotation  # the journal is asked for far more often

    return rotation.recover(home, environment, wait_seconds=wait_seconds)
