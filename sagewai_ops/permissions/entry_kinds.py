"""The kinds of entries that the rules distinguish, and the facts about one entry.

Nothing here reads a file: a kind follows from a path alone, and `scan` collects the facts.
"""

from enum import Enum

from sagewai_ops.home.companions import companion_directory
from sagewai_ops.home.paths import (
    DATABASE,
    LEGACY_PLACES,
    OWN_PREFIX,
    PARTS,
    SIDECAR_SUFFIXES,
    Kind,
    kind_of,
)
from sagewai_ops.records import dataclass

# Directories with secrets among other files: other users must not create files in them.
GUARDED_DIRECTORIES = frozenset({*PARTS, "fleet"} - {"secrets", "data"})
# Copies made by hand, such as of all of `config/`, keep these names. Below `data/` they can be
# files of agents.
_DATABASE_NAME = DATABASE.rpartition("/")[2]
COPIED_NAMES = frozenset((*LEGACY_PLACES, _DATABASE_NAME, f"{_DATABASE_NAME}-wal"))
NEVER_COPIES = "data"


class EntryKind(str, Enum):
    """The kind of an entry, to the rules."""

    KEY = "the master key"
    DOCUMENT = "a document with secrets"
    SECRET = "a file below secrets/"  # noqa: S105 - a kind, not a password
    BACKUP = "a backup of a document"
    LEFTOVER = "a temporary document of a crash"
    WORKER = "the credentials of a fleet worker"
    DATABASE = "the database or a file next to it"
    LEGACY = "a document of the older layout"
    LOCK = "the lock of the state"
    OWN = "a file of this program"
    SNAPSHOT = "a snapshot"
    HOME = "the home"
    DIRECTORY = "a directory with documents"
    SECRET_DIRECTORY = "the directory of secrets"  # noqa: S105
    OWN_DIRECTORY = "a directory of this program"
    COMPANION_DIRECTORY = "the directory of litestream"
    SESSIONS = "the directory of conversations"
    SNAPSHOTS = "the snapshot directory"
    PARENT = "a directory above the home"
    VARIABLE = "the master key of the environment"
    OTHER = "any other entry"


SECRET_FILES = frozenset({
    EntryKind.KEY, EntryKind.DOCUMENT, EntryKind.SECRET, EntryKind.BACKUP, EntryKind.LEFTOVER,
    EntryKind.WORKER, EntryKind.DATABASE, EntryKind.LEGACY, EntryKind.OWN, EntryKind.SNAPSHOT,
})  # fmt: skip
SECRET_DIRECTORIES = frozenset({
    EntryKind.HOME, EntryKind.DIRECTORY, EntryKind.SECRET_DIRECTORY, EntryKind.OWN_DIRECTORY,
    EntryKind.COMPANION_DIRECTORY, EntryKind.SNAPSHOTS,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class EntryState:
    """The attributes of an entry that a repair can change.

    Attributes:
        mode: Permission bits, 0 to 0o7777.
        access_list: The extended POSIX access list as the kernel returns it; None without one.
        default_list: The one that new files in the directory inherit.
    """

    mode: int
    uid: int
    gid: int
    access_list: bytes | None = None
    default_list: bytes | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about one entry.

    Attributes:
        path: Relative to its root; "" is the root itself.
        type: `file`, `directory`, `link`, `other` (a socket, pipe or device) or `nothing` (a
            dangling link).
        links: Number of hard links.
        owner: The uid to which everything in the home should belong.
        owner_gid: The group of the home.
        problem: Why not all facts are known; "" if they are.
        key_length: Characters of the key, without whitespace around it; None for any other entry.
        target: Of a link; "" for any other entry.
        unknown_lists: Names of access lists that are not checked here.
        is_capable: Whether a program has file capabilities, as `setcap` sets them.
    """

    kind: EntryKind
    path: str
    type: str
    state: EntryState
    links: int
    owner: int
    owner_gid: int
    problem: str = ""
    key_length: int | None = None
    target: str = ""
    unknown_lists: tuple[str, ...] = ()
    is_capable: bool = False


def file_kind(path: str) -> EntryKind:
    """Return the kind of the file at a path relative to its home."""
    directory, _, name = path.rpartition("/")
    # With a dot before it: a partial file of a run that was killed.
    if name.startswith((OWN_PREFIX, f".{OWN_PREFIX}")):
        return EntryKind.OWN
    kind = kind_of(path)
    if kind in (Kind.DATABASE, Kind.SIDECAR) or directory == "db":
        return EntryKind.DATABASE
    if kind is Kind.SECRET:
        return _secret_kind(directory, name)
    if directory == "" and name.startswith(_DATABASE_NAME):
        return EntryKind.DATABASE
    if kind is Kind.OTHER and name in COPIED_NAMES and path.split("/", 1)[0] != NEVER_COPIES:
        return EntryKind.BACKUP
    return {
        Kind.KEY: EntryKind.KEY,
        Kind.LOCK: EntryKind.LOCK,
        Kind.LEFTOVER: EntryKind.LEFTOVER,
    }.get(kind, EntryKind.OTHER)


def sibling_kind(document_kind: EntryKind, document: str, name: str) -> EntryKind | None:
    """Return the kind of a file in the directory of a document that is outside the home.

    Args:
        document: The name of the document.

    Returns:
        None for a file that does not belong to the document: its name begins otherwise.
    """
    if name == document:
        return document_kind
    if document_kind is EntryKind.DATABASE:
        if name == companion_directory(document):
            return EntryKind.COMPANION_DIRECTORY
        sidecars = [document + suffix for suffix in SIDECAR_SUFFIXES]
        return document_kind if name in sidecars else None
    if name == f"{document}.lock":
        return EntryKind.LOCK
    if name.startswith(f"{document}.bak-"):
        return EntryKind.BACKUP
    return EntryKind.LEFTOVER if name.startswith((f"{document}.", f".{document}.")) else None


def directory_kind(path: str) -> EntryKind:
    """Return the kind of the directory at a path relative to its home; "" is the home."""
    top = path.split("/", 1)[0]
    if path == "":
        return EntryKind.HOME
    if top.startswith(OWN_PREFIX):
        return EntryKind.OWN_DIRECTORY
    if path.count("/") == 1 and kind_of(path) is Kind.COMPANION:
        return EntryKind.COMPANION_DIRECTORY
    if top == "secrets":
        return EntryKind.SECRET_DIRECTORY
    if path in GUARDED_DIRECTORIES:
        return EntryKind.DIRECTORY
    return EntryKind.SESSIONS if path == "sessions" else EntryKind.OTHER


def _secret_kind(directory: str, name: str) -> EntryKind:
    if ".bak-" in name:
        return EntryKind.BACKUP
    if directory == "fleet":
        return EntryKind.WORKER
    if directory == "":
        return EntryKind.LEGACY
    is_document = name in LEGACY_PLACES or directory == "config"
    return EntryKind.DOCUMENT if is_document else EntryKind.SECRET
