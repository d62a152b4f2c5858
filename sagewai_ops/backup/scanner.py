"""Walk a home and decide what a snapshot carries, from names and types alone.

Nothing is read here but the first bytes of files that stand beside a `-wal` (is it a database?) and
of files as long as a master key. What is not carried is listed with its reason; whether that makes
a backup incomplete is decided by the reason.
"""

import contextlib
import errno
import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sagewai_ops.archive.manifest import HEADER_NAME, MANIFEST_NAME, is_link_inside
from sagewai_ops.database.sqlite.read_transaction import MAGIC
from sagewai_ops.errors import DamagedError
from sagewai_ops.home.paths import (
    ADMIN_STATE,
    CONNECTIONS,
    DATABASE,
    PARTS,
    PROFILES,
    SIDECAR_SUFFIXES,
    Home,
    Kind,
    kind_of,
)
from sagewai_ops.snapshots.member_paths import EXTERNAL, EXTERNAL_HOME
from sagewai_ops.snapshots.omissions import Omission, Reason

_RESERVED = (HEADER_NAME, MANIFEST_NAME, EXTERNAL)
_PATH_BYTES = 4000  # of a member; extraction adds a directory's path, and PATH_MAX is 4096
_KEY_FILE_BYTES = range(44, 49)  # a key, and what editors add to its end
# Links at these places that lead out of the home are followed: Sagewai follows them too.
_FOLLOWED = frozenset((*PARTS, DATABASE, ADMIN_STATE, CONNECTIONS, PROFILES))


@dataclass(frozen=True, slots=True)
class ScanItem:
    """Something that is carried.

    Attributes:
        path: In the archive.
        source: Where it is read.
        target: Of a link, as the archive has it.
        is_absolute: Whether the link has the home's own path before that.
    """

    path: str
    source: str
    type: str  # "file", "folder", "link", "database"
    kind: Kind
    target: str = ""
    is_absolute: bool = False


@dataclass(slots=True)
class HomeScan:
    """What a walk found, in the order of the archive: directories before what is in them."""

    found: list[ScanItem] = field(default_factory=list)
    omissions: list[Omission] = field(default_factory=list)
    followed: dict[str, str] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    content_bytes: int = 0
    database_bytes: int = 0


def scan_home(
    home: Home,
    *,
    exclude: Sequence[str] = (),
    key_values: Sequence[bytes] = (),
    carries_key: bool = False,
) -> HomeScan:
    """Walk the home and everything outside of it that its overrides name.

    Args:
        exclude: Patterns on paths relative to the home; `*` also matches `/`.
        key_values: Master keys that must not be found in any file, whatever its name.
        carries_key: Whether key files are carried all the same.
    """
    main = os.path.realpath(home.database)
    walk = _Walk(home, main, tuple(exclude), tuple(key_values), carries_key, HomeScan())
    walk.directory(str(home.root), "", "")
    for variable, origin in home.overrides.items():
        if origin != home.cache_dir:
            walk.outside(variable, str(origin))
    return walk.scan


@dataclass(frozen=True, slots=True)
class _Walk:
    home: Home
    main: str  # Sagewai's database, links resolved: SQLite puts the sidecars beside that
    exclude: tuple[str, ...]
    key_values: tuple[bytes, ...] = field(repr=False)
    carries_key: bool
    scan: HomeScan
    inside: list[Iterator[tuple["os.DirEntry[str]", str, str, set[str]]]] = field(
        default_factory=list
    )  # the directories that the walk is in, the deepest last

    def directory(self, directory: str, relative: str, member: str) -> None:
        """Add what a directory holds, not the directory itself.

        Args:
            directory: Where it is read.
            relative: Its path in the home; "" for the home itself.
            member: Its path in the archive.
        """
        # A stack of its own: directories nest deeper than Python's calls may.
        self.inside.append(self._entries(directory, relative, member))
        depth = len(self.inside)
        while len(self.inside) >= depth:
            step = next(self.inside[-1], None)
            if step is None:
                self.inside.pop()
            else:
                self._entry(*step)

    def _entries(
        self, directory: str, relative: str, member: str
    ) -> Iterator[tuple["os.DirEntry[str]", str, str, set[str]]]:
        try:
            with os.scandir(directory) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except FileNotFoundError:
            self._leave(relative, Reason.GONE)
            return
        except OSError as error:
            self._leave(relative or ".", *_refused(error))
            return
        names = {entry.name for entry in entries}
        for entry in entries:
            above, place = (relative + "/", member + "/") if relative else ("", "")
            if relative == "" and entry.name in _RESERVED:
                self._container(EXTERNAL)
                self._container(EXTERNAL_HOME)
                place = EXTERNAL_HOME + "/"
            yield entry, above + entry.name, place + entry.name, names

    def outside(self, variable: str, origin: str) -> None:
        """Add a document or directory that an override puts outside the home."""
        place = f"{EXTERNAL}/{variable}"
        self.scan.external[place] = origin
        try:
            status = os.stat(origin)
            source = os.path.realpath(origin)
        except OSError as error:
            self._leave(place, Reason.UNREADABLE, f"{origin}: {error.strerror}")
            return
        self._container(EXTERNAL)
        if stat.S_ISDIR(status.st_mode):
            self._add(ScanItem(place, source, "folder", Kind.SECRET))
            self.directory(source, place, place)
        elif not stat.S_ISREG(status.st_mode):
            self._leave(place, Reason.SPECIAL, _special(status.st_mode))
        elif variable.endswith("DATABASE_URL"):
            self._add_database(place, source, status.st_size)
        elif not self.carries_key and self._is_key(source, place, status.st_size):
            self._leave(place, Reason.KEY)
        else:
            self._add_file(place, source, Kind.SECRET, status.st_size)

    def _entry(self, entry: "os.DirEntry[str]", path: str, member: str, names: set[str]) -> None:
        kind = kind_of(path)
        refusal = self._refusal(kind, path, entry.path, names)
        if refusal is Reason.SIDECAR and _is_orphan(entry, names):
            self._leave(path, Reason.UNREADABLE, "its database is gone")
            return
        if refusal is not None:
            self._leave(path, refusal)
            return
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            self._leave(path, Reason.GONE)
            return
        except OSError as error:
            is_long = error.errno == errno.ENAMETOOLONG
            self._leave(path, *((Reason.NAME,) if is_long else _refused(error)))
            return
        if len(os.fsencode(member)) > _PATH_BYTES:
            self._leave(path, Reason.NAME)
        elif stat.S_ISLNK(status.st_mode):
            self._link(entry, path, member, kind)
        elif stat.S_ISDIR(status.st_mode):
            self._add(ScanItem(member, entry.path, "folder", kind))
            self.inside.append(self._entries(entry.path, path, member))
        elif not stat.S_ISREG(status.st_mode):
            self._leave(path, Reason.SPECIAL, _special(status.st_mode))
        elif kind is Kind.DATABASE or self._is_live(entry.path, names):
            self._add_database(member, entry.path, status.st_size)
        elif not self.carries_key and self._is_key(entry.path, path, status.st_size):
            self._leave(path, Reason.KEY)
        else:
            self._add_file(member, entry.path, kind, status.st_size)

    def _refusal(self, kind: Kind, path: str, source: str, names: set[str]) -> Reason | None:
        by_kind = {
            Kind.OWN: Reason.OWN,
            Kind.LOCK: Reason.LOCK,
            Kind.LEFTOVER: Reason.LEFTOVER,
            Kind.SIDECAR: Reason.SIDECAR,
        }
        if kind is Kind.KEY and not self.carries_key:
            return Reason.KEY
        if kind in by_kind:
            return by_kind[kind]
        if any(fnmatch.fnmatchcase(path, pattern.rstrip("/")) for pattern in self.exclude):
            return Reason.EXCLUDED
        for suffix in SIDECAR_SUFFIXES:
            owner = source.removesuffix(suffix)
            name = owner.rpartition("/")[2]
            if owner != source and name in names and self._is_live(owner, names):
                return Reason.SIDECAR
        return None

    def _link(self, entry: "os.DirEntry[str]", path: str, member: str, kind: Kind) -> None:
        try:
            target = os.readlink(entry.path)
        except OSError:
            self._leave(path, Reason.GONE)
            return
        root = str(self.home.root)
        is_absolute = target == root or target.startswith(root + "/")
        if is_absolute:
            # Written relative, so that it still leads there when the home stands elsewhere.
            target = os.path.relpath(target, os.path.dirname(entry.path))
        is_inside = is_link_inside(path, target) and self._is_inside(entry.path)
        if path in _FOLLOWED and is_inside and not os.path.exists(entry.path):
            # Sagewai would begin anew there: what it led to is lost, or not mounted.
            self._leave(path, Reason.UNREADABLE, f"a link to {target}, where nothing is")
        elif is_inside:
            self._add(ScanItem(member, entry.path, "link", kind, target, is_absolute))
        elif not is_inside and path in _FOLLOWED and os.path.exists(entry.path):
            self._follow(entry.path, path, kind)
        else:
            self._leave(path, Reason.LEAVES, target)

    def _follow(self, source: str, path: str, kind: Kind) -> None:
        status = os.stat(source)
        real = os.path.realpath(source)
        self.scan.followed[path] = real
        if stat.S_ISDIR(status.st_mode):
            self._add(ScanItem(path, real, "folder", kind))
            self.inside.append(self._entries(real, path, path))
        elif kind is Kind.DATABASE:
            self._add_database(path, real, status.st_size)
        else:
            self._add_file(path, real, kind, status.st_size)

    def _is_live(self, source: str, names: set[str]) -> bool:
        """Tell whether a file is a database that must be copied as one: Sagewai's, or with a WAL.

        Args:
            names: What stands beside it.
        """
        if source == self.main:
            return True
        return source.rpartition("/")[2] + "-wal" in names and _is_database(source)

    def _is_inside(self, source: str) -> bool:
        """Tell whether a link ends inside the home, also by way of other links."""
        real = os.path.realpath(source)
        places = (*self.scan.followed.values(), *self.scan.external.values())
        roots = (str(self.home.root), *map(os.path.realpath, places))
        return any(real == root or real.startswith(root + "/") for root in roots)

    def _is_key(self, source: str, path: str, size_bytes: int) -> bool:
        if size_bytes not in _KEY_FILE_BYTES:
            return False
        try:
            with open(source, "rb") as stream:
                content = stream.read(_KEY_FILE_BYTES.stop).strip()
        except OSError:
            return False  # reported when it is to be carried
        return content in self.key_values or (
            path.split("/", 1)[0] in ("secrets", path) and _looks_like_key(content)
        )

    def _container(self, path: str) -> None:
        """Add a directory of the archive's own, once."""
        if not any(found.path == path for found in self.scan.found):
            self._add(ScanItem(path, str(self.home.root), "folder", Kind.OTHER))

    def _add_file(self, path: str, source: str, kind: Kind, size_bytes: int) -> None:
        self.scan.content_bytes += size_bytes
        self._add(ScanItem(path, source, "file", kind))

    def _add_database(self, path: str, source: str, size_bytes: int) -> None:
        with contextlib.suppress(OSError):
            size_bytes += os.stat(source + "-wal").st_size
        self.scan.content_bytes += size_bytes
        self.scan.database_bytes += size_bytes
        self._add(ScanItem(path, source, "database", Kind.DATABASE))

    def _add(self, found: ScanItem) -> None:
        self.scan.found.append(found)

    def _leave(self, path: str, reason: Reason, detail: str = "") -> None:
        self.scan.omissions.append(Omission(path, reason, detail))


def databases(scan: HomeScan) -> Iterator[ScanItem]:
    """Give the databases among what was found, Sagewai's own first."""
    found = [item for item in scan.found if item.type == "database"]
    return iter(sorted(found, key=lambda item: item.path != DATABASE))


def main_database(home: Home, scan: HomeScan) -> ScanItem | None:
    """Give the database that Sagewai uses: the one in the home, or the one an override names.

    Raises:
        DamagedError: There is something else in its place.
    """
    main = os.path.realpath(home.database)
    for item in databases(scan):
        if os.path.realpath(item.source) == main:
            return item
    if home.database.is_dir():
        raise DamagedError(f"database {home.database}: is a directory")
    return None


def _refused(error: OSError) -> tuple[Reason, str]:
    return Reason.UNREADABLE, error.strerror or ""


def _is_orphan(entry: "os.DirEntry[str]", names: set[str]) -> bool:
    """Tell whether a `-wal` with content stands without its database."""
    owner = entry.name.removesuffix("-wal")
    with contextlib.suppress(OSError):
        return entry.name != owner not in names and entry.stat(follow_symlinks=False).st_size > 0
    return False


def _special(mode: int) -> str:
    names = ((stat.S_ISSOCK, "socket"), (stat.S_ISFIFO, "FIFO"), (stat.S_ISBLK, "block device"))
    return next((name for test, name in names if test(mode)), "character device")


def _is_database(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _looks_like_key(content: bytes) -> bool:
    import base64
    import binascii

    try:
        return len(content) == 44 and len(base64.urlsafe_b64decode(content)) == 32
    except binascii.Error:
        return False
