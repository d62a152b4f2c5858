"""The header of a snapshot (`snapshot.json`, its first member) and its manifest (the last one).

The manifest is the allow-list of every reader: a member that it does not list is not extracted, and
one that it lists must exist, byte for byte. Both are JSON; docs/format.md defines the fields.
"""

import functools
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from enum import Enum
from typing import Any

from sagewai_ops.archive.packed_list import PackedList
from sagewai_ops.archive.validation import check_header, check_manifest, is_text
from sagewai_ops.errors import DamagedError, SchemaAheadError, UsageError
from sagewai_ops.records import dataclass

# The newest format that this program reads, and the one that it writes. Version 2 adds the
# authentication and links that lead out of the home.
FORMAT_VERSION = 2
PLAIN_FORMAT_VERSION = 1  # the first one
OUTSIDE_LINKS_DIRECTORY = "data/"  # the only place of links that lead out of the home
HEADER_NAME = "snapshot.json"
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 512 * 1024 * 1024
# The last field of the manifest, with each entry on a line of its own: docs/format.md, section 7.
_ENTRIES = ' "entries": ['
_COMPRESSED_LINES = 4096
_MAX_LINE_BYTES = 1024 * 1024  # an entry has some hundred; a path has at most 4,096 characters


class EntryType(str, Enum):
    """Type of a member."""

    FILE = "file"
    DIRECTORY = "folder"
    LINK = "link"
    # A file that changed while it was read; a later member of the same path replaces it.
    SUPERSEDED = "superseded"


_TYPES = tuple(EntryType)
_BEYOND = 2**63  # of numbers: no file system has larger ones
# Of an entry in memory: type, flags, lengths of hash and path, mode, time, uid, gid, size.
_PACKED = struct.Struct("<BBBHHqQQQ")


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of the archive.

    Attributes:
        path: Relative, separated by `/`; bytes that are not UTF-8 are surrogates (PEP 383).
        mode: Permission bits, at most 0o7777.
        mtime_ns: Nanoseconds since 1970, UTC.
        size_bytes: Of the content; 0 for directories and links.
        sha256: 32 bytes of the content; empty for directories and links.
        target: Of a link, relative to the directory of the link.
        is_sparse: The file had holes, which a reader may restore.
        is_absolute: The link was written with the home's own path before its target.
        is_outside: The link leads out of the home; `target` is as it was written. Only below
            `data/`, and only in format 2.
    """

    path: str
    type: EntryType
    mode: int
    mtime_ns: int
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    sha256: bytes = b""
    target: str = ""
    is_sparse: bool = False
    is_absolute: bool = False
    is_outside: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """The members in the order of the archive, and facts about the snapshot.

    Attributes:
        entries: Unpacked at each iteration if they were read from an archive.
        facts: The other fields, such as `database`, `keys` and `left_out`; docs/format.md.
    """

    entries: Sequence[Entry]
    facts: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = PLAIN_FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Header:
    """`snapshot.json`: the identity of a snapshot; not secret.

    Attributes:
        facts: Every other field of the file, such as `created_at` and `key_fingerprint`.
    """

    id: str
    format_version: int = PLAIN_FORMAT_VERSION
    facts: Mapping[str, Any] = field(default_factory=dict)


def encode_header(header: Header) -> bytes:
    """Return the content of `snapshot.json`."""
    document = {"format": header.format_version, "id": header.id, **header.facts}
    return json.dumps(document, indent=1).encode() + b"\n"


def decode_header(content: bytes) -> Header:
    """Parse `snapshot.json`.

    Raises:
        SchemaAheadError: Its format is newer than this program.
        DamagedError: It is invalid.
    """
    document = _parse(content, HEADER_NAME)
    version, name = document.pop("format", None), document.pop("id", None)
    if (
        not isinstance(version, int)
        or version < 1
        or not isinstance(name, str)
        or not is_text(name)
    ):
        raise DamagedError(f"{HEADER_NAME}: format version or id missing")
    if version > FORMAT_VERSION:
        raise SchemaAheadError(
            f"snapshot {name}: format {version}, this program reads up to {FORMAT_VERSION}",
            hint="pip install --upgrade sagewai-ops",
        )
    check_header(document, HEADER_NAME)
    return Header(name, version, document)


class ManifestBuilder:
    """Collect the entries of `manifest.json`, compressed, so that a long one fits in memory.

    Both methods raise UsageError if no reader would accept it; docs/format.md, section 9.
    """

    def __init__(self, format_version: int = PLAIN_FORMAT_VERSION) -> None:
        self._format_version = format_version
        self._compressed: list[bytes] = []
        self._lines: list[bytes] = []
        self._text_bytes = 0

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        is_first = not (self._compressed or self._lines)
        line = (b"\n" if is_first else b",\n") + json.dumps(_as_json(entry)).encode()
        self._text_bytes += len(line)
        _check_length(self._text_bytes)
        self._lines.append(line)
        if len(self._lines) == _COMPRESSED_LINES:
            self._compress()

    def finish(self, facts: Mapping[str, Any]) -> tuple[int, Iterator[bytes]]:
        """Return the length of the text in bytes, and the text in pieces."""
        self._compress()
        head = json.dumps({"format": self._format_version, **facts}, indent=1).removesuffix("\n}")
        start, end = f"{head},\n{_ENTRIES}".encode(), b"\n]}\n"
        pieces = itertools.chain((start,), map(zlib.decompress, self._compressed), (end,))
        size_bytes = len(start) + self._text_bytes + len(end)
        _check_length(size_bytes)
        return size_bytes, pieces

    def _compress(self) -> None:
        self._compressed.append(zlib.compress(b"".join(self._lines), 1))
        self._lines.clear()


def _check_length(size_bytes: int) -> None:
    if size_bytes > MAX_MANIFEST_BYTES:
        raise UsageError(
            f"{MANIFEST_NAME}: lists more files than its {MAX_MANIFEST_BYTES >> 20} MiB can",
            hint="sagewai-ops backup --exclude GLOB",
        )


def decode_manifest(
    pieces: Iterable[bytes], on_entry: Callable[[Entry], None] | None = None
) -> Manifest:
    """Parse `manifest.json`, entry by entry.

    Args:
        pieces: Its text, split anywhere.
        on_entry: Called with each entry, in order.

    Raises:
        SchemaAheadError, DamagedError: As `decode_header`.
    """
    lines = _split_lines(pieces)
    head = []
    for line in lines:
        if line == _ENTRIES.encode():
            break
        head.append(line)
    document = _parse(b"\n".join(head).rstrip().removesuffix(b",") + b"\n}", MANIFEST_NAME)
    version = document.pop("format", None)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SchemaAheadError(
            f"{MANIFEST_NAME}: format {version}, this program reads up to {FORMAT_VERSION}",
            hint="pip install --upgrade sagewai-ops",
        )
    if not isinstance(version, int) or version < 1:
        raise DamagedError(f"{MANIFEST_NAME}: format version missing")
    entries = PackedList(_pack, _unpack)
    is_open = True
    for line in lines:
        if not is_open:
            break
        is_open = line.endswith(b",")
        entry = _parse_entry(_parse(line.removesuffix(b","), MANIFEST_NAME), version)
        entries.append(entry)
        if on_entry:
            on_entry(entry)
    if is_open or line != b"]}" or any(lines):
        raise DamagedError(f"{MANIFEST_NAME}: end of the entries missing")
    check_manifest(document, MANIFEST_NAME)
    return Manifest(entries, document, version)


def _pack(entry: Entry) -> bytes:
    """Return the bytes of a valid entry in memory; no file has them."""
    path, target = (text.encode("utf-8", "surrogatepass") for text in (entry.path, entry.target))
    flags = entry.is_sparse | entry.is_absolute << 1 | entry.is_outside << 2
    numbers = (entry.mode, entry.mtime_ns, entry.uid, entry.gid, entry.size_bytes)
    fixed = _PACKED.pack(_TYPES.index(entry.type), flags, len(entry.sha256), len(path), *numbers)
    return b"".join((fixed, entry.sha256, path, target))


def _unpack(packed: bytes) -> Entry:
    number, flags, hash_bytes, path_bytes, mode, mtime_ns, uid, gid, size_bytes = (
        _PACKED.unpack_from(packed)
    )
    end = _PACKED.size + hash_bytes
    middle = end + path_bytes
    return Entry(
        packed[end:middle].decode("utf-8", "surrogatepass"),
        _TYPES[number],
        mode,
        mtime_ns,
        uid,
        gid,
        size_bytes,
        packed[_PACKED.size : end],
        packed[middle:].decode("utf-8", "surrogatepass") if middle < len(packed) else "",
        bool(flags & 1),
        bool(flags & 2),
        bool(flags & 4),
    )


def _split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        first, *others = (rest + piece).split(b"\n")
        if others:
            yield first
            yield from others[:-1]
            rest = others[-1]
        else:
            rest = first
        if len(rest) > _MAX_LINE_BYTES:
            raise DamagedError(f"{MANIFEST_NAME}: line too long")
    yield rest


def _as_json(entry: Entry) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": entry.path,
        "type": entry.type.value,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.type in (EntryType.FILE, EntryType.SUPERSEDED):
        document |= {"size": entry.size_bytes, "sha256": entry.sha256.hex()}
    if entry.type is EntryType.LINK:
        document["target"] = entry.target
    if entry.is_sparse:
        document["sparse"] = True
    if entry.is_absolute:
        document["absolute"] = True
    if entry.is_outside:
        document["outside"] = True
    return document


def _parse_entry(document: Mapping[str, Any], version: int) -> Entry:
    try:
        entry = Entry(
            path=_as_text(document["path"]),
            type=EntryType(document["type"]),
            mode=int(_as_text(document["mode"]), 8),
            mtime_ns=_as_int(document["mtime_ns"], negative=True),
            uid=_as_int(document["uid"]),
            gid=_as_int(document["gid"]),
            size_bytes=_as_int(document.get("size", 0)),
            sha256=bytes.fromhex(_as_text(document.get("sha256", ""))),
            target=_as_text(document.get("target", "")),
            is_sparse=document.get("sparse") is True,
            is_absolute=document.get("absolute") is True,
            is_outside=version > PLAIN_FORMAT_VERSION and document.get("outside") is True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{MANIFEST_NAME}: invalid entry: {error}") from error
    _check(entry)
    return entry


def _check(entry: Entry) -> None:
    has_content = entry.type in (EntryType.FILE, EntryType.SUPERSEDED)
    if (
        not is_safe_path(entry.path)
        or not 0 <= entry.mode <= 0o7777
        or not -_BEYOND <= entry.mtime_ns < _BEYOND
        or max(entry.uid, entry.gid, entry.size_bytes) >= _BEYOND
        or len(entry.sha256) != (32 if has_content else 0)
        or (entry.size_bytes and not has_content)
        or (entry.type is EntryType.LINK) != bool(entry.target)
        or (entry.type is EntryType.LINK and not _is_link_allowed(entry))
        or (entry.is_outside and entry.type is not EntryType.LINK)
    ):
        raise DamagedError(f"{MANIFEST_NAME}: entry {entry.path[:200]}: not allowed in a snapshot")


def _is_link_allowed(entry: Entry) -> bool:
    if not entry.is_outside:
        return is_link_inside(entry.path, entry.target)
    return (
        is_outside_link_allowed(entry.path)
        and not entry.is_absolute
        and "\0" not in entry.target
        and len(entry.target) <= 4095
        and is_text(entry.target)
    )


def is_outside_link_allowed(path: str) -> bool:
    """Check whether a link at `path` may lead out of the home."""
    return path.startswith(OUTSIDE_LINKS_DIRECTORY)


def is_safe_path(path: str) -> bool:
    """Check whether a member path is relative and stays below the directory of a restore."""
    parts = path.split("/")
    return (
        0 < len(path) < 4096
        and "\0" not in path
        and is_text(path)
        and all(part not in ("", ".", "..") for part in parts)
    )


def is_link_inside(path: str, target: str) -> bool:
    """Check whether the target of a link at `path` stays inside, name by name."""
    if target.startswith("/") or "\0" in target or len(target) > 4095 or not is_text(target):
        return False
    depth = path.count("/")
    for part in target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            return False
    return True


def _parse(content: bytes, name: str) -> dict[str, Any]:
    try:
        document = _decoder().decode(content.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{name}: not a JSON object")
    return document


@functools.cache
def _decoder() -> json.JSONDecoder:
    """Return the one decoder: `json.loads` would build another for each entry."""
    return json.JSONDecoder(object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("duplicate field")
    return document


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50}: not a string")
    return value


def _as_int(value: object, *, negative: bool = False) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or (value < 0 and not negative):
        raise TypeError(f"{value!r:.50}: not a number")
    return value
