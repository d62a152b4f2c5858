"""Convert a snapshot from an archive to a directory of a repository, or back, for `snapshots copy`.

Header, members, facts and id stay. The HMAC covers the stored form, so the copy has another one, of
the same key, if the source is authentic. Its metadata file records the one of the source, which the
next snapshot of the home names as its predecessor.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sagewai_ops.archive.age import Decryption, Encryption, encrypting
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.manifest import HEADER_NAME, EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.archive.writer import ArchiveWriter, MemberWriter
from sagewai_ops.archive.zstd_frames import HashingSink
from sagewai_ops.backup.mirror_writer import MirrorWriter, PreviousMirror
from sagewai_ops.backup.recipients import FIELD
from sagewai_ops.backup.recipients import record as record_recipients
from sagewai_ops.errors import KeyMissingError, UsageError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.free_space import require_free_bytes
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.remote.path import RemotePath, has_trees, tree_store
from sagewai_ops.remote.store import TREE
from sagewai_ops.snapshots.authenticity import require_origin
from sagewai_ops.snapshots.catalog import Snapshot, archive_name
from sagewai_ops.snapshots.chain import SOURCE_MAC
from sagewai_ops.snapshots.trust import Trust

SOURCE_HASH = "source_sha256"  # of a metadata file: that of the form that was copied
_WHOLE_BYTES = 1024 * 1024  # of a member that is kept in memory
_MEMBER = "member"


@contextlib.contextmanager
def convert_to_tree(
    item: Snapshot,
    repository: RemotePath,
    decryption: Decryption | None,
    trust: Trust,
    progress: Progress | None = None,
) -> Iterator[Snapshot]:
    """Write a snapshot as a directory next to the home, for the block.

    Args:
        item: An archive, or a snapshot of another repository.
        repository: Whose scratch directory is used.
        decryption: Of an encrypted archive.
        progress: Called with `convert` in bytes.

    Raises:
        UsageError: It contains the master key, which no repository gets.
        KeyMissingError, DamagedError, NotFoundError, RemoteError: It cannot be read.
        NoSpaceError: It does not fit there.
    """
    if item.card.get("key_custody") == "sealed":
        raise UsageError(
            f"snapshot {item.id}: contains the master key, which no repository gets",
            hint="sagewai-ops backup --engine restic --repository R",
        )
    with (
        tree_store(repository).scratch() as scratch,
        _opened(item, decryption) as reader,
    ):
        require_free_bytes(scratch, _content_bytes(reader))
        require_origin(reader, item.path, trust.keys)
        root = scratch / TREE
        atomic.make_directory(root)
        writer = MirrorWriter(
            root,
            reader.header,
            mtime_ns=reader.manifest.entries[0].mtime_ns,
            previous=PreviousMirror(scratch / "none"),
            searched="",
            on_bytes=byte_counter(progress, "convert", reader.content_bytes),
            key=_key_of(reader, trust),
        )
        with contextlib.closing(writer):
            _copy_members(reader, writer, scratch)
        yield _converted(
            item, root, writer.stored_bytes, writer.sha256, writer.mac, is_encrypted=False
        )


@contextlib.contextmanager
def convert_to_archive(
    item: Snapshot,
    encryption: Encryption | None,
    trust: Trust,
    progress: Progress | None = None,
) -> Iterator[Snapshot]:
    """Write a snapshot of a repository as an archive next to the home, for the block.

    Args:
        encryption: None for a plain archive.
        progress: Called with `convert` in bytes.

    Raises:
        DamagedError, NotFoundError, RemoteError: It cannot be read.
        NoSpaceError: It does not fit there.
    """
    assert isinstance(item.path, RemotePath)
    with tree_store(item.path).scratch() as scratch, open_archive(item.path) as reader:
        require_free_bytes(scratch, _content_bytes(reader))
        require_origin(reader, item.path, trust.keys)
        key = _key_of(reader, trust)
        path = scratch / archive_name(item.id, is_encrypted=encryption is not None)
        with (
            translate_os_errors(path),
            open(beneath.create_file(path, atomic.PRIVATE_FILE), "wb", 0) as stream,
            contextlib.closing(HashingSink(stream, path)) as sink,
            encrypting(sink, encryption) as into,
            contextlib.closing(
                ArchiveWriter(
                    into,
                    reader.header,
                    mtime_ns=reader.manifest.entries[0].mtime_ns,
                    on_bytes=byte_counter(progress, "convert", reader.content_bytes),
                    key=key,
                )
            ) as writer,
        ):
            _copy_members(reader, writer, scratch)
        converted = _converted(
            item,
            path,
            sink.size_bytes,
            sink.hexdigest(),
            writer.mac,
            is_encrypted=encryption is not None,
        )
        recipients = record_recipients(item.id, encryption, trust.keys[0] if trust.keys else None)
        yield replace(converted, card={**converted.card, **recipients})


@contextlib.contextmanager
def _opened(item: Snapshot, decryption: Decryption | None) -> Iterator[ArchiveReader]:
    """Open a snapshot, with a hint for a copy if it cannot be decrypted."""
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(open_archive(item.path, decryption))
        except KeyMissingError as error:
            if has_trees(item.path):
                raise
            hint = "add --identity FILE or --archive-passphrase-file FILE"
            raise KeyMissingError(error.message, hint=hint) from error
        yield reader


def _copy_members(reader: ArchiveReader, writer: MemberWriter, scratch: Path) -> None:
    """Copy the members and facts of a snapshot; each is compared with its manifest."""
    for entry, content in reader.members():
        if entry.path == HEADER_NAME or entry.type is EntryType.SUPERSEDED:
            continue
        if entry.type is not EntryType.FILE:
            writer.add_directory_or_link(entry)
        elif entry.size_bytes <= _WHOLE_BYTES:
            writer.add_bytes(entry, b"".join(content))
        else:
            path = scratch / _MEMBER
            with translate_os_errors(path):
                with open(beneath.create_file(path, atomic.PRIVATE_FILE), "wb", 0) as stream:
                    stream.writelines(content)
                with open(beneath.open_file(path), "rb", 0) as stream:
                    writer.add_copy(entry, stream, path)
                beneath.unlink(path)
    writer.finish(reader.manifest.facts)


def _key_of(reader: ArchiveReader, trust: Trust) -> AuthenticationKey | None:
    """Return the key that authenticates the source; None if it is not authentic."""
    is_authentic: Callable[[AuthenticationKey], bool] = reader.is_authentic
    return next((key for key in trust.keys if reader.mac and is_authentic(key)), None)


def _content_bytes(reader: ArchiveReader) -> int:
    return sum(entry.size_bytes for entry in reader.manifest.entries)


def _converted(
    item: Snapshot, path: Path, size_bytes: int, digest: str, mac: bytes, *, is_encrypted: bool
) -> Snapshot:
    """Return a snapshot in its new form, with the facts of its metadata file."""
    card = {name: value for name, value in item.card.items() if name not in (FIELD, "mac")}
    card.update(
        archive=path.name,
        archive_bytes=size_bytes,
        archive_sha256=digest,
        encrypted=is_encrypted,
    )
    card[SOURCE_HASH] = item.card.get(SOURCE_HASH) or item.card.get("archive_sha256")
    source_mac = item.card.get(SOURCE_MAC) or item.card.get("authentication")
    card.pop("authentication", None)
    if mac:
        card["authentication"] = mac.hex()
        card[SOURCE_MAC] = source_mac
    return replace(
        item,
        path=path,
        size_bytes=size_bytes,
        is_encrypted=is_encrypted,
        card={name: value for name, value in card.items() if value is not None},
    )
