"""A repository of restic or borg as a remote place.

Each object of the place is a snapshot of the engine: a tree (the files of one of our snapshots), or
a small file such as a metadata file. The engine stores an object in one step, so a list never shows
a part of one. Of two small files with the same name the later one counts, and the other one is
forgotten when the engine forgets something else. Of two trees that of the metadata file counts:
another writer of the repository replaces no snapshot, and what shares its name is kept. Of several
metadata files with one name, the latest that is authentic counts, and only such a one replaces.

Small files are read through a cache of the user: each read starts the engine. The engine's ids are
hashes of the content (restic), or unique (borg), and their content is authenticated by its readers.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from sagewai_ops.engines.borg import Borg
from sagewai_ops.engines.engine import Engine, NewTree, StoredObject, home_label
from sagewai_ops.engines.process import Access, engine_environment
from sagewai_ops.engines.restic import Restic
from sagewai_ops.engines.secrets import passed_password, refuse_roots_secrets, with_own_home
from sagewai_ops.errors import DamagedError, NotFoundError, OpsError, UsageError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.given_files import path_owners, resolve_given_path
from sagewai_ops.fs.trust import is_trusted_directory
from sagewai_ops.records import dataclass
from sagewai_ops.remote.address import REPOSITORY_VARIABLES
from sagewai_ops.remote.store import Bounds, Deletion, ObjectFacts, Upload
from sagewai_ops.text import printable, shell_word

_MOST_CACHED_BYTES = 64 * 1024  # of an object; a metadata file has some 2 KB
_MOST_SHOWN = 3  # ids in a warning
_PROGRAM = "program"  # in the cache
_Objects: TypeAlias = list[StoredObject]
_Facts: TypeAlias = list[ObjectFacts]
_CACHED = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Connection:
    """How a repository is opened.

    Attributes:
        engine: `restic` or `borg`.
        address: For messages, without secrets.
        repository: As the engine names it; may contain a password.
        environment: Of the program.
        password: Returns the password; None to leave it to the engine's own variables.
        upload_kib, download_kib: Per second; None for no limit.
    """

    engine: str
    address: str
    repository: str = field(repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    password: Callable[[], str] | None = None
    upload_kib: int | None = None
    download_kib: int | None = None


def open_engine(connection: Connection) -> Engine:
    """Return the engine of a repository; it is not started.

    Raises:
        KeyMissingError, NotFoundError, UsageError: The password cannot be read.
        PermissionDeniedError: Root's secrets would reach the user whose rights this process took.
    """
    environment = with_own_home(engine_environment(connection.environment))
    variable = REPOSITORY_VARIABLES[connection.engine]
    refuse_roots_secrets(connection.engine, {**environment, variable: connection.repository})
    if connection.password:
        password = connection.password()
    else:
        password = passed_password(connection.engine, environment)
    upload, download = connection.upload_kib, connection.download_kib
    if connection.engine == "restic":
        environment.pop("RESTIC_REPOSITORY_FILE", None)
        environment["RESTIC_REPOSITORY"] = connection.repository
        if password:
            for name in ("RESTIC_PASSWORD", "RESTIC_PASSWORD_COMMAND"):
                environment.pop(name, None)
        access = Access(
            "restic",
            environment,
            password,
            "RESTIC_PASSWORD_FILE",
            "/dev/fd/{}",
            end_signal=signal.SIGINT,
        )
        flags = (("--limit-upload", upload), ("--limit-download", download))
        limits = [f"{flag}={value}" for flag, value in flags if value is not None]
        return Restic(access, tuple(limits))
    environment["BORG_REPO"] = connection.repository
    if password:
        for name in ("BORG_PASSPHRASE", "BORG_PASSCOMMAND"):
            environment.pop(name, None)
    access = Access("borg", environment, password, "BORG_PASSPHRASE_FD", package="borgbackup")
    if download is not None:
        raise UsageError("--limit-download: borg has no such limit")
    limits = [f"--upload-ratelimit={upload}"] if upload is not None else []
    return Borg(access, tuple(limits))


class RepositoryStore:
    """A repository; a `Store` and a `TreeStore`.

    Args:
        connection: How it is opened.
        scratch: Creates a private directory for a tree that is read, and removes it.
        is_genuine: Whether a small file is authentic, from its name and content.
    """

    def __init__(
        self,
        connection: Connection,
        scratch: Callable[[], AbstractContextManager[Path]],
        is_genuine: Callable[[str, bytes], bool] = lambda _name, _content: True,
    ) -> None:
        self._connection = connection
        self._scratch = scratch
        self._is_genuine = is_genuine
        self._verdicts: dict[str, bool] = {}  # of it, by the engine's id
        self._trees: dict[str, tuple[str, object]] = {}  # of metadata files, by the engine's id
        self._foreign: Collection[str] = ()
        self._opened: Engine | None = None
        self._objects: _Objects | None = None
        self._partial: _Objects = []
        self._is_encrypted = True
        self._stored: dict[str, StoredObject] = {}  # by this run
        self._cache = _Cache(connection)

    @property
    def address(self) -> str:
        """The repository, for messages."""
        return self._connection.address

    def list(self) -> list[ObjectFacts]:
        """List all objects; the list is read once, and again after a change."""
        return [_facts(found) for _name, found in sorted(self._current().items())]

    def facts(self, name: str) -> ObjectFacts | None:
        """Return the facts of an object."""
        found = self._current().get(name)
        return _facts(found) if found else None

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Read a part of a small file."""
        return self._content(name)[offset : offset + count]

    def stream(self, name: str) -> Generator[bytes, None, None]:
        """Yield the content of a small file."""
        yield self._content(name)

    def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Store a small file; one that it replaces does not count, and is forgotten later."""
        if not replace and name in self._current():
            return False
        self._add(self._engine().store_file(content, name, self._order_of(name)), content)
        return True

    @contextlib.contextmanager
    def begun_put(self, name: str, content: bytes) -> Generator[Callable[[], None], None, None]:
        """Begin to store a small file, for the block, which calls the function to store it."""
        with self._engine().begun_file(content, name, self._order_of(name)) as complete:
            yield lambda: self._add(complete(), content)

    def upload(self, name: str, expected_bytes: int) -> AbstractContextManager[Upload]:
        """Refuse: a repository has trees, and no archives."""
        raise UsageError(
            f"{self.address}: a repository stores no archives: {name}, {expected_bytes} bytes"
        )

    def delete(self, name: str) -> Deletion:
        """Forget an object."""
        self._forget([item for item in self._all() if item.name == name])
        return Deletion.DELETED

    def close(self) -> None:
        """Do nothing: no engine runs between calls."""

    def prepare(self, *, create: bool, allow_clear: bool) -> tuple[str, ...]:
        """Check that the repository can be used, or create it, and forget replaced objects.

        Args:
            create: Whether it may be created.
            allow_clear: Whether it may be remote and not encrypted.

        Returns:
            Warnings.

        Raises:
            UsageError: It is both, and `allow_clear` is false.
        """
        try:
            self._all()
        except NotFoundError:
            # A missing program is no missing repository: this repeats its error.
            self._engine().require_version()
            if not create:
                raise
            self._engine().initialise()
            self._objects = []
            return ()
        warnings = self._check_encryption(allow_clear=allow_clear)
        self._forget(self._superseded())
        return (*warnings, *self.passed_over())

    def store_tree(
        self,
        name: str,
        directory: Path,
        size_bytes: int,
        digest: str,
        *,
        home_id: str = "",
        previous: str = "",
    ) -> None:
        """Store the directory `tree` of a directory as an object."""
        trees = [item for item in self._all() if item.is_tree and item.digest == previous]
        parent = max(trees, key=lambda item: item.order, default=None) if previous else None
        new = NewTree(name, size_bytes, digest, home_label(home_id) if home_id else "")
        self._add(self._engine().store_tree(directory, new, parent))

    def fetch(self, name: str, paths: Sequence[str] | None, target: Path, bounds: Bounds) -> None:
        """Write a tree, or files of it, to `tree` in a private directory."""
        self._engine().restore(self._find(name), paths, target, bounds)

    def forget_all(self, names: Iterable[str], home_ids: Collection[str] | None = None) -> None:
        """Forget objects in one run of the engine."""
        wanted = set(names)
        self._forget([item for item in self._of_homes(home_ids) if item.name in wanted])

    def trees_of(self, home_ids: Collection[str]) -> _Facts:
        """List the trees of homes, with a metadata file or not."""
        return [_facts(item) for item in self._of_homes(home_ids) if item.is_tree]

    def forget_partial(self, home_ids: Collection[str], before: datetime) -> None:
        """Forget what runs that were killed before a moment left of trees of homes."""
        self._all()
        labels = set(map(home_label, home_ids))
        self._forget(
            [item for item in self._partial if item.home in labels and item.stored_at < before]
        )

    def discard(self, name: str) -> None:
        """Forget what this run stored under a name, and nothing else."""
        stored = self._stored.pop(name, None)
        self._forget([item for item in self._all() if stored and _is_same(item, stored)])

    def refresh(self) -> None:
        """Read the list again when it is needed: others may have changed the repository."""
        self._objects = None

    def has_stored(self, names: Iterable[str]) -> bool:
        """Return whether a new list has everything that this run stored under these names."""
        self.refresh()
        listed = self._all()
        wanted = [self._stored.get(name) for name in names]
        return all(new and any(_is_same(item, new) for item in listed) for new in wanted)

    def passed_over(self) -> tuple[str, ...]:
        """Return a warning about what another writer stored as if it were of this program."""
        self._all()
        if not self._foreign:
            return ()
        count, shown = len(self._foreign), ", ".join(map(printable, [*self._foreign][:_MOST_SHOWN]))
        return (f"{self.address}: passed over, of another writer: {count}, such as {shown}",)

    def reclaim(self) -> None:
        """Remove data that no object needs."""
        self._engine().reclaim()

    def scratch(self) -> AbstractContextManager[Path]:
        """Create a private directory for a tree that is read, and remove it after the block."""
        return self._scratch()

    def _engine(self) -> Engine:
        if self._opened is None:
            engine = open_engine(self._connection)
            program = _identity_of(engine.name, self._connection.environment)
            if not program or self._cache.program() != program:
                engine.require_version()
                self._cache.keep_program(program)
            self._opened = engine
        return self._opened

    def _all(self) -> _Objects:
        if self._objects is None:
            try:
                listing = self._engine().list()
            except NotFoundError as error:
                raise self._not_initialised(error) from error
            self._objects, self._partial = listing.objects, listing.partial
            self._is_encrypted, self._foreign = listing.is_encrypted, listing.foreign
            self._cache.keep(self._objects)
        return self._objects

    def _add(self, stored: StoredObject, content: bytes | None = None) -> None:
        """Note what this run has stored."""
        self._all().append(stored)
        self._stored[stored.name] = stored
        if content is not None:
            self._cache.write(stored, content)

    def _order_of(self, name: str) -> int:
        """Return the largest order of the objects with a name; 0 without one."""
        return max((item.order for item in self._all() if item.name == name), default=0)

    def _check_encryption(self, *, allow_clear: bool) -> tuple[str, ...]:
        if self._is_encrypted:
            return ()
        if allow_clear or os.path.isabs(self._connection.repository):
            return (f"{self.address}: a repository without encryption, readable with its files",)
        raise UsageError(
            f"{self.address}: the repository is not encrypted, and others can read a remote place",
            hint="sagewai-ops backup --engine borg --repository NEW --init-repository"
            "  # or --allow-clear",
        )

    def _not_initialised(self, error: NotFoundError) -> NotFoundError:
        """Return an error with the command that creates this repository, if the engine runs."""
        if error.hint:
            return error  # the engine is not installed
        engine, _, repository = self.address.partition(":")
        named = f"--engine {engine} --repository {shell_word(repository)}"
        if engine != self._connection.engine:
            named = f"--to {self.address}"
        hint = f"sagewai-ops backup {named} --init-repository"
        return NotFoundError(error.message, hint=hint)

    def _current(self) -> dict[str, StoredObject]:
        """Return the object of each name that counts."""
        versions: dict[str, _Objects] = defaultdict(list)
        for item in sorted(self._all(), key=lambda item: item.order):
            versions[item.name].append(item)
        current = {name: self._latest(found) for name, found in versions.items()}
        for name in self._contested():
            current[name] = self._genuine(current, name)
        return current

    def _latest(self, versions: _Objects) -> StoredObject:
        """Return the latest small file that is authentic, if there is one, or the latest."""
        several = versions if len(versions) > 1 and not versions[0].is_tree else ()
        return next(filter(self._is_own, reversed(several)), versions[-1])

    def _is_own(self, item: StoredObject) -> bool:
        """Return whether a small file is authentic, by a key of this home."""
        if item.engine_id not in self._verdicts:
            is_own = False
            if item.size_bytes <= _MOST_CACHED_BYTES:
                with contextlib.suppress(DamagedError):
                    is_own = self._is_genuine(item.name, self._content_of(item))
            self._verdicts[item.engine_id] = is_own
        return self._verdicts[item.engine_id]

    def _contested(self) -> set[str]:
        """Return the names of several trees."""
        found: dict[str, set[str]] = defaultdict(set)
        for item in self._all():
            if item.is_tree:
                found[item.name].add(item.engine_id)
        return {name for name, ids in found.items() if len(ids) > 1}

    def _genuine(self, current: Mapping[str, StoredObject], name: str) -> StoredObject:
        """Return the tree that this run stored, or that the metadata file is of."""
        stored = self._stored.get(name)
        if stored and any(_is_same(item, stored) for item in self._all()):
            return stored
        cards = [item for other, item in current.items() if other.startswith(f"{name}.json")]
        own = [item for item in cards if self._is_own(item)]
        facts = [self._tree_of(item) for item in own or cards]
        fitting = [
            item
            for item in self._all()
            if item.name == name
            and any(
                item.digest == digest and size_bytes in (None, item.size_bytes)
                for digest, size_bytes in facts
            )
        ]
        return max(fitting, key=lambda item: item.order, default=current[name])

    def _tree_of(self, card: StoredObject) -> tuple[str, object]:
        """Return the hash and size of the tree of a metadata file; None for what it does not have.

        Its readers authenticate it.
        """
        if card.engine_id not in self._trees:
            document = None
            with contextlib.suppress(DamagedError, ValueError, RecursionError):
                document = json.loads(self._content_of(card))
            facts = document if isinstance(document, dict) else {}
            named = str(facts.get("archive_sha256")), facts.get("archive_bytes")
            self._trees[card.engine_id] = named
        return self._trees[card.engine_id]

    def _of_homes(self, home_ids: Collection[str] | None) -> _Objects:
        if home_ids is None:
            return self._all()
        labels = {home_label(home_id) for home_id in home_ids}
        return [item for item in self._all() if item.home in labels]

    def _find(self, name: str) -> StoredObject:
        found = self._current().get(name)
        if found is None:
            raise NotFoundError(
                f"{self.address}/{name}: not found", hint="sagewai-ops snapshots list"
            )
        return found

    def _content(self, name: str) -> bytes:
        return self._content_of(self._find(name))

    def _content_of(self, found: StoredObject) -> bytes:
        content = self._cache.read(found)
        if content is None:
            content = self._engine().read_file(found)
            if len(content) != found.size_bytes:
                sizes = f"{len(content)} bytes, {found.size_bytes} recorded"
                raise DamagedError(f"{self.address}/{found.name}: {sizes}")
            self._cache.write(found, content)
        return content

    def _superseded(self) -> _Objects:
        """Return the small files that an authentic one replaced."""
        current = self._current()
        return [
            item
            for item in self._all()
            if not item.is_tree
            and item.engine_id != current[item.name].engine_id
            and self._is_own(current[item.name])
        ]

    def _forget(self, objects: _Objects) -> None:
        """Forget objects, and those that were replaced, in one run of the engine."""
        if objects:
            chosen = {item.engine_id: item for item in (*objects, *self._superseded())}
            known = self._all()
            self._objects = None  # after a failure, the list is read again
            self._engine().forget(chosen.values())
            self._objects = [item for item in known if item.engine_id not in chosen]


class _Cache:
    """The small files of a repository that this user has read or written."""

    def __init__(self, connection: Connection) -> None:
        named = connection.environment.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(named):
            home = connection.environment.get("HOME", "")
            named = os.path.join(home, ".cache") if os.path.isabs(home) else ""
        digest = hashlib.sha256(connection.address.encode("utf-8", "surrogateescape"))
        self._directory = Path(named, "sagewai-ops", digest.hexdigest()) if named else None

    def read(self, stored: StoredObject) -> bytes | None:
        """Return the content of an object; None if it is not in the cache."""
        if stored.size_bytes > _MOST_CACHED_BYTES:
            return None
        with contextlib.suppress(OSError):
            descriptor = beneath.open_file(self._usable() / _cache_name(stored))
            with open(descriptor, "rb", buffering=0) as stream:
                content = stream.read(_MOST_CACHED_BYTES)
            if len(content) == stored.size_bytes:
                return content
        return None

    def write(self, stored: StoredObject, content: bytes) -> None:
        """Keep the content of an object, if that is possible."""
        if len(content) <= _MOST_CACHED_BYTES:
            with contextlib.suppress(OSError, OpsError):
                atomic.make_directory(self._usable())
                atomic.replace(self._usable() / _cache_name(stored), content)

    def program(self) -> bytes:
        """Return the identity of the engine whose version was checked last; empty if unknown."""
        with contextlib.suppress(OSError):
            descriptor = beneath.open_file(self._usable() / _PROGRAM)
            with open(descriptor, "rb", buffering=0) as stream:
                return stream.read(_MOST_CACHED_BYTES)
        return b""

    def keep_program(self, identity: bytes) -> None:
        """Keep the identity of an engine whose version is one that this program knows."""
        if identity:
            with contextlib.suppress(OSError, OpsError):
                atomic.make_directory(self._usable())
                atomic.replace(self._usable() / _PROGRAM, identity)

    def keep(self, objects: Iterable[StoredObject]) -> None:
        """Remove what is not in the repository."""
        known = {_cache_name(item) for item in objects}
        with contextlib.suppress(OSError):
            directory = self._usable()
            for name in beneath.list_directory(directory):
                if _CACHED.fullmatch(name) and name not in known:
                    beneath.unlink(directory / name)

    def _usable(self) -> Path:
        """Return the directory without links, if no other user can lead root elsewhere in it.

        Under `sudo`, HOME can be that of another user.

        Raises:
            OSError: Another user than root owns a part of its path, or can change the directories.
        """
        if self._directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        path = resolve_given_path(self._directory)
        is_private = path_owners(self._directory) <= {os.geteuid()}
        for directory in (path, path.parent, path.parent.parent):
            if is_private and beneath.exists(directory):
                is_private = is_trusted_directory(directory)
        if not is_private:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), os.fspath(path))
        return path


def _identity_of(program: str, environment: Mapping[str, str]) -> bytes:
    """Return what changes with each installation of a program; empty if it is not found."""
    path = shutil.which(program, path=environment.get("PATH"))
    with contextlib.suppress(OSError):
        found = os.stat(path or "")
        facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return f"{path} {facts}".encode("utf-8", "surrogateescape")
    return b""


def _cache_name(stored: StoredObject) -> str:
    # A backup of restic names the snapshot by the beginning of the id that the list has.
    text = f"{stored.engine_id[:8]}\n{stored.name}\n{stored.size_bytes}"
    if "~" in stored.engine_id:
        text = f"{stored.engine_id}\n{stored.size_bytes}"
    return hashlib.sha256(text.encode()).hexdigest()


def _is_same(listed: StoredObject, stored: StoredObject) -> bool:
    # A backup of restic names the snapshot by the beginning of the id that the list has.
    return listed.name == stored.name and listed.engine_id.startswith(stored.engine_id)


def _facts(stored: StoredObject) -> ObjectFacts:
    return ObjectFacts(stored.name, stored.size_bytes, stored.stored_at)
