"""A second reader of snapshots, written from docs/format.md alone: nothing of the program is used.

If this needs to know more than the document states, the document is incomplete.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

AGE = b"age-encryption.org/v1\n"
BLOCK = 512
MOST_OCTAL = 8**11
TYPES = {"file": b"0", "superseded": b"0", "link": b"2", "folder": b"5"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Header and manifest of a snapshot, and the contents of its files by path.

    Attributes:
        mac: The HMAC that the archive states.
        expected_mac: The HMAC under the key; empty without one.
    """

    header: dict[str, Any]
    manifest: dict[str, Any]
    contents: dict[str, bytes]
    mac: bytes = b""
    expected_mac: bytes = b""


def read(path: Path, identity: str = "", master_key: bytes = b"") -> Snapshot:
    """Read a snapshot and check it by the document; an AssertionError has the difference."""
    archive = path.read_bytes()
    if archive.startswith(AGE):
        import pyrage

        archive = pyrage.decrypt(archive, [pyrage.x25519.Identity.from_str(identity)])
    version, frames, manifest_start, digest, mac = _table(archive)  # section 4
    stream = b"".join(
        _decompressed(archive[offset:][:size], count) for offset, size, count in frames
    )
    starts = [sum(count for _, _, count in frames[:number]) for number in range(len(frames))]
    assert manifest_start in starts

    # Section 5, of the manifest's own header; section 7.
    size, seconds = (int(stream[manifest_start + at :][:11], 8) for at in (124, 136))
    own = {"path": "manifest.json", "type": "file", "mode": "0600", "uid": 0, "gid": 0}
    header = _encoded_header({**own, "size": size, "mtime_ns": seconds * 10**9})
    text = stream[manifest_start + BLOCK :][:size]
    assert stream[manifest_start:] == header + text + bytes(-size % BLOCK) + bytes(2 * BLOCK)
    lines = text.split(b"\n")
    begin = lines.index(b' "entries": [') + 1
    manifest: dict[str, Any] = json.loads(text)
    assert lines[-2:] == [b"]}", b""]
    assert [json.loads(line.rstrip(b",")) for line in lines[begin:-2]] == manifest["entries"]

    contents: dict[str, bytes] = {}
    directories, names, at = {""}, set(), 0
    for entry in manifest["entries"]:
        header = _encoded_header(entry)
        assert stream[at:][: len(header)] == header, entry
        at += len(header)
        content = stream[at:][: entry.get("size", 0)]
        at += len(content)
        assert stream[at:][: -len(content) % BLOCK] == bytes(-len(content) % BLOCK)
        at += -len(content) % BLOCK
        if "sha256" in entry:
            assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry
            contents[entry["path"]] = content
        assert entry["path"].rpartition("/")[0] in directories
        if entry["type"] == "folder":
            directories.add(entry["path"])
        if entry["type"] != "superseded":
            assert entry["path"] not in names
            names.add(entry["path"])
        if entry is manifest["entries"][0]:
            assert (entry["path"], at) == ("snapshot.json", frames[0][2])
    assert at == manifest_start
    head = json.loads(contents["snapshot.json"])
    assert head["format"] == manifest["format"] == version
    if manifest.get("postgres"):
        _check_server(manifest["postgres"], contents)
    expected = authentication(master_key, head, digest, manifest_start) if master_key else b""
    return Snapshot(head, manifest, contents, mac, expected)


def _check_server(server: dict[str, Any], contents: dict[str, bytes]) -> None:
    """Check the members of a server's database against the record; section 14."""
    members = {path for path in contents if path.startswith("postgres/")}
    members -= {f"postgres/{name}.sql" for name in ("schema", "constraints", "restore")}
    for table in server["tables"]:
        stem = ".".join(map(_escaped, (table["schema"], table["name"])))
        if len(stem) > 180:
            stem = f"{stem[:163]}~{hashlib.sha256(stem.encode()).hexdigest()[:16]}"
        assert table["stem"] == stem
        paths = [f"postgres/{stem}.copy.{n:04}" for n in range(1, table["members"] + 1)]
        parts = [contents[path] for path in paths]
        members -= set(paths)
        assert all(0 < len(part) <= 16_777_216 for part in parts)
        assert all(part.endswith(b"\n") or b"\n" not in part for part in parts)
        rows = b"".join(parts)
        assert (len(rows), rows.count(b"\n")) == (table["bytes"], table["rows"])
        assert hashlib.sha256(rows).hexdigest() == table["sha256"]
        for row in rows.decode("utf-8" if server["text_encoding"] == "UTF8" else "latin-1").split(
            "\n"
        )[:-1]:
            assert row.count("\t") == max(len(table["columns"]) - 1, 0)
    assert not members


def _escaped(name: str) -> str:
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in name.encode())


def authentication(master_key: bytes, head: dict[str, Any], digest: bytes, start: int) -> bytes:
    """Return the HMAC of a snapshot; section 11."""
    message = b"sagewai-ops snapshot v2\0" + digest
    message += bytes.fromhex(head["previous"]["mac"]) if "previous" in head else bytes(32)
    message += struct.pack("<QQ", start, head["sequence"])
    for text in (head["id"].encode(), head["home_id"].encode()):
        message += struct.pack("<I", len(text)) + text
    return hmac.new(authentication_key(master_key), message, hashlib.sha256).digest()


def authentication_key(master_key: bytes) -> bytes:
    """Return the key of the HMACs; section 11."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"sagewai-ops snapshot authentication v2"
    return HKDF(SHA256(), 32, salt=None, info=info).derive(master_key)


def _table(archive: bytes) -> tuple[int, list[tuple[int, int, int]], int, bytes, bytes]:
    """Return version, offset, size and content size of each frame, start of the manifest, MAC."""
    number, descriptor, magic = struct.unpack("<IBI", archive[-9:])
    assert (descriptor, magic) == (0, 0x8F92EAB1)
    length = 8 * number + 9
    assert struct.unpack("<II", archive[-length - 8 : -length]) == (0x184D2A5E, length)
    sizes = list(struct.iter_unpack("<II", archive[-length:-9]))
    trailer_size, nothing = sizes.pop()
    assert (trailer_size, nothing) in ((56, 0), (96, 0))
    frames, offset = [], 0
    for size, count in sizes:
        assert 1 <= count <= 4_194_304
        frames.append((offset, size, count))
        offset += size
    assert offset + trailer_size + 8 + length == len(archive)
    trailer = archive[offset:][:trailer_size]
    begin, rest, mark, start, digest = struct.unpack("<II8sQ32s", trailer[:56])
    version = 1 if trailer_size == 56 else 2
    assert (begin, rest, mark) == (0x184D2A5D, trailer_size - 8, b"sgwiops%d" % version)
    assert hashlib.sha256(archive[:offset]).digest() == digest
    mac, check = trailer[56:88], trailer[88:]
    assert version == 1 or check == hashlib.sha256(trailer[:88]).digest()[:8]
    return version, frames, start, digest, mac


def _decompressed(frame: bytes, count: int) -> bytes:
    parameters = zstandard.get_frame_parameters(frame)
    assert (parameters.content_size, parameters.has_checksum) == (count, True)
    return zstandard.ZstdDecompressor().decompress(frame)


def _encoded_header(entry: dict[str, Any]) -> bytes:
    """Return the header of an entry; section 5."""
    name, target = (
        entry.get(field, "").encode("utf-8", "surrogateescape") for field in ("path", "target")
    )
    name += b"/" if entry["type"] == "folder" else b""
    size, seconds = entry.get("size", 0), entry["mtime_ns"] // 10**9
    records = b""
    if not (_is_utf8(name) and _is_utf8(target)):
        records += _record(b"hdrcharset", b"BINARY")
    if not _fits(name):
        records += _record(b"path", name)
    if not _fits(target):
        records += _record(b"linkpath", target)
    if size >= MOST_OCTAL:
        records += _record(b"size", b"%d" % size)
    if not 0 <= seconds < MOST_OCTAL:
        records += _record(b"mtime", b"%d" % seconds)
    extended = b""
    if records:
        extended = _block(b"././@PaxHeader", 0o644, 0, 0, len(records), 0, b"x", b"")
        extended += records + bytes(-len(records) % BLOCK)
    mode, kind = int(entry["mode"], 8), TYPES[entry["type"]]
    short = (_shortened(name), mode, entry["uid"], entry["gid"], size, seconds, kind)
    return extended + _block(*short, _shortened(target))


def _block(
    name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes, target: bytes
) -> bytes:
    block = name.ljust(100, b"\0")
    for number in (mode, uid, gid):
        block += b"%07o\0" % (number if number < 8**7 else 0)
    for number in (size, mtime):
        block += b"%011o\0" % (number if 0 <= number < MOST_OCTAL else 0)
    block += b" " * 8 + kind + target.ljust(100, b"\0") + b"ustar\x0000" + bytes(64)
    block += b"0000000\0" * 2 + bytes(167)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(rest) + len(b"%d" % length):
        length += 1
    return b"%d" % length + rest


def _fits(name: bytes) -> bool:
    return len(name) <= 100 and name.isascii()


def _shortened(name: bytes) -> bytes:
    return bytes(byte if byte < 128 else ord("?") for byte in name[:100])


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
