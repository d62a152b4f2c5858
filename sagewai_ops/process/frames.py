"""Frames between this process and its workers: kind, length, number of rows, content."""

from __future__ import annotations

import fcntl
import json
import os
import struct
from contextlib import suppress
from typing import IO

from sagewai_ops import errors
from sagewai_ops.errors import OpsError

HEADER = struct.Struct(">cII")
ERROR = b"x"  # content: an error's name, message and hint, as JSON
PIPE_BYTES = 1024 * 1024  # the most that Linux allows an unprivileged process by default


def read_frame(stream: IO[bytes]) -> tuple[bytes, bytes, int]:
    """Read one frame: kind, content, rows.

    Raises:
        EOFError: The other process has ended.
    """
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        raise EOFError
    kind, length, rows = HEADER.unpack(header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return kind, content, rows


def write_frame(descriptor: int, kind: bytes, content: bytes, rows: int = 0) -> None:
    """Write one frame.

    Raises:
        BrokenPipeError: The other process has ended.
    """
    for part in (HEADER.pack(kind, len(content), rows), content):
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def encode_error(error: OpsError) -> bytes:
    """Return the content of an `ERROR` frame."""
    described = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    return json.dumps(described).encode()


def decode_error(content: bytes) -> OpsError:
    """Return the error of an `ERROR` frame."""
    failure = json.loads(content)
    kinds = {each.__name__: each for each in OpsError.__subclasses__()}
    return kinds.get(failure["type"], errors.OpsError)(failure["message"], hint=failure["hint"])


def enlarge_pipe(descriptor: int) -> None:
    """Enlarge the buffer of a pipe, where the system can."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
