"""Re-encrypt the values under a master key with another one, and replace them.

The result is a table of tokens, old to new. A token never occurs twice by chance, so the table can
be applied to any text that contains some, repeatedly and in reverse. The values of a project are
under its data key, which is wrapped again and stays the same: they do not change. A token keeps its
time and its length.
"""

import base64
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import in_utf8, quoted, utf8_rows
from sagewai_ops.database.sqlite.write_transaction import open_write_transaction
from sagewai_ops.errors import DifferenceError
from sagewai_ops.keys.candidates import Candidate
from sagewai_ops.keys.locations import COLUMNS, PREFIX, SealedValue
from sagewai_ops.keys.trial_decryption import SealedReport, open_all
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

_TOKEN = re.compile(rb"fernet:[A-Za-z0-9_=-]+")
_TIME = slice(1, 9)  # of a token's bytes: seconds since 1970, big-endian
_ROWS = 500  # read at a time


@dataclass(frozen=True, slots=True)
class Reencryption:
    """The result of a re-encryption.

    Args:
        tokens: Old to new, each with its prefix.
        places: Place -> number of replaced values.
        by_key: Fingerprint of the old key -> number of replaced values.
        report: What opened before, and what did not.
    """

    tokens: Mapping[bytes, bytes] = field(repr=False)
    places: Mapping[str, int]
    by_key: Mapping[str, int]
    report: SealedReport


def reencrypt_values(
    values: Iterable[SealedValue],
    candidates: Sequence[Candidate],
    new: Candidate,
    *,
    only_counts: bool = False,
    progress: Progress | None = None,
) -> Reencryption:
    """Re-encrypt every value under a master key with another one.

    Args:
        candidates: Keys to decrypt with; values under `new` do not change.
        new: With a value.
        only_counts: Make no tokens.
        progress: Called with `re-encrypt` and values.

    Raises:
        DifferenceError: A new token does not decrypt to the same value.
    """
    from cryptography.fernet import Fernet

    fernet = Fernet(new.value)
    tokens: dict[bytes, bytes] = {}
    places: Counter[str] = Counter()
    by_key: Counter[str] = Counter()

    def reencrypt(value: SealedValue, fingerprint: str, plaintext: bytes) -> None:
        old = _TOKEN.match(value.text.encode())
        if fingerprint == new.fingerprint or old is None:
            return
        places[value.place] += 1
        by_key[fingerprint] += 1
        if only_counts or old[0] in tokens:
            return
        raw = base64.urlsafe_b64decode(old[0][len(PREFIX) :])
        token = fernet.encrypt_at_time(plaintext, int.from_bytes(raw[_TIME], "big"))
        if fernet.decrypt(token) != plaintext:
            raise DifferenceError(f"{value.place} {value.where}: new token does not decrypt")
        tokens[old[0]] = PREFIX.encode() + token

    report = open_all(
        values, [*candidates, new], on_plaintext=reencrypt, progress=progress, stage="re-encrypt"
    )
    return Reencryption(tokens, dict(places), dict(by_key), report)


def replace_tokens(content: bytes, tokens: Mapping[bytes, bytes]) -> bytes:
    """Return a text with the tokens of the table replaced; every other byte is the same."""
    return _TOKEN.sub(lambda match: tokens.get(match[0], match[0]), content)


def replace_tokens_in_database(
    path: Path, tokens: Mapping[bytes, bytes], *, wait_seconds: float
) -> None:
    """Replace tokens in every column that contains sealed values, in one transaction.

    The old ones are overwritten, in free pages too.

    Raises:
        OpsError: As `open_write_transaction` raises; nothing was changed.
    """
    with open_write_transaction(path, wait_seconds) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        for column in COLUMNS:
            _replace(connection, column.table, column.name, tokens)


def _replace(
    connection: sqlite3.Connection, table: str, column: str, tokens: Mapping[bytes, bytes]
) -> None:
    if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({quoted(table)})")}:
        return
    name = quoted(column)
    is_utf8 = connection.execute("PRAGMA encoding").fetchone() == ("UTF-8",)
    last = -(2**63)
    while True:
        rows = list(
            utf8_rows(
                connection,
                f"SELECT rowid, {in_utf8(name)}, typeof({name}) FROM {quoted(table)}"  # noqa: S608
                f" WHERE rowid > ? AND instr({name}, ?) ORDER BY rowid LIMIT {_ROWS}",
                (last, PREFIX),
            )
        )
        for rowid, content, kind in rows:
            other = replace_tokens(content, tokens)
            if other != content:
                # A cast keeps the bytes: text in SQLite need not be valid UTF-8.
                is_cast = kind != b"blob" and is_utf8
                value = other if is_cast or kind == b"blob" else other.decode("utf-8", "replace")
                connection.execute(
                    f"UPDATE {quoted(table)} SET {name} ="  # noqa: S608
                    f" {'CAST(? AS TEXT)' if is_cast else '?'} WHERE rowid = ?",
                    (value, rowid),
                )
        if len(rows) < _ROWS:
            return
        last = rows[-1][0]
