"""Tokens exchanged for others under another key: the same inside, and nothing else changes."""

from __future__ import annotations

import base64
import json
import sqlite3
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from home_builder import sealing
from sagewai_ops.errors import LockedError
from sagewai_ops.keys.candidates import Candidate, key_from_bytes
from sagewai_ops.keys.locations import SealedValue, in_copy, in_documents
from sagewai_ops.keys.reencrypt import reencrypt_values, replace_tokens, replace_tokens_in_database

MASTERS = tuple(base64.urlsafe_b64encode(bytes([number]) * 32) for number in range(1, 4))
NEW = key_from_bytes("the new key", base64.urlsafe_b64encode(b"\xff" * 32))
CANDIDATES = tuple(key_from_bytes(f"key {number}", key) for number, key in enumerate(MASTERS))
MOMENTS = st.integers(0, 2**63 - 1)
TEXTS = st.text(max_size=40)


@st.composite
def tokens(draw: st.DrawFn) -> str:
    """Draw a sealed value under one of the masters, of any time and content."""
    key = draw(st.sampled_from(MASTERS))
    content = draw(TEXTS).encode("utf-8", "surrogatepass")
    vector = draw(st.binary(min_size=16, max_size=16))
    return "fernet:" + sealing.token(key, content, vector, moment=draw(MOMENTS))


LEAVES = tokens() | TEXTS | st.sampled_from(["fernet:", "fernet:my own words", 1.50, None, True])
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def opened(token: bytes, *keys: bytes) -> tuple[bytes, int]:
    """Open a token with one of some keys, and return its time too."""
    bare = token.removeprefix(b"fernet:")
    for key in keys:
        try:
            return Fernet(key).decrypt(bare), Fernet(key).extract_timestamp(bare)
        except Exception:  # noqa: BLE001, S112 - another key
            continue
    raise AssertionError(token)


@settings(max_examples=150)
@drawn(DOCUMENTS, st.booleans(), st.sampled_from([None, 2]))
def test_a_re_encrypted_value_opens_to_the_same(
    document: object,
    is_ascii: bool,  # noqa: FBT001 - drawn
    indent: int | None,
) -> None:
    """Same content, time and length under the new key; every other byte of the file stays."""
    text = json.dumps(document, ensure_ascii=is_ascii, indent=indent)
    content = text.encode("utf-8", "surrogatepass")
    values = [*in_copy("copy", content)]

    made = reencrypt_values(values, CANDIDATES, NEW)
    other = replace_tokens(content, made.tokens)

    for old, new in made.tokens.items():
        assert opened(old, *MASTERS) == opened(new, NEW.value)
        assert len(old) == len(new)
    rest, other_rest = content, other
    for old, new in made.tokens.items():
        rest, other_rest = rest.replace(old, b""), other_rest.replace(new, b"")
    assert rest == other_rest
    assert not any(old in other for old in made.tokens)
    assert sum(made.places.values()) == sum(made.by_key.values()) == made.report.total


@settings(max_examples=80)
@drawn(DOCUMENTS)
def test_the_reverse_is_exact(document: object) -> None:
    """The table backwards returns the very bytes; twice is as once in either direction."""
    content = json.dumps(document).encode()
    table = reencrypt_values(in_copy("copy", content), CANDIDATES, NEW).tokens
    back = {new: old for old, new in table.items()}

    other = replace_tokens(content, table)

    assert replace_tokens(other, table) == other
    assert replace_tokens(other, back) == replace_tokens(content, back) == content


def test_what_is_under_the_new_key_already_stays() -> None:
    """A half of another tool's rotation."""
    token = "fernet:" + sealing.token(NEW.value, b"x", b"v" * 16)

    made = reencrypt_values([SealedValue("p", "w", token)], CANDIDATES, NEW)

    assert (made.tokens, made.places, made.report.opened) == ({}, {}, 1)


def test_a_token_with_a_blank_behind_it_is_exchanged_too() -> None:
    """Edited by hand; Sagewai opens it anyway."""
    token = "fernet:" + sealing.token(MASTERS[0], b"by hand", b"v" * 16)
    content = json.dumps({"connections": [{"protocol_data": {"password": token + " "}}]}).encode()

    made = reencrypt_values(in_documents({"config/connections.json": content}), CANDIDATES, NEW)
    other = json.loads(replace_tokens(content, made.tokens))

    left = other["connections"][0]["protocol_data"]["password"]
    assert opened(left.strip().encode(), NEW.value)[0] == b"by hand"


def test_tokens_within_a_text_within_a_text_are_exchanged() -> None:
    """JSON as a string of JSON: the same token is in the table once for each place."""
    token = "fernet:" + sealing.token(MASTERS[0], b"twice", b"v" * 16)
    content = json.dumps({"a": token, "b": json.dumps({"c": token})}).encode()

    made = reencrypt_values(in_copy("copy", content), CANDIDATES, NEW)

    assert token.encode() not in replace_tokens(content, made.tokens)


def test_a_key_that_opens_nothing_makes_an_empty_table() -> None:
    """What stays closed is in the report, and nothing is made of it."""
    token = "fernet:" + sealing.token(MASTERS[0], b"x", b"v" * 16)

    made = reencrypt_values([SealedValue("p", "w", token)], (Candidate("other", MASTERS[1]),), NEW)

    assert made.tokens == {}
    assert [each.where for each in made.report.unopened] == ["w"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with sealed cells of every storage class, more than are read at a time."""
    path = tmp_path / "sagewai.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE project (id TEXT PRIMARY KEY, data_key_ref TEXT)")
        connection.execute("CREATE TABLE provider (id TEXT, data)")
        cells = [
            sealing.token(MASTERS[0], b"%d" % number, number.to_bytes(16, "big"))
            for number in range(1203)
        ]
        connection.executemany(
            "INSERT INTO provider VALUES (?, ?)",
            [
                (str(number), f"fernet:{cell}" if number % 2 else f"fernet:{cell}".encode())
                for number, cell in enumerate(cells)
            ],
        )
        connection.execute("INSERT INTO provider VALUES (NULL, NULL), ('n', 1.5)")
        connection.execute(
            "INSERT INTO project VALUES (?, CAST(? AS TEXT))",
            ("p", b"fernet:" + cells[0].encode() + b"\xff\xfe"),
        )
    connection.close()
    return path


def test_cells_keep_their_storage_class_and_leave_no_trace(database: Path) -> None:
    """Text that is no UTF-8 as well; the old tokens are nowhere in the file."""
    with sqlite3.connect(database) as connection:
        connection.text_factory = bytes
        before = connection.execute("SELECT id, typeof(data), data FROM provider").fetchall()
    connection.close()
    texts = [bytes(data).decode() for _, kind, data in before if kind in (b"text", b"blob")]
    values = [SealedValue("provider.data", "", text) for text in texts]
    table = reencrypt_values(values, CANDIDATES, NEW).tokens

    replace_tokens_in_database(database, table, wait_seconds=1)

    with sqlite3.connect(database) as connection:
        connection.text_factory = bytes
        after = connection.execute("SELECT id, typeof(data), data FROM provider").fetchall()
        ((odd,),) = connection.execute("SELECT data_key_ref FROM project")
    connection.close()
    assert [row[:2] for row in after] == [row[:2] for row in before]
    assert [row[2] for row in after] == [
        table.get(bytes(data)) if kind in (b"text", b"blob") else data for _, kind, data in before
    ]
    assert odd == table[texts[0].encode()] + b"\xff\xfe"
    content = database.read_bytes()
    assert not any(old in content for old in table)


def test_a_database_that_is_held_is_left_alone(database: Path) -> None:
    """A writer holds it: nothing changes, and the error names it."""
    before = database.read_bytes()
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(LockedError):
        replace_tokens_in_database(database, {b"fernet:a": b"fernet:b"}, wait_seconds=0)

    other.close()
    assert database.read_bytes() == before
