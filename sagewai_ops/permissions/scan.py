"""Check every entry of a home, and the directories above it, by the rules.

Each entry is read by one `fstatat` through the descriptor of its directory, so that no link is
followed; of all content only the length of the key is read. One directory is open at a time, and
memory holds the directories still to be read and the findings. Sagewai can be running.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path

from sagewai_ops.fs import beneath
from sagewai_ops.fs.volumes import LOST_AND_FOUND, is_lost_and_found, names_in
from sagewai_ops.home.paths import DATABASE, LEGACY_PLACES, SIDECAR_SUFFIXES, Home, require
from sagewai_ops.permissions.attributes import entry_state, open_directory, read_key_length
from sagewai_ops.permissions.entry_kinds import (
    COPIED_NAMES,
    NEVER_COPIES,
    SECRET_DIRECTORIES,
    SECRET_FILES,
    EntryKind,
    Facts,
    directory_kind,
    file_kind,
    sibling_kind,
)
from sagewai_ops.permissions.evaluator import Evaluator
from sagewai_ops.permissions.findings import Inspection, sort_key
from sagewai_ops.permissions.path_walk import find_replaceable_step, resolution_steps
from sagewai_ops.permissions.rules import ACCESSIBLE, OTHERS, WRITE_BY_OTHERS
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote

_SNAPSHOT = re.compile(r"\.?sagewai-\d{8}T\d{6}Z-[0-9a-f]{6}\.")
_DIRECTORY_VARIABLES = ("SAGEWAI_CACHE_DIR", "SAGEWAI_SOPS_ROOT")  # a cache; encrypted by SOPS
_SANDBOXES = "data/workers"  # containers create files there with the uids of their own users
_HOME_ROOT = "home"
_SNAPSHOT_ROOT = "snapshots"
# An ordinary file without these bits violates no rule about modes.
_SUSPECT_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | 0o022
_SUSPECT_FILE_BITS = _SUSPECT_BITS | 0o111  # a program can have capabilities
_TYPE_AND_SUSPECT_BITS = stat.S_IFMT(0o177777) | _SUSPECT_FILE_BITS


def inspect(
    home: Home,
    snapshots: Path | None = None,
    *,
    refused_key: str = "",
    progress: Progress | None = None,
) -> Inspection:
    """Check a home, the entries that its overrides name, the directories above, and its snapshots.

    Args:
        snapshots: The snapshot directory; need not exist.
        refused_key: Why Sagewai does not accept the key of the environment; "" if it does.
        progress: In entries; the total is not known.

    Raises:
        NotFoundError: The home does not exist.
        PermissionDeniedError: The home itself cannot be opened.
    """
    require(home)
    status = os.stat(home.root)
    # Root checks the homes of other users; the home of another user should belong to that user.
    owner = status.st_uid if os.geteuid() == 0 else os.geteuid()
    scanner = _Scanner(home, owner, status, progress=progress)
    for step in resolution_steps(home.named):
        scanner.check_ancestor(step)
    scanner.scan_home(home.root)
    if refused_key:
        facts = scanner.collect_facts(EntryKind.VARIABLE, "", status)
        scanner.evaluate(replace(facts, problem=refused_key), home.master_key, "", status)
    for variable, path in home.overrides.items():
        scanner.check_override(variable, path)
    # Where another process of root's has the directory, root alone can write it.
    is_local = snapshots is not None and not is_remote(snapshots)
    if snapshots and is_local and not beneath.is_routed(snapshots) and snapshots.is_dir():
        directory = Path(os.path.realpath(snapshots))
        try:
            scanner.check_snapshots(directory)
        except PermissionError as error:
            scanner.report_unreadable(EntryKind.SNAPSHOTS, "", directory, "", error)
    findings = tuple(sorted(scanner.findings, key=sort_key))
    return Inspection(home.root, snapshots, findings, scanner.entries)


@dataclass(frozen=True, slots=True)
class _Tree:
    """A tree of directories.

    Attributes:
        path: Of its root.
        prefix: The path in the home that the root has; not "" for the target of a link.
        label: As `Finding.root`.
    """

    path: Path
    prefix: str
    label: str

    def relative(self, path: str) -> str:
        """Return a path in the home as a path below the root."""
        return path[len(self.prefix) :].lstrip("/")

    def absolute(self, path: str) -> Path:
        """Return a path in the home as an absolute one."""
        return self.path / self.relative(path)


@dataclass(slots=True)
class _Scanner(Evaluator):
    progress: Progress | None = None
    followed: set[Path] = field(default_factory=set)  # targets of links to directories of secrets
    overridden: dict[str, EntryKind] = field(default_factory=dict)  # documents moved in the home

    def __post_init__(self) -> None:
        kinds = {
            self.home.admin_state: EntryKind.DOCUMENT,
            self.home.connections: EntryKind.DOCUMENT,
        }
        for suffix in ("", *SIDECAR_SUFFIXES):
            name = self.home.database.name + suffix
            kinds[self.home.database.with_name(name)] = EntryKind.DATABASE
        for path, kind in kinds.items():
            if path.is_relative_to(self.home.root):
                self.overridden[path.relative_to(self.home.root).as_posix()] = kind

    def scan_home(self, root: Path) -> None:
        """Check the home and everything in it."""
        with open_directory(root, "") as descriptor:
            facts = self.collect_facts(EntryKind.HOME, "", self.status, descriptor)
            self.evaluate(facts, root, _HOME_ROOT, self.status)
        self.scan_tree(_Tree(root, "", _HOME_ROOT))

    def scan_tree(self, tree: _Tree) -> None:
        """Check everything below a root."""
        with_documents = {path.rpartition("/")[0] for path in self.overridden}
        with_documents |= {"", "config", "db", "fleet"}
        pending = [tree.prefix]
        while pending:
            directory = pending.pop()
            try:
                with (
                    open_directory(tree.path, tree.relative(directory)) as descriptor,
                    os.scandir(descriptor) as entries,
                ):
                    if directory in with_documents or directory.split("/", 1)[0] == "secrets":
                        self.scan_documents(tree, directory, descriptor, entries, pending)
                    else:
                        self.scan_ordinary(tree, directory, descriptor, entries, pending)
            except FileNotFoundError:
                continue  # removed by Sagewai
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    continue  # replaced by an entry of another type
                kind, path = directory_kind(directory), tree.absolute(directory)
                self.report_unreadable(kind, directory, path, tree.label, error)
            if self.progress:
                self.progress("checking permissions", self.entries, 0)

    def scan_ordinary(
        self,
        tree: _Tree,
        directory: str,
        descriptor: int,
        entries: Iterator[os.DirEntry[str]],
        pending: list[str],
    ) -> None:
        """Check the entries of a directory without documents; nearly all of a large home."""
        owner = self.owner if not f"{directory}/".startswith(_SANDBOXES + "/") else -1
        copies = COPIED_NAMES if directory.split("/", 1)[0] != NEVER_COPIES else frozenset[str]()
        start, count = directory + "/", 0
        for entry in entries:
            count += 1
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            mode = status.st_mode
            # One comparison for nearly all: an ordinary file of the owner's.
            if (
                mode & _TYPE_AND_SUSPECT_BITS == stat.S_IFREG
                and status.st_uid == owner
                and not (copies and entry.name in copies)
            ):
                continue
            name, file_type = entry.name, stat.S_IFMT(mode)
            if file_type == stat.S_IFDIR:
                if name == LOST_AND_FOUND and is_lost_and_found(tree.absolute(directory), name):
                    count -= 1
                    continue
                pending.append(start + name)
                is_suspect = mode & _SUSPECT_BITS
            elif file_type == stat.S_IFLNK:
                continue
            else:
                is_suspect = mode & _SUSPECT_FILE_BITS or name in copies
            if is_suspect or status.st_uid != owner:
                if owner < 0 and not is_suspect:
                    continue
                path = start + name
                kind = EntryKind.BACKUP if name in copies else EntryKind.OTHER
                if file_type == stat.S_IFDIR:
                    kind = directory_kind(path)
                facts = self.collect_facts(
                    kind, path, status, descriptor, name, is_owned=owner >= 0
                )
                self.evaluate(facts, tree.absolute(path), tree.label, status)
        self.entries += count

    def scan_documents(
        self,
        tree: _Tree,
        directory: str,
        descriptor: int,
        entries: Iterator[os.DirEntry[str]],
        pending: list[str],
    ) -> None:
        """Check the entries of a directory with secrets."""
        for entry in entries:
            if is_lost_and_found(tree.absolute(directory), entry.name, is_top=not directory):
                continue
            self.entries += 1
            path = f"{directory}/{entry.name}" if directory else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(status.st_mode):
                self.check_link(path, tree, status)
                continue
            kind = self.entry_kind(path, is_directory=stat.S_ISDIR(status.st_mode))
            facts = self.collect_facts(kind, path, status, descriptor, entry.name)
            self.evaluate(facts, tree.absolute(path), tree.label, status)
            if stat.S_ISDIR(status.st_mode) and kind is not EntryKind.OWN_DIRECTORY:
                pending.append(path)

    def entry_kind(self, path: str, *, is_directory: bool) -> EntryKind:
        """Return the kind of an entry; a directory with the name of a document is of its kind."""
        if path in self.overridden:
            return self.overridden[path]
        is_document = path in LEGACY_PLACES or path in (*LEGACY_PLACES.values(), DATABASE)
        return directory_kind(path) if is_directory and not is_document else file_kind(path)

    def check_link(self, path: str, tree: _Tree, status: os.stat_result) -> None:
        """Check a link in a directory with secrets by its target."""
        link = tree.absolute(path)
        target = Path(os.path.realpath(link))
        try:
            target_status = os.stat(link)
        except OSError:
            target_status = None
        is_directory = target_status is not None and stat.S_ISDIR(target_status.st_mode)
        kind = self.entry_kind(path, is_directory=is_directory)
        if kind not in SECRET_FILES | SECRET_DIRECTORIES:
            return
        problem, key_length = "", None
        if target_status is not None:
            problem = self._target_problem(kind, link, target_status)
            if kind is EntryKind.KEY and stat.S_ISREG(target_status.st_mode):
                key_length = read_key_length(os.fspath(link), None)[0]
        facts = Facts(
            kind=kind,
            path=path,
            type="link" if target_status else "nothing",
            state=entry_state(status),
            links=1,
            owner=self.owner,
            owner_gid=self.status.st_gid,
            problem=problem,
            key_length=key_length,
            target=os.fspath(target),
        )
        self.evaluate(facts, link, tree.label, status)
        if is_directory and target not in self.followed:
            self.followed.add(target)  # links can form a loop
            self.scan_tree(_Tree(target, path, ""))

    def _target_problem(self, kind: EntryKind, link: Path, target: os.stat_result) -> str:
        mode = stat.S_IMODE(target.st_mode)
        is_private = kind in (
            EntryKind.SECRET_DIRECTORY,
            EntryKind.OWN_DIRECTORY,
            EntryKind.COMPANION_DIRECTORY,
        )
        directory_bits = OTHERS if is_private else WRITE_BY_OTHERS
        if mode & (directory_bits if stat.S_ISDIR(target.st_mode) else OTHERS):
            return f"mode {mode:04o}, {ACCESSIBLE}"
        if target.st_uid != self.owner:
            return f"owned by uid {target.st_uid}, not {self.owner}"
        known = {*self.ancestors, self.home.root, link.parent}
        return find_replaceable_step(link, self.owner, known)

    def check_override(self, variable: str, path: Path) -> None:
        """Check a document outside the home, its copies, and the directories above it."""
        directory = Path(os.path.realpath(path.parent))
        is_directory = variable in _DIRECTORY_VARIABLES
        for step in resolution_steps(path):
            if step != directory or is_directory:
                self.check_ancestor(step)
        try:
            if is_directory:
                self.check_directory(Path(os.path.realpath(path)), path)
            else:
                self.check_directory(directory, path.parent)
                is_database = "DATABASE" in variable
                self.check_siblings(EntryKind.DATABASE if is_database else EntryKind.DOCUMENT, path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except PermissionError as error:
            self.report_unreadable(EntryKind.DIRECTORY, "", directory, "", error)

    def check_siblings(self, document_kind: EntryKind, path: Path) -> None:
        """Check a document outside the home, and the files that belong to it."""
        with open_directory(Path(os.path.realpath(path.parent)), "") as descriptor:
            for name in sorted(os.listdir(descriptor)):
                kind = sibling_kind(document_kind, path.name, name)
                if kind is None:
                    continue
                self.entries += 1
                with suppress(FileNotFoundError):  # a dangling link
                    status = os.stat(name, dir_fd=descriptor)
                    facts = self.collect_facts(kind, "", status, descriptor, name)
                    self.evaluate(facts, path.with_name(name), "", status)

    def check_directory(self, directory: Path, path: Path) -> None:
        """Check a directory outside the home, once, without its entries.

        Args:
            path: The name of the directory in a finding.
        """
        if directory in self.ancestors:
            return
        self.ancestors.add(directory)
        self.entries += 1
        with open_directory(directory, "") as descriptor:
            status = os.fstat(descriptor)
            facts = self.collect_facts(EntryKind.DIRECTORY, "", status, descriptor)
            self.evaluate(facts, path, "", status)

    def check_snapshots(self, directory: Path) -> None:
        """Check the snapshot directory and the snapshots in it."""
        with open_directory(directory, "") as descriptor:
            names = names_in(directory)
            status = os.fstat(descriptor)
            is_open = status.st_mode & WRITE_BY_OTHERS and not status.st_mode & stat.S_ISVTX
            is_shared = not all(_SNAPSHOT.match(name) for name in names)
            # A directory with other files is only checked for write access, and never changed.
            if is_open or not is_shared:
                facts = self.collect_facts(EntryKind.SNAPSHOTS, "", status, descriptor)
                self.evaluate(facts, directory, "" if is_shared else _SNAPSHOT_ROOT, status)
            for name in filter(_SNAPSHOT.match, names):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    self.entries += 1
                    if stat.S_ISREG(status.st_mode):
                        facts = self.collect_facts(
                            EntryKind.SNAPSHOT, name, status, descriptor, name
                        )
                        self.evaluate(facts, directory / name, _SNAPSHOT_ROOT, status)
