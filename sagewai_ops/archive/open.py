"""Open an archive for reading, decrypted where a key is given."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sagewai_ops.archive.age import AGE_MAGIC, Decryption
from sagewai_ops.archive.input import EncryptedInput, PlainInput, Source
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DamagedError, NotFoundError


@contextlib.contextmanager
def open_archive(path: Path, decryption: Decryption | None = None) -> Iterator[ArchiveReader]:
    """Open a snapshot: a file, clear or encrypted, or a directory as `tree` knows it.

    Raises:
        NotFoundError: There is no such file.
        KeyMissingError: It is encrypted, and `decryption` does not open it.
        SchemaAheadError: Its format is newer than this program.
        DamagedError: It is not a whole snapshot.
    """
    if path.is_dir():
        from sagewai_ops.archive.directory_reader import open_mirror  # which is made of this module

        with open_mirror(path) as tree:
            yield tree
        return
    try:
        stream: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"snapshot {path}: does not exist", hint="sagewai-ops snapshots list"
        ) from None
    with stream:
        source = open_input(stream, path.name, decryption)
        try:
            yield ArchiveReader(source)
        except DamagedError as error:
            raise DamagedError(
                f"{path}: {error.message}",
                hint="use another snapshot: sagewai-ops snapshots list",
            ) from error
        finally:
            source.close()


def open_input(stream: BinaryIO, name: str, decryption: Decryption | None) -> Source:
    """Give the bytes of an archive, decrypted if need be."""
    head = stream.read(len(AGE_MAGIC))
    stream.seek(0)
    if head == AGE_MAGIC:
        return EncryptedInput(stream, name, decryption or Decryption())
    return PlainInput(stream)
