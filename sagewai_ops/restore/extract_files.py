"""`snapshots extract`: write files of a snapshot to a directory, without a restore."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import NotFoundError, TargetBusyError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.volumes import LOST_AND_FOUND, names_in
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.restore.extractor import Extraction, extract_members
from sagewai_ops.snapshots.authenticity import require_origin
from sagewai_ops.snapshots.member_paths import SERVER_DIRECTORY, MemberPaths, is_within
from sagewai_ops.snapshots.server_database import StoredTable, is_server_member, read_server
from sagewai_ops.swap.staging import sweep
from sagewai_ops.swap.swap import can_swap_whole, staged, swap
from sagewai_ops.text import printable, shell_word

_BLOCK_BYTES = 1024 * 1024


def extract_files(
    archive: Path,
    decryption: Decryption | None,
    paths: tuple[str, ...],
    target: Path,
    *,
    keys: Sequence[AuthenticationKey] = (),
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """Write files of a snapshot below a new or empty directory.

    Args:
        paths: Files or directories, relative to the home, or `postgres/<schema>.<table>`, whose
            rows become one file; empty for everything.
        keys: Show the origin of the snapshot.
        dry_run: Write nothing, and count what a run would write.
        progress: Reports `extract` in bytes read.

    Raises:
        NotFoundError: No such snapshot, or a path is not in it.
        TargetBusyError: The directory is not empty.
        DamagedError, KeyMissingError, SchemaAheadError: The snapshot cannot be read; nothing was
            written.
    """
    root = Path(os.path.realpath(target))
    if not dry_run:
        sweep(root)
    if os.path.lexists(root) and (not root.is_dir() or names_in(root)):
        raise TargetBusyError(f"{root}: not an empty directory", hint="name a new one: --to DIR")
    wanted = tuple(path.strip("/") for path in paths)
    with open_archive(archive, decryption) as reader:
        require_origin(reader, archive, keys)
        member_paths = MemberPaths(reader.manifest)
        tables = _tables(reader, wanted)
        wanted = tuple(
            path for name in wanted for path in (tables[name].paths if name in tables else (name,))
        )

        def path_of(entry: Entry) -> str | None:
            is_of_server = is_server_member(reader.manifest, entry)
            path = entry.path if is_of_server else member_paths.path_of(entry)
            if path is None or not wanted:
                return path if path is None or not is_within(path, LOST_AND_FOUND) else None
            return path if any(is_within(path, name) for name in wanted) else None

        found = [path for entry in reader.manifest.entries if (path := path_of(entry))]
        for name in wanted:
            if not any(is_within(path, name) for path in found):
                raise NotFoundError(
                    f"snapshot {reader.header.id}: {name} not found in it",
                    hint=f"sagewai-ops snapshots show {shell_word(archive)} --files",
                )
        if dry_run:
            return _count(entry for entry in reader.manifest.entries if path_of(entry))
        top_names = tuple(sorted({path.split("/", 1)[0] for path in found}))
        is_whole = can_swap_whole(root)
        with (
            staged(root, None if is_whole else top_names, keeps=False) as stage,
            translate_os_errors(root),
        ):
            extraction = extract_members(
                reader,
                stage.content,
                path_of,
                root=root,
                on_bytes=byte_counter(progress, "extract", reader.content_bytes),
                everything=not wanted,
            )
            for table in {table.stem: table for table in tables.values()}.values():
                extraction.files -= _join(stage.content, table)
            swap(stage)
    return extraction


def _tables(reader: ArchiveReader, wanted: tuple[str, ...]) -> dict[str, StoredTable]:
    """Return the tables of a server that are requested, by the names that were used.

    Raises:
        NotFoundError: One has no rows.
    """
    server = read_server(reader.manifest)
    found = {}
    for table in server.tables if server else ():
        for name in {f"{SERVER_DIRECTORY}/{part}" for part in (table.stem, table.place)}:
            if name not in wanted:
                continue
            if not table.members:
                raise NotFoundError(
                    f"snapshot {reader.header.id}: table {printable(table.place)} has no rows",
                    hint=f"sagewai-ops snapshots show {reader.header.id}",
                )
            found[name] = table
    return found


def _join(directory: Path, table: StoredTable) -> int:
    """Append the members of a table to the first, and rename that; return how many were removed."""
    first, *others = (directory / path for path in table.paths)
    descriptor = beneath.open_file(first, os.O_WRONLY | os.O_APPEND)
    with open(descriptor, "ab", 0) as joined:
        for path in others:
            with open(beneath.open_file(path), "rb", 0) as part:
                shutil.copyfileobj(part, joined, _BLOCK_BYTES)
            beneath.unlink(path)
    beneath.rename(first, directory / f"{SERVER_DIRECTORY}/{table.stem}.copy")
    return len(others)


def _count(entries: Iterable[Entry]) -> Extraction:
    """Return the counts of entries as an extraction reports them."""
    chosen = list(entries)
    types = Counter(entry.type for entry in chosen)
    return Extraction(
        files=types[EntryType.FILE],
        directories=types[EntryType.DIRECTORY],
        links=types[EntryType.LINK],
        size_bytes=sum(entry.size_bytes for entry in chosen),
    )
