"""Frames of the stream: how much effort their compression takes, and what it results in."""

from __future__ import annotations

import array
import io
import random

import pytest
import zstandard

from sagewai_ops.archive.zstd_frames import (
    FRAME_BYTES,
    TABLE_FOOT_BYTES,
    FrameWriter,
    parse_frame_table,
    tail_bytes,
)

MIB = 1024 * 1024


def frames_of(content: bytes, level: int = 3) -> list[bytes]:
    """Write a stream and return its frames."""
    stream = io.BytesIO()
    writer = FrameWriter(stream, level=level)
    writer.write(b"header")
    writer.cut()
    writer.write(content)
    writer.finish(len(b"header"))
    archive = stream.getvalue()
    tail = archive[-tail_bytes(archive[-TABLE_FOOT_BYTES:], len(archive)) :]
    frames = parse_frame_table(tail, len(archive)).frames[1:]
    return [archive[frame.offset : frame.offset + frame.size_bytes] for frame in frames]


def usual(content: bytes, level: int = 3) -> bytes:
    """Return what zstd makes of a frame at a level."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    return compressor.compress(content)


def vectors(size_bytes: int) -> bytes:
    """Return numbers such as those of embeddings."""
    chance = random.Random(5)
    return array.array("f", [chance.gauss(0, 0.05) for _ in range(size_bytes // 4)]).tobytes()


def prose(size_bytes: int) -> bytes:
    """Return text."""
    chance = random.Random(6)
    words = [chance.randbytes(3).hex() for _ in range(2000)]
    return " ".join(chance.choices(words, k=size_bytes // 7 + 1)).encode()[:size_bytes]


@pytest.mark.parametrize("level", [1, 3, 9])
@pytest.mark.parametrize(
    "content",
    [
        random.Random(1).randbytes(FRAME_BYTES),
        vectors(FRAME_BYTES),
        b"".join(
            b'{"id": %06d, "v": "' % row + random.Random(row).randbytes(1500) for row in range(2700)
        ),
        random.Random(2).randbytes(100_000),
    ],
    ids=["media", "vectors", "rows", "short"],
)
def test_frame_that_does_not_shrink_is_no_larger_with_less_effort(
    content: bytes, level: int
) -> None:
    """It is not compressed at the level, and not larger than at the level."""
    (frame,) = frames_of(content, level)

    assert zstandard.ZstdDecompressor().decompress(frame) == content
    assert zstandard.get_frame_parameters(frame).has_checksum
    assert len(frame) <= len(usual(content, level)) + 16


def test_repetition_of_bytes_that_do_not_shrink_is_found_in_the_whole_frame() -> None:
    """Level 3 does not find it: its window is shorter."""
    part = random.Random(3).randbytes(MIB)
    other = random.Random(4).randbytes(2 * MIB)
    content = part + other[100_000:] + part + other[:100_000]

    (frame,) = frames_of(content)

    assert len(frame) < 3.2 * MIB < len(usual(content))


@pytest.mark.parametrize("level", [1, 3, 9])
def test_frame_that_shrinks_is_compressed_at_the_level(level: int) -> None:
    """Byte for byte what zstd makes of it, also where a part of it does not shrink."""
    text = prose(FRAME_BYTES)
    mixed = text[: 3 * MIB] + random.Random(7).randbytes(MIB)
    short = text[:1000]

    frames = frames_of(text + mixed + short, level)

    assert frames == [usual(text, level), usual(mixed, level), usual(short, level)]


def test_same_bytes_result_in_the_same_frames() -> None:
    """Whichever thread compresses them, and whatever it compressed before."""
    content = vectors(2 * MIB) + prose(5 * MIB) + random.Random(8).randbytes(9 * MIB)

    assert frames_of(content) == frames_of(content)
