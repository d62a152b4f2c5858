"""Open an archive or a mirror for reading."""

import contextlib
import hashlib
import hmac
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from sagewai_ops.archive.age import AGE_MAGIC, Decryption
from sagewai_ops.archive.authentication import NO_MAC, AuthenticationKey
from sagewai_ops.archive.directory_reader import open_mirror
from sagewai_ops.archive.input import ArchiveInput, EncryptedInput, PlainInput
from sagewai_ops.archive.manifest import Header
from sagewai_ops.archive.reader import ArchiveReader, name_damaged, read_header
from sagewai_ops.archive.remote_input import RemoteInput, RemoteStream
from sagewai_ops.archive.repository_reader import open_repository
from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import has_trees, is_remote

_PIECE_BYTES = 1024 * 1024
_SUMMARY_BYTES = 64 * 1024  # of the end of a remote archive; the table of 32 GiB fits


@contextlib.contextmanager
def open_archive(
    path: Path, decryption: Decryption | None = None, *, spool: BinaryIO | None = None
) -> Iterator[ArchiveReader]:
    """Open a snapshot: an archive, plain or encrypted, here or in a remote place, or a directory.

    A directory is a mirror, or a snapshot in a repository of an engine.

    Args:
        spool: An empty file that keeps an encrypted archive of a remote place for its second read.

    Raises:
        NotFoundError: The file does not exist.
        RemoteError: The place cannot be read.
        KeyMissingError: The archive is encrypted, and `decryption` does not open it.
        SchemaAheadError: Its format is newer than this program.
        DamagedError: It is not a complete snapshot.
    """
    if has_trees(path):
        with name_damaged(path), open_repository(path) as tree:
            yield tree
        return
    if not is_remote(path) and beneath.is_directory(path):
        with open_mirror(path) as mirror:
            yield mirror
        return
    with _open_stream(path, spool) as stream, name_damaged(path):
        yield ArchiveReader(_open_input(stream, path, decryption))


def read_archive(path: Path) -> Iterator[bytes]:
    """Yield the bytes of an archive as they are stored, in pieces.

    Of a directory, the manifest after every member was compared with it: the recorded hash of such
    a snapshot is that of the manifest.

    Raises:
        OSError: It cannot be read.
        NotFoundError, RemoteError: It is not in the remote place, or that cannot be read.
    """
    if has_trees(path):
        with name_damaged(path), open_repository(path) as tree:
            tree.verify()
            yield tree.manifest_text
        return
    if is_remote(path):
        yield from path.store.stream(path.member)
        return
    with translate_os_errors(path), open(beneath.open_file(path), "rb", buffering=0) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def archive_digest(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of the bytes that `read_archive` yields, as hex digits.

    Args:
        on_bytes: Called with the number of bytes read since the last call.

    Raises:
        As `read_archive`.
    """
    digest = hashlib.sha256()
    for piece in read_archive(path):
        digest.update(piece)
        if on_bytes:
            on_bytes(len(piece))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Summary:
    """Header and authentication of an archive that is not encrypted; no content is checked."""

    header: Header
    sha256: bytes
    mac: bytes
    manifest_start: int

    def is_authentic(self, key: AuthenticationKey) -> bool:
        """Check whether the archive states the HMAC of a key."""
        expected = key.mac(self.header, self.sha256, self.manifest_start)
        return hmac.compare_digest(self.mac, expected)


def read_summary(path: Path) -> Summary:
    """Read header and authentication of an archive that is not encrypted.

    Raises:
        OSError: It cannot be read.
        SchemaAheadError: Its format is newer than this program.
        DamagedError: It is not a complete snapshot, or encrypted.
    """
    if has_trees(path):
        with open_repository(path) as tree:
            return Summary(tree.header, tree.sha256, tree.mac, 0)
    with contextlib.ExitStack() as stack:
        source: ArchiveInput
        if is_remote(path):
            source = RemoteInput(path, size_of(path), _SUMMARY_BYTES)
        else:
            source = PlainInput(
                stack.enter_context(open(beneath.open_file(path), "rb", buffering=0))
            )
        table = source.read_frame_table()
        header = read_header(source, table)
        mac = b"" if table.mac == NO_MAC else table.mac
        return Summary(header, table.sha256, mac, table.manifest_start)


@contextlib.contextmanager
def _open_stream(path: Path, spool: BinaryIO | None) -> Iterator[BinaryIO]:
    if is_remote(path):
        size_bytes = size_of(path) if spool else 0
        with contextlib.closing(RemoteStream(path, spool, size_bytes)) as remote:
            yield cast("BinaryIO", remote)
        return
    try:
        stream: BinaryIO = open(beneath.open_file(path), "rb", buffering=0)  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):
        raise _not_found(path) from None
    with stream:
        yield stream


def _open_input(stream: BinaryIO, path: Path, decryption: Decryption | None) -> ArchiveInput:
    if is_remote(path):
        if path.name.endswith(".age"):
            return EncryptedInput(stream, path.name, decryption or Decryption())
        return RemoteInput(path, size_of(path))
    magic = stream.read(len(AGE_MAGIC))
    stream.seek(0)
    if magic == AGE_MAGIC:
        return EncryptedInput(stream, path.name, decryption or Decryption())
    return PlainInput(stream)


def size_of(path: Path) -> int:
    """Return the size of an archive in bytes.

    Raises:
        OSError: It cannot be examined.
        NotFoundError, RemoteError: It is not in the remote place, or that cannot be read.
    """
    if not is_remote(path):
        return beneath.status(path).st_size
    facts = path.store.facts(path.member)
    if facts is None:
        raise _not_found(path)
    return facts.size_bytes


def _not_found(path: Path) -> NotFoundError:
    return NotFoundError(f"snapshot {path}: not found", hint="sagewai-ops snapshots list")
