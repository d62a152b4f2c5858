"""The tar headers of a snapshot: each entry has exactly one encoding.

A reader encodes each entry of the manifest and compares the bytes, so a tar stream that differs
from its manifest is refused; no header is ever interpreted.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; docs/format.md.
"""

from sagewai_ops.archive.manifest import Entry, EntryType

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)

_TYPE_FLAGS = {
    EntryType.FILE: b"0",
    EntryType.SUPERSEDED: b"0",
    EntryType.LINK: b"2",
    EntryType.DIRECTORY: b"5",
}
_NAME_BYTES = 100
# Name, mode, uid, gid, size, mtime, checksum, type, target, magic and version, names of user and
# group, device numbers, prefix. The checksum counts itself as spaces.
_BLOCK = b"".join(
    (
        b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" + b" " * 8 + b"%b%bustar\x0000",
        bytes(64),
        b"0000000\x000000000\0",
        bytes(167),
    )
)
_OCTAL_11 = 8**11  # size and mtime have eleven octal digits
_OCTAL_7 = 8**7  # mode, uid and gid have seven


def member_header(entry: Entry) -> bytes:
    """Return the header blocks before an entry's content."""
    if entry.path.isascii() and _is_plain(entry):
        name = entry.path.encode("ascii") + (b"/" if entry.type is EntryType.DIRECTORY else b"")
        return _block(
            name,
            _TYPE_FLAGS[entry.type],
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size_bytes,
            entry.mtime_ns // 1_000_000_000,
            entry.target.encode("ascii"),
        )
    return _extended_header(entry)


def _is_plain(entry: Entry) -> bool:
    """Check whether one block suffices, as for nearly every member; the path is ASCII."""
    return (
        len(entry.path) < _NAME_BYTES
        and len(entry.target) <= _NAME_BYTES
        and entry.target.isascii()
        and entry.size_bytes < _OCTAL_11
        and 0 <= entry.mtime_ns < _OCTAL_11 * 1_000_000_000
    )


def _extended_header(entry: Entry) -> bytes:
    name = entry.path.encode("utf-8", "surrogateescape")
    if entry.type is EntryType.DIRECTORY:
        name += b"/"
    target = entry.target.encode("utf-8", "surrogateescape")
    seconds = entry.mtime_ns // 1_000_000_000
    records: list[tuple[bytes, bytes]] = []
    if _is_binary(name) or _is_binary(target):
        records.append((b"hdrcharset", b"BINARY"))
    if not _fits(name):
        records.append((b"path", name))
    if not _fits(target):
        records.append((b"linkpath", target))
    if entry.size_bytes >= _OCTAL_11:
        records.append((b"size", b"%d" % entry.size_bytes))
    if not 0 <= seconds < _OCTAL_11:
        records.append((b"mtime", b"%d" % seconds))
    extended = b""
    if records:
        body = b"".join(_record(key, value) for key, value in records)
        extended = _block(b"././@PaxHeader", b"x", 0o644, 0, 0, len(body), 0, b"") + pad(body)
    return extended + _block(
        name if _fits(name) else _ascii(name),
        _TYPE_FLAGS[entry.type],
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size_bytes,
        seconds,
        target if _fits(target) else _ascii(target),
    )


def padding_bytes(size_bytes: int) -> int:
    """Return the number of zero bytes that fill the last block of a content."""
    return -size_bytes % BLOCK_BYTES


def pad(content: bytes) -> bytes:
    """Return a content with zeros up to the end of its last block."""
    return content + bytes(padding_bytes(len(content)))


def member_bytes(entry: Entry) -> int:
    """Return the length of a member in the stream: headers, content and padding."""
    is_short = entry.path.isascii() and _is_plain(entry)
    header_bytes = BLOCK_BYTES if is_short else len(member_header(entry))
    return header_bytes + entry.size_bytes + padding_bytes(entry.size_bytes)


def _block(
    name: bytes, flag: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, target: bytes
) -> bytes:
    block = _BLOCK % (
        name.ljust(_NAME_BYTES, b"\0"),
        mode,
        uid if uid < _OCTAL_7 else 0,
        gid if gid < _OCTAL_7 else 0,
        size if size < _OCTAL_11 else 0,
        mtime if 0 <= mtime < _OCTAL_11 else 0,
        flag,
        target.ljust(_NAME_BYTES, b"\0"),
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """Return a pax record, which begins with its own length, that number included."""
    rest = len(key) + len(value) + 3  # the space, the = and the newline
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _fits(name: bytes) -> bool:
    return len(name) <= _NAME_BYTES and name.isascii()


def _ascii(name: bytes) -> bytes:
    """Return a name for readers without pax; the real one is in the record."""
    return bytes(byte if byte < 0x80 else 0x3F for byte in name[:_NAME_BYTES])


def _is_binary(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False
