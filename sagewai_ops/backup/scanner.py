"""Scan a home and decide what a snapshot contains, from names and types alone.

Only the first bytes of a file next to a `-wal` are read (is it a database?), and files as long as
a master key. What is omitted is listed with its reason; the reason decides whether the backup is
incomplete.
"""

import contextlib
import errno
import fnmatch
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    is_link_inside,
    is_outside_link_allowed,
)
from sagewai_ops.backup.scan_items import ScanItem, ScanItems
from sagewai_ops.database.sqlite.read_transaction import MAGIC
from sagewai_ops.errors import DamagedError, OpsError, UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.trust import owned_target
from sagewai_ops.fs.volumes import is_lost_and_found
from sagewai_ops.home.companions import companion_directory
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
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.member_paths import EXTERNAL, EXTERNAL_HOME, SERVER_DIRECTORY
from sagewai_ops.snapshots.omissions import Omission, Reason
from sagewai_ops.text import shell_word

_RESERVED = (HEADER_NAME, MANIFEST_NAME, EXTERNAL)
_PATH_BYTES = 4000  # of a member; extraction adds a directory's path, and PATH_MAX is 4096
_KEY_FILE_BYTES = range(44, 49)  # a key, and what editors add to its end
# The targets of links at these paths are included in place of the links: Sagewai follows them, and
# a restore never creates a link there.
_FOLLOWED = frozenset((*PARTS, DATABASE, ADMIN_STATE, CONNECTIONS, PROFILES))
_OMITTED_KINDS: Mapping[Kind, Reason] = {
    Kind.OWN: Reason.OWN,
    Kind.LOCK: Reason.LOCK,
    Kind.LEFTOVER: Reason.LEFTOVER,
    Kind.SIDECAR: Reason.SIDECAR,
    Kind.COMPANION: Reason.COMPANION,
}


@dataclass(slots=True)
class HomeScan:
    """The content of a home, in the order of the archive: a directory before its entries.

    Attributes:
        followed: Link in the home -> the target that is included in its place.
        external: Member -> the path outside the home that an override names.
        outside_links: Link -> target, of the links out of the home that are stored as links.
        outside_files: Those of them that lead to a file of the home's owner, likewise.
        unused_follow: Patterns of `--follow` that match no link.
    """

    items: ScanItems = field(default_factory=ScanItems)
    omissions: list[Omission] = field(default_factory=list)
    followed: dict[str, str] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)
    outside_links: dict[str, str] = field(default_factory=dict)
    outside_files: dict[str, str] = field(default_factory=dict)
    unused_follow: list[str] = field(default_factory=list)
    content_bytes: int = 0
    database_bytes: int = 0


def scan_home(
    home: Home,
    *,
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    key_values: Sequence[bytes] = (),
    includes_key: bool = False,
    snapshots: Path | None = None,
    has_server: bool = False,
    outside: Path | None = None,
) -> HomeScan:
    """Scan the home and everything outside of it that its overrides name.

    Args:
        exclude: Patterns on paths relative to the home; `*` also matches `/`.
        follow: Patterns, likewise, of links that leave the home; the target is included in place
            of the link.
        key_values: Master keys that must not be in any file, whatever its name.
        includes_key: Whether key files are included.
        snapshots: Where this run writes; no followed directory may overlap with it.
        has_server: The snapshot also contains the database of a server.
        outside: A directory that the scan must not reach by any path, also not by a mount.

    Raises:
        UsageError: A link that `follow` matches overlaps with the home, or is a loop; the scan
            reaches `outside`.
    """
    walk = _Walk(
        home=home,
        main=os.path.realpath(home.database),
        companions=frozenset(
            map(companion_directory, (str(home.database), os.path.realpath(home.database)))
        ),
        exclude=tuple(exclude),
        follow=tuple(follow),
        key_values=tuple(key_values),
        includes_key=includes_key,
        snapshots=os.path.realpath(snapshots) if snapshots else "",
        reserved=(*_RESERVED, SERVER_DIRECTORY) if has_server else _RESERVED,
        above=directories_above(outside) if outside else frozenset(),
        scan=HomeScan(unused_follow=list(follow)),
    )
    walk.add_directory(str(home.root), "", "")
    for variable, origin in home.overrides.items():
        if origin != home.cache_dir:
            walk.add_external(variable, str(origin))
    return walk.scan


@dataclass(frozen=True, slots=True)
class _Walk:
    home: Home
    main: str  # Sagewai's database, links resolved: SQLite puts the sidecars next to that
    companions: frozenset[str]  # litestream puts its directory next to the path that it was given
    exclude: tuple[str, ...]
    follow: tuple[str, ...]
    key_values: tuple[bytes, ...] = field(repr=False)
    includes_key: bool
    snapshots: str
    reserved: tuple[str, ...]
    above: frozenset[tuple[int, int]]  # device and inode of directories with the snapshots in them
    scan: HomeScan
    # The directories that the walk is in, the deepest last.
    stack: list[Iterator[tuple["_Entry", str, str, set[str]]]] = field(default_factory=list)
    bases: dict[str, str] = field(default_factory=dict)
    requested: set[str] = field(default_factory=set)  # links that `follow` includes

    def add_directory(self, directory: str, relative: str, member: str) -> None:
        """Add the content of a directory, not the directory itself.

        Args:
            directory: Path that is read.
            relative: Its path in the home; "" for the home itself.
            member: Its path in the archive.
        """
        # A stack of its own: directories nest deeper than Python's calls may.
        self.stack.append(self._entries(directory, relative, member))
        depth = len(self.stack)
        while len(self.stack) >= depth:
            step = next(self.stack[-1], None)
            if step is None:
                self.stack.pop()
            else:
                self._add_entry(*step)

    def _entries(
        self, directory: str, relative: str, member: str
    ) -> Iterator[tuple["_Entry", str, str, set[str]]]:
        try:
            entries, identity = _read_directory(directory)
        except FileNotFoundError:
            self._omit(relative, Reason.GONE)
            return
        except OSError as error:
            self._omit(relative or ".", *_unreadable(error))
            return
        if identity in self.above:
            raise inside_error(self.snapshots, directory, self.home)
        entries = [
            entry
            for entry in entries
            if not is_lost_and_found(directory, entry.name, is_top=not relative)
        ]
        names = {entry.name for entry in entries}
        for entry in entries:
            parent, prefix = (relative + "/", member + "/") if relative else ("", "")
            if relative == "" and entry.name in self.reserved:
                self._add_container(EXTERNAL)
                self._add_container(EXTERNAL_HOME)
                prefix = EXTERNAL_HOME + "/"
            yield entry, parent + entry.name, prefix + entry.name, names

    def add_external(self, variable: str, origin: str) -> None:
        """Add a document or directory that an override puts outside the home."""
        member = f"{EXTERNAL}/{variable}"
        self.scan.external[member] = origin
        try:
            status = os.stat(origin)
            source = os.path.realpath(origin)
        except OSError as error:
            self._omit(member, Reason.UNREADABLE, f"{origin}: {error.strerror}")
            return
        self._add_container(EXTERNAL)
        if stat.S_ISDIR(status.st_mode):
            self._add(member, source, "folder", Kind.SECRET)
            self.add_directory(source, member, member)
        elif not stat.S_ISREG(status.st_mode):
            self._omit(member, Reason.SPECIAL, _special_type(status.st_mode))
        elif variable.endswith("DATABASE_URL"):
            self._add_database(member, source, status.st_size)
        elif not self.includes_key and self._is_key(source, member, status.st_size):
            self._omit(member, Reason.KEY)
        else:
            self._add_file(member, source, Kind.SECRET, status.st_size)

    def _add_entry(self, entry: "_Entry", path: str, member: str, names: set[str]) -> None:
        kind = kind_of(path)
        reason = self._reason_to_omit(kind, path, entry.path, names)
        if reason is Reason.SIDECAR and _is_orphan(entry, names):
            self._omit(path, Reason.UNREADABLE, "its database is gone")
            return
        if reason is not None:
            self._omit(path, reason)
            return
        status = entry.status
        if isinstance(status, FileNotFoundError):
            self._omit(path, Reason.GONE)
            return
        if isinstance(status, OSError):
            is_long = status.errno == errno.ENAMETOOLONG
            self._omit(path, *((Reason.NAME,) if is_long else _unreadable(status)))
            return
        if len(os.fsencode(member)) > _PATH_BYTES:
            self._omit(path, Reason.NAME)
        elif stat.S_ISLNK(status.st_mode):
            self._add_link(entry, path, member, kind)
        elif stat.S_ISDIR(status.st_mode):
            self._add(member, entry.path, "folder", kind)
            self.stack.append(self._entries(entry.path, path, member))
        elif not stat.S_ISREG(status.st_mode):
            self._omit(path, Reason.SPECIAL, _special_type(status.st_mode))
        elif kind is Kind.DATABASE or self._is_live(entry.path, names):
            self._add_database(member, entry.path, status.st_size)
        elif not self.includes_key and self._is_key(entry.path, path, status.st_size):
            self._omit(path, Reason.KEY)
        else:
            self._add_file(member, entry.path, kind, status.st_size)

    def _reason_to_omit(self, kind: Kind, path: str, source: str, names: set[str]) -> Reason | None:
        if kind is Kind.KEY and not self.includes_key:
            return Reason.KEY
        if kind in _OMITTED_KINDS:
            return _OMITTED_KINDS[kind]
        if source in self.companions:
            return Reason.COMPANION
        if any(_matches(path, pattern) for pattern in self.exclude):
            return Reason.EXCLUDED
        for suffix in SIDECAR_SUFFIXES:
            owner = source.removesuffix(suffix)
            name = owner.rpartition("/")[2]
            if owner != source and name in names and self._is_live(owner, names):
                return Reason.SIDECAR
        return None

    def _add_link(self, entry: "_Entry", path: str, member: str, kind: Kind) -> None:
        if path in _FOLLOWED:
            self._add_followed(entry, path, kind)
            return
        try:
            written = beneath.read_link(entry.path)
        except OSError:
            self._omit(path, Reason.GONE)
            return
        target, is_absolute = self._relative_target(path, written)
        is_inside = is_link_inside(path, target) and self._is_inside(entry.path, path, target)
        if is_inside:
            self._add(member, entry.path, "link", kind, target, is_absolute=is_absolute)
        elif not self._follows(entry.path, path):
            if is_outside_link_allowed(path):
                self.scan.outside_links[path] = written
                if self._is_file_of_owner(entry.path):
                    self.scan.outside_files[path] = written
                self._add(member, entry.path, "link", kind, written, is_outside=True)
            else:
                self._omit(path, Reason.LEAVES, target)

    def _add_followed(self, entry: "_Entry", path: str, kind: Kind) -> None:
        """Include the target of a link that Sagewai follows too, if it is the link's owner's."""
        try:
            real, reason = owned_target(Path(entry.path))
        except OSError as error:
            # Sagewai would start empty there: the target is lost, or not mounted.
            target = os.path.realpath(entry.path)
            self._omit(path, Reason.UNREADABLE, f"a link to {target}: {_unreadable(error)[1]}")
            return
        if real is None:
            self._omit(path, Reason.UNREADABLE, reason)
        else:
            self._add_target(os.fspath(real), path, kind)

    def _relative_target(self, path: str, written: str) -> tuple[str, bool]:
        """Make an absolute target inside the snapshot relative; it may be restored elsewhere.

        Returns:
            The target, and whether it was absolute.
        """
        deepest = sorted(self.scan.followed.items(), key=lambda pair: len(pair[1]), reverse=True)
        for place, origin in (("", str(self.home.root)), *deepest):
            if written == origin or written.startswith(origin + "/"):
                inside = "/" + place + written[len(origin) :]
                return os.path.relpath(inside, os.path.dirname("/" + path)), True
        return written, False

    def _follows(self, source: str, path: str) -> bool:
        """Include the target of a link that `--follow` matches, if that is a directory or file.

        Links in a directory that is included like this are never followed.

        Returns:
            False if the link is to be treated like any other.
        """
        patterns = [pattern for pattern in self.follow if _matches(path, pattern)]
        if not patterns or self._requested_above(path):
            return False
        try:
            mode = os.stat(source).st_mode
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UsageError(f"--follow {path}: a loop of links") from error
            self._omit(path, Reason.UNREADABLE, f"target of the link: {error.strerror}")
            self._mark_used(patterns)
            return not is_outside_link_allowed(path)
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            return False
        self._refuse_overlap(path, os.path.realpath(source))
        self._mark_used(patterns)
        self.requested.add(path)
        self._add_target(source, path, kind_of(path))
        return True

    def _is_file_of_owner(self, source: str) -> bool:
        """Check whether a link leads to a file of the home's owner.

        A directory elsewhere is a disk of its own; files of the system are not the owner's data.
        """
        try:
            found = os.stat(source)
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_uid == os.stat(self.home.root).st_uid

    def _mark_used(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            with contextlib.suppress(ValueError):
                self.scan.unused_follow.remove(pattern)

    def _refuse_overlap(self, path: str, real: str) -> None:
        included = (*self.scan.followed.values(), *self.scan.external.values())
        for other in (str(self.home.root), self.snapshots, *map(os.path.realpath, included)):
            if other and os.path.commonpath((real, other)) in (real, other):
                raise UsageError(
                    f"--follow {path}: {real} overlaps with {other}",
                    hint=f"sagewai-ops backup --exclude {shell_word(path)}",
                )

    def _add_target(self, source: str, path: str, kind: Kind) -> None:
        """Add the target of a link under the path of the link."""
        status = os.stat(source)
        real = os.path.realpath(source)
        self.scan.followed[path] = real
        if stat.S_ISDIR(status.st_mode):
            self._add(path, real, "folder", kind)
            self.stack.append(self._entries(real, path, path))
        elif kind is Kind.DATABASE:
            self._add_database(path, real, status.st_size)
        elif not self.includes_key and self._is_key(real, path, status.st_size):
            self._omit(path, Reason.KEY)
        else:
            self._add_file(path, real, kind, status.st_size)

    def _is_live(self, source: str, names: set[str]) -> bool:
        """Check whether a file must be copied as a database: Sagewai's own, or one with a log.

        Args:
            names: Of the files in its directory.
        """
        if source == self.main:
            return True
        name = source.rpartition("/")[2]
        return any(name + suffix in names for suffix in SIDECAR_SUFFIXES) and _is_database(source)

    def _is_inside(self, source: str, path: str, target: str) -> bool:
        """Check whether a link ends inside the snapshot, also by way of other links."""
        real = os.path.realpath(source)
        if self._requested_above(path):
            # Its directory is elsewhere in the snapshot than on the disk.
            place = os.path.normpath(os.path.join(os.path.dirname(path), target))
            return real == os.path.realpath(self._source_of(place))
        included = (*self.scan.followed.values(), *self.scan.external.values())
        roots = (str(self.home.root), *map(os.path.realpath, included))
        return any(real == root or real.startswith(root + "/") for root in roots)

    def _requested_above(self, path: str) -> str:
        """Return the link that `--follow` included and that is above a path; "" if none is."""
        return next((link for link in self.requested if path.startswith(link + "/")), "")

    def _source_of(self, path: str) -> str:
        """Return where a path of the snapshot is read."""
        places = [place for place in self.scan.followed if f"{path}/".startswith(f"{place}/")]
        if not places:
            return os.path.join(self.home.root, path)
        deepest = max(places, key=len)
        return self.scan.followed[deepest] + path[len(deepest) :]

    def _is_key(self, source: str, path: str, size_bytes: int) -> bool:
        if size_bytes not in _KEY_FILE_BYTES:
            return False
        try:
            with open(beneath.open_file(source), "rb") as stream:
                content = stream.read(_KEY_FILE_BYTES.stop).strip()
        except OSError:
            return False  # reported when the file is added
        return content in self.key_values or (
            path.split("/", 1)[0] in ("secrets", path) and _is_key_shaped(content)
        )

    def _add_container(self, path: str) -> None:
        """Add a directory of the archive's own, once."""
        if not any(item.path == path for item in self.scan.items):
            self._add(path, str(self.home.root), "folder", Kind.OTHER)

    def _add_file(self, path: str, source: str, kind: Kind, size_bytes: int) -> None:
        self.scan.content_bytes += size_bytes
        self._add(path, source, "file", kind)

    def _add_database(self, path: str, source: str, size_bytes: int) -> None:
        with contextlib.suppress(OSError):
            size_bytes += os.stat(source + "-wal").st_size
        self.scan.content_bytes += size_bytes
        self.scan.database_bytes += size_bytes
        self._add(path, source, "database", Kind.DATABASE)

    def _add(self, path: str, source: str, *facts: Any, **more: Any) -> None:
        source = "/." if source == "/" else source
        base = source.removesuffix(path) if source.endswith(f"/{path}") else source
        # One object for all: most of the memory of a large home is in its paths.
        base = self.bases.setdefault(base, base) if base.endswith("/") else base
        self.scan.items.append(ScanItem(path, base, *facts, **more))

    def _omit(self, path: str, reason: Reason, detail: str = "") -> None:
        self.scan.omissions.append(Omission(path, reason, detail))


def databases(scan: HomeScan) -> Iterator[ScanItem]:
    """Yield the databases of a scan, Sagewai's own first."""
    found = [item for item in scan.items.not_plain() if item.type == "database"]
    return iter(sorted(found, key=lambda item: item.path != DATABASE))


def main_database(home: Home, scan: HomeScan) -> ScanItem | None:
    """Return the database that Sagewai uses: the one in the home, or the one an override names.

    Raises:
        DamagedError: A directory is in its place.
    """
    main = os.path.realpath(home.database)
    for item in databases(scan):
        if os.path.realpath(item.source) == main:
            return item
    if home.database.is_dir():
        raise DamagedError(f"database {home.database}: is a directory")
    return None


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern.rstrip("/"))


def _unreadable(error: OSError) -> tuple[Reason, str]:
    return Reason.UNREADABLE, error.strerror or ""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a directory.

    Attributes:
        status: Of the entry itself, or why it has no status.
    """

    name: str
    path: str
    status: os.stat_result | OSError


def _read_directory(directory: str) -> tuple[list[_Entry], tuple[int, int]]:
    """Return the entries of a directory, in order, and its identity; no link is followed."""
    with beneath.closing(beneath.open_directory(directory)) as descriptor:
        entries = [
            _Entry(name, f"{directory}/{name}", _status(name, descriptor))
            for name in sorted(os.listdir(descriptor))
        ]
        return entries, _identity(os.fstat(descriptor))


def directories_above(directory: Path) -> frozenset[tuple[int, int]]:
    """Return device and inode of a directory and of those above it, as far as they exist."""
    found = set()
    real = Path(os.path.realpath(directory))
    for path in (real, *real.parents):
        with contextlib.suppress(OSError, OpsError):
            found.add(_identity(beneath.status(path)))
    return frozenset(found)


def inside_error(snapshots: Path | str, directory: Path | str, home: Home) -> UsageError:
    """Return the error for snapshots that would be in a directory of the home."""
    return UsageError(
        f"snapshot directory {snapshots}: inside the home {home.root}, as {directory} is; "
        "snapshots must be stored outside the home",
        hint="sagewai-ops backup --snapshots DIR",
    )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(name: str, directory: int) -> os.stat_result | OSError:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        return error


def _is_orphan(entry: _Entry, names: set[str]) -> bool:
    """Check whether an entry is a `-wal` with content whose database is missing."""
    owner = entry.name.removesuffix("-wal")
    is_filled = isinstance(entry.status, os.stat_result) and entry.status.st_size > 0
    return entry.name != owner not in names and is_filled


def _special_type(mode: int) -> str:
    names = ((stat.S_ISSOCK, "socket"), (stat.S_ISFIFO, "FIFO"), (stat.S_ISBLK, "block device"))
    return next((name for test, name in names if test(mode)), "character device")


def _is_database(path: str) -> bool:
    try:
        with open(beneath.open_file(path), "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _is_key_shaped(content: bytes) -> bool:
    import base64
    import binascii

    try:
        return len(content) == 44 and len(base64.urlsafe_b64decode(content)) == 32
    except binascii.Error:
        return False
