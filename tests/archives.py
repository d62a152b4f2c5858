"""Small archives for the tests, written by the real writer or forged."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sagewai_ops.archive.age import Encryption, open_encrypted_sink
from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    Entry,
    EntryType,
    Header,
    ManifestBuilder,
    encode_header,
)
from sagewai_ops.archive.tar import END, member_header, pad
from sagewai_ops.archive.writer import ArchiveWriter
from sagewai_ops.archive.zstd_frames import FrameWriter

MOMENT_NS = 1_700_000_000_000_000_000
DIRECTORY = Entry("config", EntryType.DIRECTORY, 0o755, MOMENT_NS)
STATE = Entry("config/admin-state.json", EntryType.FILE, 0o600, MOMENT_NS)
LINK = Entry("config/link", EntryType.LINK, 0o777, MOMENT_NS, target="admin-state.json")


def write(
    path: Path,
    contents: Sequence[tuple[Entry, bytes]],
    encryption: Encryption | None = None,
    *,
    name: str = "test",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write an archive of these members with the real writer.

    Args:
        name: The id in its header.
        facts: Of its header.
    """
    with open(path, "wb") as stream:
        sink = open_encrypted_sink(stream, encryption) if encryption else stream
        writer = ArchiveWriter(sink, Header(name, facts=facts or {}), mtime_ns=MOMENT_NS)
        for entry, content in contents:
            if entry.type is EntryType.FILE:
                writer.add_bytes(entry, content)
            else:
                writer.add_directory_or_link(entry)
        writer.finish({"id": name})
        if encryption:
            sink.close()
    return path


def small(path: Path, encryption: Encryption | None = None) -> Path:
    """Write an archive of a directory, a file and a link."""
    return write(
        path, [(DIRECTORY, b""), (STATE, b'{"schema_version": 3}' * 50), (LINK, b"")], encryption
    )


def forge(
    path: Path,
    members: Sequence[tuple[Entry, bytes]],
    *,
    listed: Sequence[Entry] | None = None,
    header: bytes | None = None,
    manifest: Callable[[bytes], bytes] = lambda content: content,
    version: int = 1,
) -> Path:
    """Write an archive that an attacker could have written: any members, any manifest.

    Args:
        listed: Entries of the manifest instead of the members.
        header: The content of `snapshot.json`.
        manifest: Changes the manifest's bytes.
        version: Of the format, in header and manifest.
    """
    with open(path, "wb") as stream:
        frames = FrameWriter(stream)
        content = header if header is not None else encode_header(Header("test", version))
        first = _complete(Entry(HEADER_NAME, EntryType.FILE, 0o600, MOMENT_NS), content)
        frames.write(member_header(first) + pad(content))
        frames.cut()
        entries = [first]
        for entry, data in members:
            complete = _complete(entry, data)
            entries.append(complete)
            frames.write(member_header(complete) + pad(data))
        frames.cut()
        start = frames.position
        text = ManifestBuilder(version)
        for entry in (first, *listed) if listed else entries:
            text.add(entry)
        body = manifest(b"".join(text.finish({})[1]))
        own = _complete(Entry(MANIFEST_NAME, EntryType.FILE, 0o600, MOMENT_NS), body)
        frames.write(member_header(own) + pad(body) + END)
        frames.finish(start, None if version == 1 else lambda _digest: bytes(32))
    return path


def _complete(entry: Entry, content: bytes) -> Entry:
    import dataclasses
    import hashlib

    if entry.type is not EntryType.FILE:
        return entry
    return dataclasses.replace(
        entry,
        size_bytes=entry.size_bytes or len(content),
        sha256=entry.sha256 or hashlib.sha256(content).digest(),
    )


def tar_stream(path: Path) -> io.BytesIO:
    """Decompress a whole clear archive with nothing but zstd."""
    import zstandard

    with open(path, "rb") as stream:
        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        return io.BytesIO(reader.read())


def flip(path: Path, bit: int = 1) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= bit
    path.write_bytes(content)
