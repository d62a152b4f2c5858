"""A directory with all that a command can touch, and what there is to compare of it.

A *state* maps names to values: each path below the directory to its mode, time and content, each
database to what SQLite reads in it, each table of the server to its rows. Names with a moment in
them become one name, so two runs can be compared; what differs between two undisturbed runs is
masked by `Mask` and compares equal to anything.

Not in a state: SQLite's sidecars (they are part of what it reads), archives and their cards, the
files of restic and borg, and what restores keep: those have rules of their own in `laws.py` or in
the probe of a case.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from postgres_server import Server
from sagewai_ops.schema.postgres_replaced import REPLACED_SCHEMAS
from small_homes import MARK

State = dict[str, object]

OTHER_USER = 40001  # who owns the worlds that root works on; need not be in the list of users

_MOMENT = re.compile(r"\d{8}T\d{6,12}Z(-[0-9a-f]{4,6}\b)?")
_SECOND = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SIDECAR = re.compile(r"\.db-(wal|shm|journal)$")
_ARCHIVE = re.compile(r"^sagewai-<moment>\.tar\.zst(\.age)?(\.json)?$")
_KEPT = "before-restore-<moment>"
# Each run adds to them. Of the two high-water marks, one is enough.
_ENGINE = "engine"  # restic and borg choose the names of their files
_APART = ("home.snapshots", "home.exports", ".local", f"home/{MARK}", _ENGINE)
_DRAWN = re.compile(r"(?<![0-9a-z])[0-9a-f]{8}(?![0-9a-z])")
_HIDDEN = re.compile(r"(^|/)\.|^tmp/")
_TARGET = "target"  # the database on the server
_TEMPLATE = "prepared"


@dataclass(frozen=True, slots=True)
class World:
    """The directory of one run, always at the same path, because homes know theirs.

    Attributes:
        directory: Holds everything below.
        server: A PostgreSQL, if the command needs one.
        owner: The user and group to whom everything belongs once it is prepared.
        vault: A directory of root's alone for the snapshots, outside.
    """

    directory: Path
    server: Server | None = None
    owner: int = 0
    vault: Path | None = None

    @property
    def home(self) -> Path:
        """The home that commands are about."""
        return self.directory / "home"

    @property
    def snapshots(self) -> Path:
        """Where its snapshots are."""
        return self.vault or self.directory / "home.snapshots"

    @property
    def out(self) -> Path:
        """Where commands put what they are asked for; there from the beginning."""
        return self.directory / "out"

    @property
    def engine(self) -> Path:
        """Where a repository of restic or borg is, and what caches of it there are."""
        return self.directory / _ENGINE

    @property
    def temporary(self) -> Path:
        """TMPDIR of the runs."""
        return self.directory / "tmp"

    @property
    def url(self) -> str:
        """The URL of the database on the server."""
        assert self.server is not None
        return self.server.url(_TARGET)

    @property
    def database(self) -> str:
        """The name of the database on the server."""
        return _TARGET

    def make(self) -> None:
        """Begin with nothing."""
        self.drop()
        for directory in (self.directory, self.out, self.temporary):
            directory.mkdir()
        if self.vault:
            self.vault.mkdir(mode=0o700)

    def drop(self) -> None:
        """Remove everything of a run."""
        for directory in filter(None, (self.directory, self.vault)):
            shutil.rmtree(directory, ignore_errors=True)

    def keep_as(self, prepared: Path) -> None:
        """Keep this world as what each run begins with."""
        shutil.copytree(self.directory, prepared, symlinks=True)
        if self.vault:
            kept = prepared.with_name(f"{prepared.name}-vault")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self.vault, kept, symlinks=True)
        if self.server:
            self.server.drop(_TEMPLATE)
            self.server.run("postgres", f'ALTER DATABASE "{_TARGET}" RENAME TO "{_TEMPLATE}"')

    def reset(self, prepared: Path) -> None:
        """Make this world what it was when it was kept."""
        self.drop()
        shutil.copytree(prepared, self.directory, symlinks=True)
        if self.vault:
            kept = prepared.with_name(f"{prepared.name}-vault")
            shutil.copytree(kept, self.vault, symlinks=True)
        if self.owner:
            self._transfer()
        if self.server:
            self.server.drop(_TARGET)
            self.server.run("postgres", f'CREATE DATABASE "{_TARGET}" TEMPLATE "{_TEMPLATE}"')

    def state(self) -> State:
        """Read the state.

        Raises:
            sqlite3.Error: A database cannot be read.
        """
        found = state_of(self.directory)
        if self.server:
            found |= {f"server: {name}": value for name, value in self._tables().items()}
        return found

    def names(self) -> set[str]:
        """List every name, sidecars apart."""
        return {
            _named(os.path.relpath(os.path.join(above, name), self.directory))
            for above, directories, files in os.walk(self.directory)
            for name in (*directories, *files)
            if not _SIDECAR.search(name) and not self._is_engines(above)
        }

    def prints(self) -> frozenset[tuple[str, int]]:
        """Return every name and size, drawn names made alike, sidecars included."""
        found = set()
        for above, directories, files in os.walk(self.directory):
            for name in () if self._is_engines(above) else (*directories, *files):
                path = os.path.join(above, name)
                shown = _DRAWN.sub("<drawn>", _named(os.path.relpath(path, self.directory)))
                is_file = name in files
                found.add((shown, os.lstat(path).st_size if is_file else -1))
        return frozenset(found)

    def home_states(self) -> list[State]:
        """Read the state of each directory that a restore kept from before."""
        return [
            state_of(path)
            for path in self.directory.glob("home.before-restore-*")
            if path.is_dir() and not path.is_symlink()
        ]

    def kept_schemas(self) -> dict[str, State]:
        """Return the tables that restores kept on the server, by the moment of the restore."""
        if not self.server:
            return {}
        found = self.server.rows(
            _TARGET,
            "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE $1",
            f"{REPLACED_SCHEMAS}%",
        )
        return {
            str(schema).removeprefix(REPLACED_SCHEMAS): self._tables(str(schema))
            for (schema,) in found
        }

    def kept_moments(self) -> set[str]:
        """Return the moments of the restores whose previous homes are kept."""
        return {
            path.name.rpartition("-")[2].lower()
            for path in self.directory.glob("home.before-restore-*")
        }

    def others(self, permitted: tuple[str, ...] = ()) -> list[str]:
        """List the names that do not belong to the owner; TMPDIR is root's, as /tmp is.

        Args:
            permitted: Files of monitoring: root names them, and writes them.
        """
        names = (os.path.relpath(path, self.directory) for path in _paths(self.directory))
        return sorted(
            name
            for name in names
            if name not in (self.temporary.name, *permitted)
            and _owner(str(self.directory / name)) != (self.owner, self.owner)
        )

    def _is_engines(self, path: str) -> bool:
        return path.startswith(os.fspath(self.engine))

    def _transfer(self) -> None:
        for path in (str(self.directory), *_paths(self.directory)):
            os.lchown(path, self.owner, self.owner)
        os.chown(self.temporary, 0, 0)
        self.temporary.chmod(0o1777)

    def _tables(self, schema: str = "public") -> dict[str, object]:
        assert self.server is not None
        names = [
            str(name)
            for (name,) in self.server.rows(
                _TARGET,
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'v')"
                " AND relnamespace = $1::text::regnamespace ORDER BY 1",
                schema,
            )
        ]
        if not names:
            return {}
        queries = [
            f"""SELECT '{name}', (SELECT md5(string_agg(attname || ' ' || atttypid || ' '
                || attnotnull, ',' ORDER BY attnum)) FROM pg_attribute
                WHERE attrelid = '{schema}."{name}"'::regclass AND attnum > 0),
                (SELECT count(*) FROM {schema}."{name}"),
                (SELECT md5(string_agg(md5(item.*::text), '' ORDER BY md5(item.*::text)))
                 FROM {schema}."{name}" item)"""
            for name in names
        ]
        return {
            str(name): tuple(rest)
            for name, *rest in self.server.rows(_TARGET, " UNION ALL ".join(queries))
        }


@contextlib.contextmanager
def rights_of(world: World) -> Iterator[None]:
    """Run the block with the rights of its owner: the program trusts what is its user's."""
    if not world.owner:
        yield
        return
    os.setegid(world.owner)
    os.seteuid(world.owner)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _owner(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def _paths(directory: Path) -> Iterator[str]:
    for above, directories, files in os.walk(directory):
        for name in (*directories, *files):
            yield os.path.join(above, name)


def state_of(root: Path) -> State:
    """Return the state of a directory; see the module."""
    found: State = {}
    for above, directories, files in os.walk(root):
        here = os.path.relpath(above, root)
        if _KEPT in _named(here):
            directories.clear()
            continue
        for name in (*directories, *files):
            path = os.path.join(above, name)
            named = _named(os.path.normpath(os.path.join(here, name)))
            if named.startswith(_APART):
                continue
            if _SIDECAR.search(name) or _ARCHIVE.match(_named(name)) or _KEPT in named:
                continue
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[named] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[named] = ("folder", f"{stat.S_IMODE(status.st_mode):o}")
            elif name.endswith(".db") and status.st_size and not _HIDDEN.search(named):
                found[named] = ("database", f"{stat.S_IMODE(status.st_mode):o}")
                found |= {
                    f"{named}: {part}": value for part, value in read_database(Path(path)).items()
                }
            else:
                seen = Path(path).read_bytes()
                if name == "server.json":  # if written in one second, it would not be masked
                    seen = _SECOND.sub(b"<moment>", seen)
                content = hashlib.sha256(seen).hexdigest()
                found[named] = ("file", f"{stat.S_IMODE(status.st_mode):o}", content)
    return found


def read_database(path: Path) -> Mapping[str, str]:
    """Return a hash of what SQLite reads in each table, from a copy: reading recovers."""
    parts = [path, *(path.with_name(path.name + end) for end in ("-wal", "-journal"))]
    return _read(tuple((each.name, each.read_bytes()) for each in parts if each.exists()))


@functools.lru_cache(64)
def _read(parts: tuple[tuple[str, bytes], ...]) -> Mapping[str, str]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        for name, content in parts:
            Path(directory, name).write_bytes(content)
        with contextlib.closing(sqlite3.connect(Path(directory, parts[0][0]))) as connection:
            connection.text_factory = bytes
            (verdict,) = connection.execute("PRAGMA quick_check").fetchone()
            if verdict != b"ok":
                raise sqlite3.DatabaseError(f"{parts[0][0]}: {verdict!r}")
            objects = connection.execute(
                "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
            ).fetchall()
            found = {"schema": _hash(objects)}
            for kind, name, sql in objects:
                if kind == b"table" and not (sql or b"").startswith(b"CREATE VIRTUAL"):
                    table = name.decode().replace('"', '""')
                    found[table] = _hash(connection.execute(f'SELECT * FROM "{table}"').fetchall())
            return found


def _hash(rows: list[object]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _named(path: str) -> str:
    return _MOMENT.sub("<moment>", path)


@dataclass(frozen=True, slots=True)
class Mask:
    """What differs between two undisturbed runs: random keys, moments in a document."""

    varying: frozenset[str]

    @classmethod
    def between(cls, first: State, second: State) -> Mask:
        """Compare two runs."""
        return cls(
            frozenset(name for name in first if name in second and first[name] != second[name])
        )

    def below(self, directory: str) -> Mask:
        """Return the part about one directory, with names relative to it."""
        begin = f"{directory}/"
        return Mask(
            frozenset(name.removeprefix(begin) for name in self.varying if name.startswith(begin))
        )

    def unsettled(self, found: State, expected: State) -> list[str]:
        """Return what differs, but for what runs leave that died: hidden, or in TMPDIR."""
        return [
            name
            for name in self.differences(found, expected)
            if name in expected or not _HIDDEN.search(name)
        ]

    def differences(self, found: State, expected: State) -> list[str]:
        """Return what differs; of what varies, only whether it is there counts, and its mode."""
        return sorted(
            name
            for name in {*found, *expected}
            if name not in found
            or name not in expected
            or (self._shown(name, found[name]) != self._shown(name, expected[name]))
        )

    def _shown(self, name: str, value: object) -> object:
        if name not in self.varying:
            return value
        return value[:2] if isinstance(value, tuple) else None
