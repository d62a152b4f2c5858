"""What an entry of a home is to the rules of `rules`, and the facts that they judge.

Nothing here reads a file: a part follows from a path alone, `inspection` collects the facts.
"""

from dataclasses import dataclass
from enum import Enum

from sagewai_ops.home.paths import (
    DATABASE,
    LEGACY_PLACES,
    OWN_PREFIX,
    PARTS,
    SIDECAR_SUFFIXES,
    Kind,
    kind_of,
)

# The kinds of file that hold a secret; the database holds credentials in clear.
PRIVATE_KINDS = frozenset({Kind.DATABASE, Kind.SIDECAR, Kind.KEY, Kind.SECRET})
# Directories with secrets among other files: nobody else may put something there.
GUARDED_DIRECTORIES = frozenset({*PARTS, "fleet"} - {"secrets", "data"})
# Copies that somebody made by hand, such as of all of `config/`, keep these names. Below `data/`
# they may be anybody's.
_DATABASE_NAME = DATABASE.rpartition("/")[2]
COPIED_NAMES = frozenset((*LEGACY_PLACES, _DATABASE_NAME, f"{_DATABASE_NAME}-wal"))
NEVER_COPIES = "data"


class Part(str, Enum):
    """What an entry is to the rules."""

    KEY = "the master key"
    DOCUMENT = "a document with secrets"
    SECRET = "a file below secrets/"  # noqa: S105 - a part, not a password
    BACKUP = "a backup of a document"
    LEFTOVER = "what a crash left of a document"
    WORKER = "the credentials of a fleet worker"
    DATABASE = "the database or a file beside it"
    LEGACY = "a document of the older layout"
    LOCK = "the lock of the state"
    OWN = "a file of this program"
    SNAPSHOT = "a snapshot"
    HOME = "the home"
    DIRECTORY = "a directory with documents"
    SECRET_DIRECTORY = "the directory of secrets"  # noqa: S105
    OWN_DIRECTORY = "a directory of this program"
    SESSIONS = "the directory of conversations"
    SNAPSHOTS = "the snapshot directory"
    PARENT = "a directory above the home"
    VARIABLE = "the master key of the environment"
    OTHER = "anything else"


SECRET_FILES = frozenset({
    Part.KEY, Part.DOCUMENT, Part.SECRET, Part.BACKUP, Part.LEFTOVER, Part.WORKER, Part.DATABASE,
    Part.LEGACY, Part.OWN, Part.SNAPSHOT,
})  # fmt: skip
SECRET_DIRECTORIES = frozenset({
    Part.HOME, Part.DIRECTORY, Part.SECRET_DIRECTORY, Part.OWN_DIRECTORY, Part.SNAPSHOTS,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """The state of an entry that can be set and put back.

    Attributes:
        mode: Permission bits, 0 to 0o7777.
        access_list: The extended POSIX access list as the kernel gives it; None if there is none.
        default_list: The one that new files in the directory inherit.
    """

    mode: int
    uid: int
    gid: int
    access_list: bytes | None = None
    default_list: bytes | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one entry.

    Attributes:
        path: Relative to its root; "" is the root itself.
        type: `file`, `directory`, `link`, `other` (a socket, pipe or device) or `nothing` (a link
            that leads nowhere, a directory that cannot be listed).
        links: Names of the file.
        owner: The uid that everything here should belong to.
        owner_gid: The group that goes with it.
        problem: Of the look itself: what could not be read; "" if all could.
        key_length: Characters of the key, blanks around it left out; None for all but a key.
        target: Where a link leads; "" if it is none.
        odd_lists: Names of access lists that cannot be judged here.
        is_capable: Whether a program has file capabilities, as `setcap` gives them.
    """

    part: Part
    path: str
    type: str
    state: Wanted
    links: int
    owner: int
    owner_gid: int
    problem: str = ""
    key_length: int | None = None
    target: str = ""
    odd_lists: tuple[str, ...] = ()
    is_capable: bool = False


def part_of_file(path: str) -> Part:
    """Tell what the file at a path relative to its home is to the rules."""
    directory, _, name = path.rpartition("/")
    # With a dot before it: what a run that died while it wrote a file left.
    if name.startswith((OWN_PREFIX, f".{OWN_PREFIX}")):
        return Part.OWN
    kind = kind_of(path)
    if kind in (Kind.DATABASE, Kind.SIDECAR) or directory == "db":
        return Part.DATABASE
    if kind is Kind.SECRET:
        return _part_of_secret(directory, name)
    if directory == "" and name.startswith(_DATABASE_NAME):
        return Part.DATABASE
    if kind is Kind.OTHER and name in COPIED_NAMES and path.split("/", 1)[0] != NEVER_COPIES:
        return Part.BACKUP
    return {Kind.KEY: Part.KEY, Kind.LOCK: Part.LOCK, Kind.LEFTOVER: Part.LEFTOVER}.get(
        kind, Part.OTHER
    )


def part_beside(own: Part, document: str, name: str) -> Part | None:
    """Tell what a file in the directory of a document outside the home is; None for others' files.

    Args:
        own: What the document is.
        document: Its name. Where others keep files too, only what bears it belongs to it.
    """
    if name == document:
        return own
    if own is Part.DATABASE:
        return own if name in [document + suffix for suffix in SIDECAR_SUFFIXES] else None
    if name == f"{document}.lock":
        return Part.LOCK
    if name.startswith(f"{document}.bak-"):
        return Part.BACKUP
    return Part.LEFTOVER if name.startswith((f"{document}.", f".{document}.")) else None


def part_of_directory(path: str) -> Part:
    """Tell what the directory at a path relative to its home is to the rules; "" is the home."""
    top = path.split("/", 1)[0]
    if path == "":
        return Part.HOME
    if top.startswith(OWN_PREFIX):
        return Part.OWN_DIRECTORY
    if top == "secrets":
        return Part.SECRET_DIRECTORY
    if path in GUARDED_DIRECTORIES:
        return Part.DIRECTORY
    return Part.SESSIONS if path == "sessions" else Part.OTHER


def _part_of_secret(directory: str, name: str) -> Part:
    if ".bak-" in name:
        return Part.BACKUP
    if directory == "fleet":
        return Part.WORKER
    if directory == "":
        return Part.LEGACY
    return Part.DOCUMENT if name in LEGACY_PLACES or directory == "config" else Part.SECRET
