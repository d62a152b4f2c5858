"""A process that reads: it encodes the source for sending, or compares what came back.

One of each kind works while the main process talks to the server, and neither imports asyncpg nor
anything else that is large. Orders come on stdin, results go to stdout, both as frames: kind,
length, number of rows, content. It ends when its work is done or the other end of a pipe goes away.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import sagewai_ops
from sagewai_ops.errors import DamagedError, OpsError
from sagewai_ops.export.compare.rows import ComparisonByKey, ComparisonInOrder
from sagewai_ops.export.convert.batch import SIGNATURE, TRAILER, encode
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.export.mapping.plan import PlannedTable, from_job
from sagewai_ops.export.mapping.source_rows import SizeOf, batches, key_text, opened_copy

HEADER = struct.Struct(">cII")
PLACE = struct.Struct(">Iq")  # the number of a table in the plan, and of its first row in a block
FRAME_BYTES = 256 * 1024  # of encoded rows; the sender passes each on in one piece

JOB = b"j"  # the first order; content: the frozen copy, and the tables, as JSON
TABLE = b"t"  # a table begins, to be sent or to be compared by key; content: its name
ROWS = b"d"  # encoded rows
END = b"e"  # the table is complete, or all blocks were given
FINDINGS = b"f"  # all tables are read; content: the findings, as JSON
BLOCK = b"k"  # rows of the target, as COPY spells them; before them PLACE
BACK = b"b"  # a piece of the target's rows, ordered by key, cut anywhere
RESULT = b"r"  # content: what a comparison found, as JSON
ERROR = b"x"  # content: an error's name, message and hint, as JSON

Send = Callable[[bytes, bytes, int], None]


def command() -> list[str]:
    """Give the command line that starts this module, whatever the current directory holds."""
    root = str(Path(sagewai_ops.__file__).parents[1])
    start = f"import sys; sys.path.append({root!r}); from {__name__} import main; main()"
    return [sys.executable, "-I", "-S", "-c", start]  # it needs the standard library and us


def main() -> None:
    """Do what the other process says, and tell it what goes wrong."""
    orders, results = sys.stdin.buffer, sys.stdout.buffer.fileno()
    gc.disable()  # rows and documents have no cycles, and looking for them takes 4 % of the time

    def send(kind: bytes, content: bytes, rows: int) -> None:
        _write_all(results, HEADER.pack(kind, len(content), rows) + content)

    with suppress(BrokenPipeError, EOFError, KeyboardInterrupt):
        job = json.loads(read_frame(orders)[1])
        try:
            path, tables = Path(job["path"]), from_job(job["tables"])
            if job["stream"]:
                stream_tables(path, tables, send)
            else:
                _compare_tables(path, tables, orders, send)
        except OpsError as error:
            _tell(send, error)
        except sqlite3.Error as error:
            _tell(send, DamagedError(f"the frozen copy: {error}"))


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes, int]:
    """Read one frame: kind, content, rows.

    Raises:
        EOFError: The other process is gone.
    """
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        raise EOFError
    kind, length, rows = HEADER.unpack(header)
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return kind, content, rows


def stream_tables(path: Path, tables: tuple[PlannedTable, ...], send: Send) -> None:
    """Encode every row of every table; after the first refusal, only look at the rest.

    Texts and documents are left to the server, which looks at them while it stores them.
    """
    tally = Tally()
    with opened_copy(path) as source:
        for table in tables:
            send(TABLE, table.name.encode(), 0)
            targets = [replace(column.target, trusting=True) for column in table.columns]
            waiting, waiting_bytes, waiting_rows = [SIGNATURE], 0, 0
            sizes = SizeOf()
            for columns in batches(source, table.select(), sizes):
                encoded, refusals = encode(targets, columns[:-1])
                sizes.last = len(encoded)
                for refusal in refusals:
                    rowid = columns[-1][refusal.row]
                    assert isinstance(rowid, int)
                    tally.add(
                        table.name,
                        table.columns[refusal.column].name,
                        refusal.kind,
                        refusal.detail,
                        key_text(source, table, rowid),
                    )
                if tally.is_empty:
                    waiting.append(encoded)
                waiting_bytes += len(encoded)
                waiting_rows += len(columns[0])
                if waiting_bytes >= FRAME_BYTES:
                    send(ROWS, b"".join(waiting) if tally.is_empty else b"", waiting_rows)
                    waiting, waiting_bytes, waiting_rows = [], 0, 0
            send(ROWS, b"".join([*waiting, TRAILER]) if tally.is_empty else b"", waiting_rows)
            send(END, b"", 0)
    send(FINDINGS, json.dumps([finding.as_dict() for finding in tally.findings()]).encode(), 0)


def read_findings(content: bytes) -> list[Finding]:
    """Read the content of a `FINDINGS` frame."""
    return [Finding(**{**each, "keys": tuple(each["keys"])}) for each in json.loads(content)]


def _tell(send: Send, error: OpsError) -> None:
    described = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    send(ERROR, json.dumps(described).encode(), 0)


def _compare_tables(
    path: Path, tables: tuple[PlannedTable, ...], orders: BinaryIO, send: Send
) -> None:
    """Compare the blocks that come, which need not be all, or a table by key, until nobody asks."""
    in_order: dict[int, ComparisonInOrder] = {}
    with opened_copy(path) as source:
        while True:
            kind, content, _ = read_frame(orders)
            if kind == BLOCK:
                number, first = PLACE.unpack_from(content)
                if number not in in_order:
                    in_order[number] = ComparisonInOrder(source, tables[number])
                in_order[number].feed(first, content[PLACE.size :])
            elif kind == END:
                found = {tables[each].name: it.as_dict() for each, it in in_order.items()}
                send(RESULT, json.dumps(found).encode(), 0)
            else:
                assert kind == TABLE
                table = next(each for each in tables if each.name == content.decode())
                send(RESULT, json.dumps(_by_key(source, table, orders)).encode(), 0)


def _by_key(source: sqlite3.Connection, table: PlannedTable, orders: BinaryIO) -> dict[str, object]:
    comparison = ComparisonByKey(source, table)
    while True:
        kind, content, _ = read_frame(orders)
        if kind != BACK:
            return comparison.finish().as_dict()
        comparison.feed(content)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
