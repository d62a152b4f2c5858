"""Archives that chance or malice made of a sound one, each named after the change.

Every family but the first two puts the checksums, the digest and the seek table right again, so
that what refuses the archive is its content, and not at its sums alone. The container is
written here a second time, from docs/format.md and not with the program's own writer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from sagewai_ops.archive.manifest import Entry, EntryType, decode_manifest
from sagewai_ops.archive.tar import END, member_bytes, member_header, pad
from sagewai_ops.errors import DamagedError, SchemaAheadError

HUGE = 2**32 - 1
FRAME_BYTES = 4 * 1024 * 1024
BOMB_BYTES = 1024 * 1024 * 1024
_TRAILER = struct.Struct("<II8sQ32s")
_HEAD = struct.Struct("<II")
_PAIR = struct.Struct("<II")
_FOOT = struct.Struct("<IBI")
_PATHS = (
    *("/etc/cron.d/x", "../x", "config/../../x", "./x", "a//b", "", ".", "..", "a\0b", "x/"),
    *("\ud800", "n" * 5000, "nowhere/x", "manifest.json", "snapshot.json", ".sagewai-ops/x"),
)
_NUMBERS: tuple[object, ...] = (
    -1,
    0,
    1,
    2**31,
    2**32,
    2**63,
    2**64,
    10**30,
    True,
    None,
    "1",
    1.5,
    [],
    {},
)
_ANYTHING: tuple[object, ...] = (
    None,
    True,
    -1,
    10**30,
    1e308,
    "",
    "x" * 2000,
    [],
    [[]],
    {},
    {"x": {}},
    [None, 7],
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed archive.

    Attributes:
        name: What was done.
        is_consistent: Its content may be true, so a reader may also take it, and then must do
            just that.
    """

    name: str
    content: bytes
    is_consistent: bool = False


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A clear archive taken apart.

    Attributes:
        members: Each with its content; the first is `snapshot.json`.
        document: `manifest.json`.
        own: The manifest's own entry.
    """

    content: bytes
    frames: tuple[bytes, ...]
    manifest_start: int
    members: tuple[tuple[Entry, bytes], ...]
    document: dict[str, Any]
    own: Entry


def dissect(content: bytes) -> Anatomy:
    """Return the parts of a sound archive."""
    count = _FOOT.unpack(content[-_FOOT.size :])[0]
    table = content[-_FOOT.size - count * _PAIR.size : -_FOOT.size]
    frames, offset = [], 0
    for size, _plain in list(_PAIR.iter_unpack(table))[:-1]:
        frames.append(content[offset : offset + size])
        offset += size
    manifest_start = _TRAILER.unpack_from(content, offset)[3]
    stream = b"".join(map(zstandard.ZstdDecompressor().decompress, frames))
    text = stream[manifest_start + 512 :].rstrip(b"\0")
    manifest = decode_manifest([text])
    members, position = [], 0
    for entry in manifest.entries:
        end = position + member_bytes(entry)
        start = position + len(member_header(entry))
        members.append((entry, stream[start : start + entry.size_bytes]))
        position = end
    own = Entry("manifest.json", EntryType.FILE, 0o600, manifest.entries[0].mtime_ns)
    document: dict[str, Any] = json.loads(text)
    return Anatomy(content, tuple(frames), manifest_start, tuple(members), document, own)


def assemble(
    frames: Sequence[bytes], manifest_start: int, sizes: Sequence[int] | None = None
) -> bytes:
    """Put frames together with a trailer and a seek table that are right.

    Args:
        sizes: The sizes of unpacked frames by the table; the truth if None.
    """
    if sizes is None:
        sizes = [max(zstandard.frame_content_size(frame), 0) for frame in frames]
    data = b"".join(frames)
    digest = hashlib.sha256(data).digest()
    trailer = _TRAILER.pack(0x184D2A5D, _TRAILER.size - 8, b"sgwiops1", manifest_start, digest)
    pairs = [*((len(frame), size) for frame, size in zip(frames, sizes, strict=True))]
    pairs.append((len(trailer), 0))
    entries = b"".join(_PAIR.pack(size, min(plain, HUGE)) for size, plain in pairs)
    foot = _FOOT.pack(len(pairs), 0, 0x8F92EAB1)
    return data + trailer + _HEAD.pack(0x184D2A5E, len(entries) + len(foot)) + entries + foot


def build(members: Sequence[tuple[Entry, bytes]], text: bytes, own: Entry) -> bytes:
    """Write members and the text of a manifest as an archive whose sums are right."""
    parts = [member_header(entry) + pad(content) for entry, content in members]
    own = dataclasses.replace(own, size_bytes=len(text))
    streams = (b"".join(parts[1:]), member_header(own) + pad(text) + END)
    frames = [_packed(parts[0])] if parts else []
    frames += [
        _packed(stream[start : start + FRAME_BYTES])
        for stream in streams
        for start in range(0, len(stream), FRAME_BYTES)
    ]
    return assemble(frames, sum(map(len, parts)))


def encoded(document: dict[str, Any]) -> bytes:
    """Write a manifest as docs/format.md wants its lines."""
    facts = {name: value for name, value in document.items() if name != "entries"}
    lines = ",\n".join(json.dumps(entry) for entry in document["entries"])
    head = json.dumps(facts, indent=1).removesuffix("\n}")
    return f'{head},\n "entries": [\n{lines}\n]}}\n'.encode()


def flipped(whole: bytes, stride: int, start: int = 0) -> Iterator[Mutant]:
    """Flip a bit of every byte, or of each `stride`-th."""
    for position in range(start % stride, len(whole), stride):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        yield Mutant(f"byte {position} flipped", bytes(content))


def truncated(whole: bytes, stride: int, start: int = 0) -> Iterator[Mutant]:
    """Cut it at every length, or at each `stride`-th; and let it go on."""
    for length in range(start % stride, len(whole), stride):
        yield Mutant(f"cut after {length} bytes", whole[:length])
    yield Mutant("a byte more", whole + b"\0")
    yield Mutant("itself behind itself", whole + whole)


def rearranged(anatomy: Anatomy, most: int, seed: int) -> Iterator[Mutant]:
    """Swap, double and drop members, with the manifest as it was."""
    members = list(anatomy.members)
    text = encoded(anatomy.document)
    pairs = list(itertools.combinations(range(len(members)), 2))
    for first, second in some(pairs, most, seed):
        changed = list(members)
        changed[first], changed[second] = changed[second], changed[first]
        yield Mutant(f"members {first} and {second} swapped", build(changed, text, anatomy.own))
    for index in some(range(len(members)), most, seed):
        doubled = [*members[: index + 1], *members[index:]]
        yield Mutant(f"member {index} twice", build(doubled, text, anatomy.own))
        dropped = [*members[:index], *members[index + 1 :]]
        yield Mutant(f"member {index} dropped", build(dropped, text, anatomy.own))


def spliced(anatomy: Anatomy, other: Anatomy) -> Iterator[Mutant]:
    """Put frames of another archive in the place of its own, with every sum right."""
    for index, foreign in itertools.product(range(len(anatomy.frames)), range(len(other.frames))):
        frames = list(anatomy.frames)
        frames[index] = other.frames[foreign]
        start = sum(map(zstandard.frame_content_size, frames[:-1]))
        yield Mutant(f"frame {index} is {foreign} of another", assemble(frames, start))
        yield Mutant(
            f"frame {index} is {foreign} of another, manifest offset kept",
            assemble(frames, anatomy.manifest_start),
        )
    unsummed = zstandard.ZstdCompressor(write_checksum=False)
    bare = [unsummed.compress(_unpacked(frame)) for frame in anatomy.frames]
    yield Mutant("frames without checksums", assemble(bare, anatomy.manifest_start))
    unsized = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False)
    bare = [unsized.compress(_unpacked(frame)) for frame in anatomy.frames]
    yield Mutant("frames without sizes", assemble(bare, anatomy.manifest_start))


def bombs(anatomy: Anatomy) -> Iterator[Mutant]:
    """Replace each frame by one that unpacks to a gibibyte; the table has its size, or not."""
    sizes = list(map(zstandard.frame_content_size, anatomy.frames))
    start = sum(sizes[:-1])
    for method, has_size in (("with its size", True), ("without a size", False)):
        bomb = _bomb(has_size=has_size)
        for index in range(len(sizes)):
            frames = [*anatomy.frames[:index], bomb, *anatomy.frames[index + 1 :]]
            for output in (sizes[index], FRAME_BYTES, BOMB_BYTES):
                listed = [*sizes[:index], output, *sizes[index + 1 :]]
                for offset in {start, start - sizes[index] + output}:
                    yield Mutant(
                        f"frame {index} is a gibibyte {method}, the table has {output}, {offset}",
                        assemble(frames, offset, listed),
                    )


def _bomb(*, has_size: bool) -> bytes:
    piece = bytes(FRAME_BYTES)
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj(
        BOMB_BYTES if has_size else -1
    )
    packed = [compressor.compress(piece) for _ in range(BOMB_BYTES // FRAME_BYTES)]
    return b"".join([*packed, compressor.flush()])


def tabled(anatomy: Anatomy) -> Iterator[Mutant]:
    """Set every number of the trailer and of the seek table to others."""
    whole = anatomy.content
    count = _FOOT.unpack(whole[-_FOOT.size :])[0]
    start = len(whole) - _FOOT.size - count * _PAIR.size - _HEAD.size - _TRAILER.size
    end = len(whole)
    fields = [(position, "<I") for position in range(start, end - 3)]
    fields += [(start + 16, "<Q"), (end - _FOOT.size, "<I")]
    for position, code in fields:
        (value,) = struct.unpack_from(code, whole, position)
        most = 2 ** (8 * struct.calcsize(code)) - 1
        for changed in {0, 1, value - 1, value + 1, most, most // 2 + 1} - {value}:
            if 0 <= changed <= most:
                content = bytearray(whole)
                struct.pack_into(code, content, position, changed)
                yield Mutant(f"{code} at {position - end} is {changed}", bytes(content))
    tail = whole[start:]
    for times in (2, 3):
        yield Mutant(f"{times} tails", whole[:start] + tail * times)


def edited(anatomy: Anatomy, most: int, seed: int) -> Iterator[Mutant]:
    """Set every value of both documents to others, in headers too, with every sum right."""
    yield from some(list(_edited_entries(anatomy)), most, seed)
    for method, changed in some(list(_documents(anatomy.document)), most, seed):
        content = build(anatomy.members, encoded(changed), anatomy.own)
        yield Mutant(f"manifest: {method}", content, is_consistent=True)
    header = json.loads(anatomy.members[0][1])
    for method, changed in some(list(_documents(header)), most, seed):
        body = json.dumps(changed).encode()
        yield Mutant(f"header: {method}", _with_header(anatomy, body), is_consistent=True)


def spoiled_texts(anatomy: Anatomy) -> Iterator[Mutant]:
    """Write both documents as JSON does not allow, or as it allows too much."""
    text = encoded(anatomy.document)
    ways: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda _body: b"",
        "null": lambda _body: b"null",
        "a list": lambda _body: b"[]",
        "deep": lambda body: body[:-2] + b',"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "not UTF-8": lambda body: body.replace(b'"', b'"\xff', 3),
        "a NUL": lambda body: body.replace(b" ", b"\0", 1),
        "NaN": lambda body: body.replace(b"1", b"NaN", 1),
        "a long number": lambda body: body.replace(b"1", b"1" * 5000, 1),
        "twice": lambda body: body + body,
        "no end": lambda body: body.rstrip()[:-1],
        "zeros behind": lambda body: body + bytes(32 << 20),
        "many directories": lambda body: body.replace(
            b"\n]}",
            b"".join(b",\n" + _directory_line(number) for number in range(100_000)) + b"\n]}",
        ),
        "a long line": lambda body: body.replace(b'"', b'"' + b"x" * (2 << 20), 1),
    }
    for method, change in ways.items():
        changed = build(anatomy.members, change(text), anatomy.own)
        yield Mutant(f"manifest: {method}", changed, is_consistent=True)
        body = change(anatomy.members[0][1])
        yield Mutant(f"header: {method}", _with_header(anatomy, body), is_consistent=True)


def _directory_line(number: int) -> bytes:
    place = {"path": f"d{number}", "type": "folder", "mode": "0700", "uid": 0, "gid": 0}
    return json.dumps({**place, "mtime_ns": number}).encode()


def _edited_entries(anatomy: Anatomy) -> Iterator[Mutant]:
    below = [f"{entry.path}/x" for entry, _content in anatomy.members if entry.target]
    for index, (entry, content) in enumerate(anatomy.members[1:], 1):
        listed = anatomy.document["entries"][index]
        for name, values in {
            "path": (*_PATHS, *below, listed["path"].upper(), anatomy.members[1][0].path, 7, None),
            "type": ("file", "folder", "link", "superseded", "device", "", None, 7),
            "mode": ("0000", "7777", "4755", "10000", "-1", "x", "", None, 420),
            "uid": _NUMBERS,
            "gid": _NUMBERS,
            "mtime_ns": _NUMBERS,
            "size": _NUMBERS,
            "sha256": ("", "00", "00" * 32, "zz" * 32, None, 7),
            "target": ("/etc/passwd", "../../x", "x", "", "\0", ".", "a" * 5000, None),
            "sparse": (True, 1, "x"),
            "absolute": (True, 1, "x"),
            "outside": (True, 1, "x", None),
        }.items():
            for value in values:
                if listed.get(name) == value:
                    continue
                document = dict(anatomy.document)
                document["entries"] = list(document["entries"])
                document["entries"][index] = {**listed, name: value}
                method = f"entry {index} {name} = {value!r:.40}"
                text = encoded(document)
                changed = _retold(entry, name, value)
                # Of some fields the stream has no copy: then nothing contradicts the manifest.
                is_silent = changed is not None and member_header(changed) == member_header(entry)
                kept = build(anatomy.members, text, anatomy.own)
                yield Mutant(f"{method}, stream kept", kept, is_consistent=is_silent)
                if changed is not None and not is_silent:
                    members = list(anatomy.members)
                    members[index] = (changed, content)
                    yield Mutant(method, build(members, text, anatomy.own), is_consistent=True)


def _retold(entry: Entry, name: str, value: object) -> Entry | None:
    """Write the same in the tar header, if a header can."""
    try:
        if name == "mode":
            changed = dataclasses.replace(entry, mode=int(str(value), 8))
        elif name == "path":
            changed = dataclasses.replace(entry, path=str(value))
        elif name == "target":
            changed = dataclasses.replace(entry, target=str(value))
        elif name == "type":
            changed = dataclasses.replace(entry, type=EntryType(value))
        elif name in ("uid", "gid", "mtime_ns") and isinstance(value, int):
            changed = dataclasses.replace(entry, **{name: value})  # type: ignore[arg-type]
        elif name in ("sparse", "absolute", "outside") or not value:
            changed = entry
        else:
            return None
        member_header(changed)
    except (ValueError, UnicodeEncodeError, OverflowError):
        return None
    return changed


def _documents(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Drop every field of a document and set it to anything, one at a time; entries apart."""
    for path, value in _places(document):
        for other in (*_ANYTHING, ...):
            if other == value and type(other) is type(value):
                continue
            copy = json.loads(json.dumps(document))
            within = copy
            for step in path[:-1]:
                within = within[step]
            if other is ...:
                del within[path[-1]]
            else:
                within[path[-1]] = other
            output = ".".join(map(str, path))
            yield f"{output} = {'nothing' if other is ... else repr(other)[:40]}", copy


def _places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], object]]:
    children: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        children = [each for each in value.items() if path or each[0] != "entries"]
    elif isinstance(value, list):
        children = list(enumerate(value[:2]))
    for name, child in children[:12] if path else children:
        yield (*path, name), child
        yield from _places(child, (*path, name))


def retold(entry: Entry, body: bytes) -> Entry:
    """Return an entry the length and the hash of other content."""
    return dataclasses.replace(entry, size_bytes=len(body), sha256=hashlib.sha256(body).digest())


def line_of(entry: Entry) -> bytes:
    """Write a file's entry as a manifest does."""
    output = {"path": entry.path, "type": "file", "mode": f"{entry.mode:04o}", "uid": 0, "gid": 0}
    sums = {"size": entry.size_bytes, "sha256": entry.sha256.hex()}
    return json.dumps({**output, "mtime_ns": entry.mtime_ns, **sums}).encode()


def build_from_text(text: bytes, filling: bytes, anatomy: Anatomy) -> bytes | None:
    """Write the archive that a manifest describes, if it describes any; contents are `filling`."""
    try:
        entries = decode_manifest([text]).entries
        members = [(entries[0], anatomy.members[0][1])]
        for entry in entries[1:]:
            if entry.size_bytes > len(filling):
                return None
            members.append((entry, filling[: entry.size_bytes]))
        return build(members, text, anatomy.own)
    except (DamagedError, SchemaAheadError, IndexError):
        return None


def _with_header(anatomy: Anatomy, body: bytes) -> bytes:
    first = retold(anatomy.members[0][0], body)
    document = dict(anatomy.document)
    output = {**document["entries"][0], "size": len(body), "sha256": first.sha256.hex()}
    document["entries"] = [output, *document["entries"][1:]]
    return build([(first, body), *anatomy.members[1:]], encoded(document), anatomy.own)


def _packed(content: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
    return compressor.compress(content)


def _unpacked(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(frame)


def some(choices: Sequence[Any], most: int, seed: int) -> Sequence[Any]:
    """Keep `most` of them, or all when there are no more; the same ones for the same seed."""
    if len(choices) <= most:
        return choices
    return random.Random(seed).sample(choices, most)
