"""What a rotation under way writes down, so that a run that dies can be finished or taken back.

A private directory at the top of the home holds the new key, the table of tokens, and last of all
the journal. Without a journal nothing of the home was changed, and the directory is garbage. With
one, the values may be under either key: everything else refuses until the table was applied to all
places, or backwards to all. No plaintext is in it, and no key but the new one.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sagewai_ops.errors import LockedError, OpsError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.keys.candidates import Candidate, given
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.text import shell_word

NAME = f"{OWN_PREFIX}rotation"
NEW_KEY = "the new key"  # as a candidate's source
_JOURNAL, _TOKENS, _KEY = "journal.json", "tokens.jsonl", "master.key"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Journal:
    """A rotation under way.

    Attributes:
        old_fingerprint: Of the key that the home ran on.
        new: The key that it is to run on.
        tokens: Old to new.
        documents: The files that hold some, relative to the home; absolute where outside.
        database: The home's database, likewise; "" if there is none.
        server: The database on a server, as messages name it; "" if there is none.
        place: Where the new key goes, relative to the home; "" for nowhere.
        replaces: The fingerprint of what stands in that place, whatever it is; "" for nothing.
        kept_as: Where what stands there is kept, relative to the home; "" if it is in a snapshot.
        left: How many values no key opens, which stay as they are.
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


def is_pending(root: Path) -> bool:
    """Tell whether a rotation of a home died between one key and the other."""
    directory = root / NAME
    if not os.path.lexists(directory):
        return False
    if not os.access(directory, os.R_OK | os.X_OK):
        return True  # another user's, who alone can tell
    return os.path.lexists(directory / _JOURNAL) and locks.is_abandoned(directory)


def require_settled(root: Path) -> None:
    """Refuse to go on with a home whose values may be under two keys.

    Raises:
        LockedError: A rotation was interrupted.
    """
    if is_pending(root):
        raise LockedError(
            f"home {root}: a rotation of its key was interrupted before it ended",
            hint=f"sagewai-ops --home {shell_word(root)} keys rotate --recover",
        )


@contextlib.contextmanager
def written(root: Path, journal: Journal) -> Iterator[None]:
    """Write everything down, durable, and hold it; what is settled in the block calls `forget`.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused; there is no journal.
    """
    directory = root / NAME
    try:
        atomic.make_directory(directory)
        with held(root):
            atomic.replace(directory / _KEY, journal.new.value)
            add_tokens(root, journal.tokens)
            document = asdict(journal)
            del document["new"], document["tokens"]
            document |= {"version": _VERSION, "fingerprint": journal.new.fingerprint}
            try:
                atomic.replace(directory / _JOURNAL, json.dumps(document, indent=1).encode())
            except BaseException as error:
                # It may have its name and not be durable; nothing that it speaks of was begun.
                try:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(directory / _JOURNAL)
                except OSError as refusal:
                    raise stuck(root, from_os_error(refusal, directory)) from error
                raise
            yield
    finally:
        with contextlib.suppress(OSError):
            sweep(root)


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
    """Show others that the journal's run is alive, for the length of the block."""
    with translate_os_errors(root / NAME):
        descriptor = os.open(root / NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locks.mark_alive(descriptor)
        yield
    finally:
        os.close(descriptor)


def stuck(root: Path, refusal: OpsError) -> OpsError:
    """Say of a refusal that it leaves the journal behind, and how to go on."""
    return type(refusal)(
        f"{root}: neither finished nor put back as it was, {refusal.message}",
        hint=f"mend that, then: sagewai-ops --home {shell_word(root)} keys rotate --recover",
    )


def add_tokens(root: Path, tokens: Mapping[bytes, bytes]) -> None:
    """Write the table, in place of the one that is there.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused; it is as it was.
    """
    with atomic.write_stream(root / NAME / _TOKENS) as stream:
        for old, new in tokens.items():
            stream.write(json.dumps([old.decode(), new.decode()]).encode() + b"\n")


def read(root: Path) -> Journal:
    """Read what a run that died wrote down.

    Raises:
        OpsError: It cannot be read, or somebody else may have written it.
    """
    directory = root / NAME
    try:
        status = os.lstat(directory)
        # Whoever writes it decides under which key everything comes.
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ValueError("its directory is not ours alone")  # noqa: TRY301 - told below
        document = json.loads((directory / _JOURNAL).read_bytes())
        if document.pop("version") != _VERSION:
            raise ValueError("it is of another version")  # noqa: TRY301
        new = given(NEW_KEY, (directory / _KEY).read_bytes())
        if not new.value or new.fingerprint != document.pop("fingerprint"):
            raise ValueError("its key is another")  # noqa: TRY301
        with open(directory / _TOKENS, "rb") as lines:
            pairs = [json.loads(line) for line in lines]
        tokens = {old.encode(): other.encode() for old, other in pairs}
        documents = tuple(document.pop("documents"))
        return Journal(new=new, tokens=tokens, documents=documents, **document)
    except OSError as error:
        raise from_os_error(error, directory) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OpsError(
            f"{directory}: the journal of a rotation that was interrupted cannot be used, {error}",
            hint=f"ls -la {shell_word(directory)}  # nothing in it was removed; docs/keys.md",
        ) from error


def forget(root: Path) -> None:
    """Remove the journal: from here on the home is under one key. The rest is garbage.

    Raises:
        OSError: The system refused.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(root / NAME / _JOURNAL)
    atomic.sync_directory(root / NAME)


@uninterrupted()
def sweep(root: Path) -> bool:
    """Remove the directory unless there is a journal in it; tell whether there was one to remove.

    Raises:
        OSError: The system refused.
    """
    directory = root / NAME
    if not os.path.lexists(directory) or os.path.lexists(directory / _JOURNAL):
        return False
    if not locks.is_abandoned(directory):
        return False
    remove_tree(directory)
    return True
