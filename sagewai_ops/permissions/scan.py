"""Look at every entry of a home and at the directories above it, and judge each by the rules.

One `fstatat` for an entry, through the descriptor of its directory, so that no link is followed; of
all content only the key's length is read. At any moment one directory is open, and what is kept are
the directories still to be seen and the findings. Sagewai may be running.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from sagewai_ops.home.paths import (
    DATABASE,
    LEGACY_PLACES,
    SIDECAR_SUFFIXES,
    Home,
    require,
)
from sagewai_ops.permissions.attributes import key_length, opened, state_of
from sagewai_ops.permissions.entry_kinds import (
    COPIED_NAMES,
    NEVER_COPIES,
    SECRET_DIRECTORIES,
    SECRET_FILES,
    Facts,
    Part,
    part_beside,
    part_of_directory,
    part_of_file,
)
from sagewai_ops.permissions.evaluator import Look
from sagewai_ops.permissions.findings import Inspection, order
from sagewai_ops.permissions.path_walk import way_to, weak_spot
from sagewai_ops.permissions.rules import LETS_IN, OTHERS, WRITE_BY_OTHERS
from sagewai_ops.progress import Progress

_SNAPSHOT = re.compile(r"\.?sagewai-\d{8}T\d{6}Z-[0-9a-f]{6}\.")
_DIRECTORY_VARIABLES = ("SAGEWAI_CACHE_DIR", "SAGEWAI_SOPS_ROOT")  # a cache; sealed by SOPS
_SCRATCH = "data/workers"  # sandboxes leave files of the users of their containers there
_OWN_ROOT = "home"
_SNAPSHOT_ROOT = "snapshots"
# What an ordinary file may have without a second look: no write bit for others, nothing odd.
_SECOND_LOOK = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | 0o022
_SECOND_LOOK_AT_FILE = _SECOND_LOOK | 0o111  # capabilities are a program's alone


def inspect(
    home: Home,
    snapshots: Path | None = None,
    *,
    refused_key: str = "",
    progress: Progress | None = None,
) -> Inspection:
    """Judge a home, what its overrides name, the directories above it and its snapshots.

    Args:
        snapshots: Their directory; need not exist.
        refused_key: What Sagewai refuses of the key of the environment; "" for nothing.
        progress: Told of entries; how many there are is not known before.

    Raises:
        NotFoundError: There is no such home.
        PermissionDeniedError: The home itself cannot be opened.
    """
    require(home)
    status = os.stat(home.root)
    # Root looks after the homes of others; anybody else's home should be his own.
    owner = status.st_uid if os.geteuid() == 0 else os.geteuid()
    look = _Look(home, owner, status, progress=progress)
    for passed in way_to(home.named):
        look.above(passed)
    look.tree(home.root)
    if refused_key:
        facts = look.facts_of(Part.VARIABLE, "", status)
        facts = replace(facts, problem=refused_key)
        look.judge(Part.VARIABLE, facts, home.master_key, "", status)
    for variable, path in home.overrides.items():
        look.outside(variable, path)
    if snapshots is not None and snapshots.is_dir():
        directory = Path(os.path.realpath(snapshots))
        try:
            look.snapshots(directory)
        except PermissionError as error:
            look.unread_directory(Part.SNAPSHOTS, "", directory, "", error)
    return Inspection(home.root, snapshots, tuple(sorted(look.findings, key=order)), look.entries)


@dataclass(frozen=True, slots=True)
class _Place:
    """A tree that is walked.

    Attributes:
        root: Where it is.
        prefix: The path in the home that its root stands for; not "" where a link led here.
        label: As `Finding.root`.
    """

    root: Path
    prefix: str
    label: str

    def below(self, path: str) -> str:
        """Give the path below the root of what has this path in the home."""
        return path[len(self.prefix) :].lstrip("/")

    def shown(self, path: str) -> Path:
        """Give the absolute path of it."""
        return self.root / self.below(path)


@dataclass(slots=True)
class _Look(Look):
    progress: Progress | None = None
    followed: set[Path] = field(default_factory=set)  # what links to directories of secrets led to
    placed: dict[str, Part] = field(default_factory=dict)  # documents that a variable moved inside

    def __post_init__(self) -> None:
        places = {self.home.admin_state: Part.DOCUMENT, self.home.connections: Part.DOCUMENT}
        for suffix in ("", *SIDECAR_SUFFIXES):
            places[self.home.database.with_name(self.home.database.name + suffix)] = Part.DATABASE
        for path, part in places.items():
            if path.is_relative_to(self.home.root):
                self.placed[path.relative_to(self.home.root).as_posix()] = part

    def tree(self, root: Path) -> None:
        """Judge the home and everything in it."""
        with opened(root, "") as descriptor:
            facts = self.facts_of(Part.HOME, "", self.status, descriptor)
            self.judge(Part.HOME, facts, root, _OWN_ROOT, self.status)
        self.walk(_Place(root, "", _OWN_ROOT))

    def walk(self, place: _Place) -> None:
        """Judge everything below a root."""
        careful = {path.rpartition("/")[0] for path in self.placed} | {"", "config", "db", "fleet"}
        pending = [place.prefix]
        while pending:
            directory = pending.pop()
            try:
                with (
                    opened(place.root, place.below(directory)) as descriptor,
                    os.scandir(descriptor) as entries,
                ):
                    if directory in careful or directory.split("/", 1)[0] == "secrets":
                        self.documents(place, directory, descriptor, entries, pending)
                    else:
                        self.ordinary(place, directory, descriptor, entries, pending)
            except FileNotFoundError:
                continue  # Sagewai removed it meanwhile
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    continue  # replaced by something else meanwhile
                self.unread(place, directory, error)
            if self.progress:
                self.progress("checking permissions", self.entries, 0)

    def ordinary(
        self,
        place: _Place,
        directory: str,
        descriptor: int,
        entries: Iterator[os.DirEntry[str]],
        pending: list[str],
    ) -> None:
        """Judge what is in a directory without documents; nearly all of a large home."""
        owner = self.owner if not f"{directory}/".startswith(_SCRATCH + "/") else -1
        copies = COPIED_NAMES if directory.split("/", 1)[0] != NEVER_COPIES else frozenset[str]()
        start, count = directory + "/", 0
        for entry in entries:
            count += 1
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            mode = status.st_mode
            kind = mode & 0o170000
            if kind == stat.S_IFDIR:
                pending.append(start + entry.name)
                doubtful = mode & _SECOND_LOOK
            elif kind == stat.S_IFLNK:
                continue
            else:
                doubtful = mode & _SECOND_LOOK_AT_FILE or entry.name in copies
            if doubtful or status.st_uid != owner:
                if owner < 0 and not doubtful:
                    continue
                path = start + entry.name
                part = Part.BACKUP if entry.name in copies else Part.OTHER
                if kind == stat.S_IFDIR:
                    part = part_of_directory(path)
                facts = self.facts_of(part, path, status, descriptor, entry.name, owned=owner >= 0)
                self.judge(part, facts, place.shown(path), place.label, status)
        self.entries += count

    def documents(
        self,
        place: _Place,
        directory: str,
        descriptor: int,
        entries: Iterator[os.DirEntry[str]],
        pending: list[str],
    ) -> None:
        """Judge what is in a directory with secrets."""
        for entry in entries:
            self.entries += 1
            path = f"{directory}/{entry.name}" if directory else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            shown = place.shown(path)
            part = self.part_of(path, is_directory=stat.S_ISDIR(status.st_mode))
            if stat.S_ISLNK(status.st_mode):
                self.link(path, shown, place.label, status)
                continue
            facts = self.facts_of(part, path, status, descriptor, entry.name)
            self.judge(part, facts, shown, place.label, status)
            if stat.S_ISDIR(status.st_mode) and part is not Part.OWN_DIRECTORY:
                pending.append(path)

    def part_of(self, path: str, *, is_directory: bool) -> Part:
        """Tell the part of an entry; a directory in a document's place is that document."""
        if path in self.placed:
            return self.placed[path]
        is_document = path in LEGACY_PLACES or path in (*LEGACY_PLACES.values(), DATABASE)
        return part_of_directory(path) if is_directory and not is_document else part_of_file(path)

    def link(self, path: str, shown: Path, label: str, status: os.stat_result) -> None:
        """Judge a link in a directory with secrets by what it leads to."""
        target = Path(os.path.realpath(shown))
        try:
            led_to = os.stat(shown)
        except OSError:
            led_to = None
        is_directory = led_to is not None and stat.S_ISDIR(led_to.st_mode)
        part = self.part_of(path, is_directory=is_directory)
        if part not in SECRET_FILES | SECRET_DIRECTORIES:
            return
        problem, length = "", None
        if led_to is not None:
            problem = self._problem_of_target(part, shown, led_to)
            if part is Part.KEY and stat.S_ISREG(led_to.st_mode):
                length = key_length(os.fspath(shown), None)[0]
        facts = Facts(
            part=part,
            path=path,
            type="link" if led_to else "nothing",
            state=state_of(status),
            links=1,
            owner=self.owner,
            owner_gid=self.status.st_gid,
            problem=problem,
            key_length=length,
            target=os.fspath(target),
        )
        self.judge(part, facts, shown, label, status)
        if is_directory and target not in self.followed:
            self.followed.add(target)  # links may lead in a circle
            self.walk(_Place(target, path, ""))

    def _problem_of_target(self, part: Part, link: Path, led_to: os.stat_result) -> str:
        mode = stat.S_IMODE(led_to.st_mode)
        directory_bits = OTHERS if part in (Part.SECRET_DIRECTORY, Part.OWN_DIRECTORY) else 0o022
        if mode & (directory_bits if stat.S_ISDIR(led_to.st_mode) else OTHERS):
            return f"mode {mode:04o} {LETS_IN}"
        if led_to.st_uid != self.owner:
            return f"owned by uid {led_to.st_uid}, not {self.owner}"
        return weak_spot(link, self.owner, {*self.passed, self.home.root, link.parent})

    def outside(self, variable: str, path: Path) -> None:
        """Judge what a variable puts outside the home, its copies, and the directories above it."""
        directory = Path(os.path.realpath(path.parent))
        is_directory = variable in _DIRECTORY_VARIABLES
        for passed in way_to(path):
            if passed != directory or is_directory:
                self.above(passed)
        try:
            if is_directory:
                self.place(Part.DIRECTORY, Path(os.path.realpath(path)), path)
            else:
                self.place(Part.DIRECTORY, directory, path.parent)
                self.beside(Part.DATABASE if "DATABASE" in variable else Part.DOCUMENT, path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except PermissionError as error:
            self.unread_directory(Part.DIRECTORY, "", directory, "", error)

    def beside(self, own: Part, path: Path) -> None:
        """Judge a document outside the home, and what beside it bears its name."""
        with opened(Path(os.path.realpath(path.parent)), "") as descriptor:
            for name in sorted(os.listdir(descriptor)):
                part = part_beside(own, path.name, name)
                if part is None:
                    continue
                self.entries += 1
                with suppress(FileNotFoundError):  # a link that leads nowhere
                    status = os.stat(name, dir_fd=descriptor)
                    facts = self.facts_of(part, "", status, descriptor, name)
                    self.judge(part, facts, path.with_name(name), "", status)

    def place(self, part: Part, directory: Path, shown: Path) -> None:
        """Judge a directory outside the home, once, and not what is in it."""
        if directory in self.passed:
            return
        self.passed.add(directory)
        self.entries += 1
        with opened(directory, "") as descriptor:
            status = os.fstat(descriptor)
            self.judge(part, self.facts_of(part, "", status, descriptor), shown, "", status)

    def snapshots(self, directory: Path) -> None:
        """Judge the snapshot directory and the snapshots in it."""
        with opened(directory, "") as descriptor:
            names = os.listdir(descriptor)
            status = os.fstat(descriptor)
            is_open = status.st_mode & WRITE_BY_OTHERS and not status.st_mode & stat.S_ISVTX
            is_shared = not all(_SNAPSHOT.match(name) for name in names)
            # A directory of other things too is not ours to close; only who writes there matters.
            if is_open or not is_shared:
                facts = self.facts_of(Part.SNAPSHOTS, "", status, descriptor)
                label = "" if is_shared else _SNAPSHOT_ROOT
                self.judge(Part.SNAPSHOTS, facts, directory, label, status)
            for name in filter(_SNAPSHOT.match, names):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    self.entries += 1
                    if stat.S_ISREG(status.st_mode):
                        facts = self.facts_of(Part.SNAPSHOT, name, status, descriptor, name)
                        self.judge(Part.SNAPSHOT, facts, directory / name, _SNAPSHOT_ROOT, status)

    def unread(self, place: _Place, directory: str, error: OSError) -> None:
        """Note a directory of a tree that cannot be listed."""
        part = part_of_directory(directory)
        self.unread_directory(part, directory, place.shown(directory), place.label, error)
