"""Files and directories of root's that are like those of a world, each with a token in it.

A name of the world that another user replaced by a link leads to the canary of the same name. None
may be read, changed, transferred, moved or removed, and no token may be found anywhere else.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyrage
import zstandard

from proof.beginnings import IDENTITY

_NEVER_NS = 1  # of a time of access before that of the last change: the next read is noted
_ZSTD = b"\x28\xb5\x2f\xfd"
_AGE = b"age-encryption.org/v1\n"
_SQLITE = b"SQLite format 3\x00"


@dataclass(frozen=True, slots=True)
class _Status:
    """What must stay as it is; of a directory the content is its names."""

    inode: int
    kind: int
    mode: int
    owner: tuple[int, int]
    attributes: tuple[str, ...]
    modified: int
    content: object


class Canaries:
    """Creates them for a run, and checks them after it.

    Args:
        directory: Of root's, and in a place that others can reach.

    Attributes:
        token: Is in all but the keys.
        archive: The content in place of a snapshot.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.token = f"canary-{secrets.token_hex(12)}".encode()
        self._key = base64.urlsafe_b64encode(secrets.token_bytes(32))
        self.archive = b""
        self._database = b""
        self._before: dict[str, _Status] = {}
        self._inodes: dict[tuple[int, int], str] = {}

    def of(self, path: str, world: Path) -> str:
        """Return the path of the canary of a name in the world."""
        return os.path.normpath(self._directory / os.path.relpath(path, world))

    def begin(self, prepared: Path) -> None:
        """Make a database like that of a case."""
        self._database = self._like(prepared / "home/db/sagewai.db")

    def plant(self, world: Path, named: str) -> None:
        """Make one for each name that is in the world now; of another one the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir()
        for above, directories, files in os.walk(world):
            here = Path(self.of(above, world))
            for name in directories:
                (here / name).mkdir()
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # another thread of the run goes on
                    self._write(here / name, os.path.join(above, name))
        Path(self.of(named, world)).parent.mkdir(parents=True, exist_ok=True)
        for above, directories, files in os.walk(self._directory):
            for name in directories:
                Path(above, name).chmod(0o755)
            for name in files:
                path = os.path.join(above, name)
                os.utime(path, ns=(_NEVER_NS, os.lstat(path).st_mtime_ns))
        self._before = _statuses(self._directory)
        self._inodes = {
            (status.st_dev, status.st_ino): path
            for path in self._before
            if stat.S_ISREG((status := os.lstat(path)).st_mode)
        }

    def is_canary(self, path: str) -> bool:
        """Return whether a name is a hard link to one."""
        status = os.lstat(path)
        return (status.st_dev, status.st_ino) in self._inodes

    def check(self) -> Iterator[str]:
        """Check that none was read or changed."""
        for path, before in self._before.items():
            if stat.S_ISREG(before.kind):
                with contextlib.suppress(FileNotFoundError):
                    if os.lstat(path).st_atime_ns != _NEVER_NS:
                        yield f"canary read: {self._shown(path)}"
        after = _statuses(self._directory)
        for path, before in self._before.items():
            shown = self._shown(path)
            now = after.pop(path, None)
            if now is None:
                yield f"canary moved or removed: {shown}"
                continue
            if (now.inode, now.kind) != (before.inode, before.kind):
                yield f"canary replaced: {shown}"
            elif now.content != before.content:
                yield f"canary changed: {shown}"
            elif now.modified != before.modified:
                yield f"canary written or its time set: {shown}"
            if now.owner != before.owner:
                yield f"canary given away: {shown}, to {now.owner}"
            if now.mode != before.mode:
                yield f"canary's mode changed: {shown}, to {now.mode:o}"
            if now.attributes != before.attributes:
                yield f"canary's attributes changed: {shown}, to {now.attributes}"
        for path in after:
            yield f"canary directory gained an entry: {self._shown(path)}"

    def search(self, content: bytes) -> bool:
        """Return whether a token is in it, compressed and encrypted parts included."""
        return any(
            token in layer for layer in _layers(content) for token in (self.token, self._key)
        )

    def _shown(self, path: str) -> str:
        return os.path.relpath(path, self._directory)

    def _write(self, path: Path, original: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(self._content(original))

    def _content(self, original: str) -> bytes:
        """Build content that the program accepts in place of the original's."""
        name = os.path.basename(original)
        if name in ("master.key", "key"):
            return self._key
        if name.endswith(".tar.zst"):
            return self.archive
        content = b""
        if stat.S_ISREG(os.lstat(original).st_mode):
            content = Path(original).read_bytes()
        if content.startswith(_SQLITE) and self._database:
            return self._database
        with contextlib.suppress(ValueError):
            document = json.loads(content)
            if isinstance(document, dict):
                return json.dumps({**document, "canary": self.token.decode()}).encode()
        return self.token + b"\n"

    def _like(self, database: Path) -> bytes:
        if not database.is_file() or not database.stat().st_size:
            return b""
        copy = self._directory.with_name("canary.db")
        for end in ("", "-wal", "-shm", "-journal"):
            copy.with_name(copy.name + end).unlink(missing_ok=True)
            if (part := database.with_name(database.name + end)).exists():
                shutil.copyfile(part, copy.with_name(copy.name + end))
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.execute("CREATE TABLE canary (token TEXT)")
            connection.execute("INSERT INTO canary VALUES (?)", (self.token.decode(),))
            connection.commit()
            connection.execute("PRAGMA journal_mode = DELETE")
        return copy.read_bytes()


def files_of(directory: Path) -> Iterator[str]:
    """Yield every regular file below a directory, without following a link."""
    for above, _directories, files in os.walk(directory):
        for name in files:
            path = os.path.join(above, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path


def _layers(content: bytes) -> Iterator[bytes]:
    yield content
    if content.startswith(_AGE):
        with contextlib.suppress(pyrage.DecryptError, ValueError):
            identity = pyrage.x25519.Identity.from_str(IDENTITY)
            yield from _layers(pyrage.decrypt(content, [identity]))
    if content.startswith(_ZSTD):
        yield _decompressed(content)


def _decompressed(content: bytes) -> bytes:
    parts = []
    stream = zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True)
    with stream, contextlib.suppress(zstandard.ZstdError):  # an archive may be cut
        while part := stream.read(1 << 20):
            parts.append(part)
    return b"".join(parts)


def _statuses(directory: Path) -> dict[str, _Status]:
    found = {str(directory): _status(str(directory))}
    for above, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(above, name)
            found[path] = _status(path)
    return found


def _status(path: str) -> _Status:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content: object = None
    if kind == stat.S_IFREG:
        # Reading would change the time of access, which shows other readers.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
        with open(descriptor, "rb") as file:
            content = file.read()
    return _Status(
        status.st_ino,
        kind,
        stat.S_IMODE(status.st_mode),
        (status.st_uid, status.st_gid),
        tuple(os.listxattr(path, follow_symlinks=False)),
        status.st_mtime_ns,
        content,
    )
