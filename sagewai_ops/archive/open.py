"""Open an archive or a mirror for reading."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sagewai_ops.archive.age import AGE_MAGIC, Decryption
from sagewai_ops.archive.directory_reader import open_mirror
from sagewai_ops.archive.input import ArchiveInput, EncryptedInput, PlainInput
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DamagedError, NotFoundError


@contextlib.contextmanager
def open_archive(path: Path, decryption: Decryption | None = None) -> Iterator[ArchiveReader]:
    """Open a snapshot: an archive, plain or encrypted, or a mirror.

    Raises:
        NotFoundError: The file does not exist.
        KeyMissingError: The archive is encrypted, and `decryption` does not open it.
        SchemaAheadError: Its format is newer than this program.
        DamagedError: It is not a complete snapshot.
    """
    if path.is_dir():
        with open_mirror(path) as mirror:
            yield mirror
        return
    try:
        stream: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"snapshot {path}: not found", hint="sagewai-ops snapshots list"
        ) from None
    with stream:
        try:
            yield ArchiveReader(_open_input(stream, path.name, decryption))
        except DamagedError as error:
            raise DamagedError(
                f"{path}: {error.message}",
                hint=error.hint or "sagewai-ops snapshots list",
            ) from error


def _open_input(stream: BinaryIO, name: str, decryption: Decryption | None) -> ArchiveInput:
    magic = stream.read(len(AGE_MAGIC))
    stream.seek(0)
    if magic == AGE_MAGIC:
        return EncryptedInput(stream, name, decryption or Decryption())
    return PlainInput(stream)
