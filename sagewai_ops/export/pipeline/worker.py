"""A worker process: it encodes the source for sending, or compares the target's rows with it.

One of each kind runs while the main process talks to the server; neither imports asyncpg or another
large library. Requests arrive on stdin, results go to stdout, both as frames: kind, length, number
of rows, content. It exits when its work is done or a pipe is closed.
"""

from __future__ import annotations

import gc
import json
import sqlite3
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from sagewai_ops.errors import DamagedError, OpsError
from sagewai_ops.export.compare.rows import ComparisonByKey, ComparisonInOrder
from sagewai_ops.export.convert.batch import SIGNATURE, TRAILER, encode_batch
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.export.mapping.plan import PlannedTable, from_job
from sagewai_ops.export.mapping.source_rows import BatchSize, open_copy, read_batches, read_key_text
from sagewai_ops.process import core_dumps
from sagewai_ops.process.frames import ERROR, encode_error, read_frame, write_frame

PLACE = struct.Struct(">Iq")  # the number of a table in the plan, and of its first row in a block
FRAME_BYTES = 256 * 1024  # of encoded rows; the sender writes each in one piece

JOB = b"j"  # the first request; content: the frozen copy, and the tables, as JSON
TABLE = b"t"  # a table begins, to be sent or to be compared by key; content: its name
ROWS = b"d"  # encoded rows
END = b"e"  # the table is complete, or all blocks were sent
FINDINGS = b"f"  # all tables are read; content: the findings, as JSON
BLOCK = b"k"  # rows of the target in COPY's text format, after PLACE
ORDERED = b"b"  # a piece of the target's rows ordered by key, not of whole lines
RESULT = b"r"  # content: the result of a comparison, as JSON

Send = Callable[[bytes, bytes, int], None]


def main() -> None:
    """Run the job that arrives on stdin, and report errors on stdout."""
    requests, results = sys.stdin.buffer, sys.stdout.buffer.fileno()
    core_dumps.forbid()
    gc.disable()  # rows and documents have no cycles, and a search for them takes 4 % of the time

    def send(kind: bytes, content: bytes, rows: int) -> None:
        write_frame(results, kind, content, rows)

    with suppress(BrokenPipeError, EOFError, KeyboardInterrupt):
        job = json.loads(read_frame(requests)[1])
        try:
            path, tables = Path(job["path"]), from_job(job["tables"])
            if job["stream"]:
                stream_tables(path, tables, send)
            else:
                _compare_tables(path, tables, requests, send)
        except OpsError as error:
            send(ERROR, encode_error(error), 0)
        except sqlite3.Error as error:
            send(ERROR, encode_error(DamagedError(f"frozen copy: {error}")), 0)


def stream_tables(path: Path, tables: tuple[PlannedTable, ...], send: Send) -> None:
    """Encode every row of every table; after the first refusal, only check the others.

    Texts and documents are checked by the server alone, when it stores them.
    """
    tally = Tally()
    with open_copy(path) as source:
        for table in tables:
            send(TABLE, table.name.encode(), 0)
            targets = [replace(column.target, trusting=True) for column in table.columns]
            pending, pending_bytes, pending_rows = [SIGNATURE], 0, 0
            sizes = BatchSize()
            for columns in read_batches(source, table.select(), sizes):
                encoded, refusals = encode_batch(targets, columns[:-1])
                sizes.last = len(encoded)
                for refusal in refusals:
                    rowid = columns[-1][refusal.row]
                    assert isinstance(rowid, int)
                    tally.add(
                        table.name,
                        table.columns[refusal.column].name,
                        refusal.kind,
                        refusal.detail,
                        read_key_text(source, table, rowid),
                    )
                if tally.is_empty:
                    pending.append(encoded)
                pending_bytes += len(encoded)
                pending_rows += len(columns[0])
                if pending_bytes >= FRAME_BYTES:
                    send(ROWS, b"".join(pending) if tally.is_empty else b"", pending_rows)
                    pending, pending_bytes, pending_rows = [], 0, 0
            send(ROWS, b"".join([*pending, TRAILER]) if tally.is_empty else b"", pending_rows)
            send(END, b"", 0)
    send(FINDINGS, json.dumps([asdict(finding) for finding in tally.findings()]).encode(), 0)


def read_findings(content: bytes) -> list[Finding]:
    """Parse the content of a `FINDINGS` frame."""
    return [Finding(**{**each, "keys": tuple(each["keys"])}) for each in json.loads(content)]


def _compare_tables(
    path: Path, tables: tuple[PlannedTable, ...], requests: BinaryIO, send: Send
) -> None:
    """Compare blocks, or a table by key, until the requests end; blocks need not be complete."""
    in_order: dict[int, ComparisonInOrder] = {}
    with open_copy(path) as source:
        while True:
            kind, content, _ = read_frame(requests)
            if kind == BLOCK:
                number, first = PLACE.unpack_from(content)
                if number not in in_order:
                    in_order[number] = ComparisonInOrder(source, tables[number])
                in_order[number].feed(first, content[PLACE.size :])
            elif kind == END:
                found = {
                    tables[number].name: comparison.as_dict()
                    for number, comparison in in_order.items()
                }
                send(RESULT, json.dumps(found).encode(), 0)
            else:
                assert kind == TABLE
                table = next(each for each in tables if each.name == content.decode())
                send(RESULT, json.dumps(_compare_by_key(source, table, requests)).encode(), 0)


def _compare_by_key(
    source: sqlite3.Connection, table: PlannedTable, requests: BinaryIO
) -> dict[str, object]:
    comparison = ComparisonByKey(source, table)
    while True:
        kind, content, _ = read_frame(requests)
        if kind != ORDERED:
            return comparison.finish().as_dict()
        comparison.feed(content)
