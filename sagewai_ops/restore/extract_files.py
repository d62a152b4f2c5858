"""Take single files or all of them out of a snapshot, into a directory of their own."""

import os
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.manifest import Entry
from sagewai_ops.archive.open import open_archive
from sagewai_ops.errors import NotFoundError, TargetBusyError
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.progress import Progress
from sagewai_ops.restore.extractor import Extraction, extract_members
from sagewai_ops.snapshots.member_paths import MemberPaths
from sagewai_ops.swap.swap import can_swap_whole, staged, swap, sweep
from sagewai_ops.text import shell_word


def extract_files(
    archive: Path,
    decryption: Decryption | None,
    paths: tuple[str, ...],
    target: Path,
    *,
    progress: Progress | None = None,
) -> Extraction:
    """Write files of a snapshot below a directory that is new or empty.

    Args:
        paths: Files or directories by their place in the home; empty for everything.
        progress: Told `extract` in bytes of what is read.

    Raises:
        NotFoundError: The snapshot does not exist, or a path is not in it.
        TargetBusyError: The directory is not empty.
        DamagedError, KeyMissingError, SchemaAheadError: About the snapshot; nothing was written.
    """
    root = Path(os.path.abspath(target))
    sweep(root)
    if os.path.lexists(root) and (not root.is_dir() or os.listdir(root)):
        raise TargetBusyError(f"{root}: not an empty directory", hint="name a new one: --to DIR")
    wanted = tuple(path.strip("/") for path in paths)
    with open_archive(archive, decryption) as reader:
        places = MemberPaths(reader.manifest)

        def place(entry: Entry) -> str | None:
            path = places.path_of(entry)
            if path is None or not wanted:
                return path
            return path if any(_covers(name, path) for name in wanted) else None

        found = [path for entry in reader.manifest.entries if (path := place(entry))]
        for name in wanted:
            if not any(_covers(name, path) for path in found):
                raise NotFoundError(
                    f"snapshot {reader.header.id}: {name} is not in it",
                    hint=f"sagewai-ops snapshots show {shell_word(archive)} --files",
                )
        done = 0

        def count(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            if progress:
                progress("extract", min(done, reader.content_bytes), reader.content_bytes)

        tops = tuple(sorted({path.split("/", 1)[0] for path in found}))
        whole = not root.is_dir() or can_swap_whole(root)
        with staged(root, None if whole else tops, keeps=False) as stage, translate_os_errors(root):
            taken = extract_members(
                reader, stage.content, place, root=root, on_bytes=count, everything=not wanted
            )
            swap(stage)
    return taken


def _covers(name: str, path: str) -> bool:
    return path == name or path.startswith(name + "/")
