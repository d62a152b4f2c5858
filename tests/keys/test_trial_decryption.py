"""Proving which key opens which sealed value."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from home_builder import BuiltHome, build_home
from home_builder.sealing import token as seal
from sagewai_ops.database.sqlite.online_copy import copy_database
from sagewai_ops.errors import DamagedError
from sagewai_ops.home.paths import locate
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.keys import candidates
from sagewai_ops.keys.candidates import Candidate, find_candidates, fingerprint
from sagewai_ops.keys.locations import Role, SealedValue
from sagewai_ops.keys.trial_decryption import (
    NO_DATA_KEY,
    NO_KEY,
    NOT_A_KEY,
    NOT_SEALED,
    OpenedBy,
    SealedReport,
    Unopened,
    open_all,
    try_keys,
)

MASTER, OTHER, DATA_KEY = (base64.urlsafe_b64encode(bytes([seed] * 32)) for seed in (1, 2, 3))
VECTOR = bytes(range(16))


def candidate(key: bytes, source: str = "master.key") -> Candidate:
    """Make a candidate of a key."""
    return candidates.key_from_bytes(source, key)


def sealed(
    plaintext: bytes = b"secret",
    key: bytes = MASTER,
    *,
    where: str = "/x",
    project: str | None = None,
    role: Role = Role.VALUE,
) -> SealedValue:
    """Seal a value by the specification, without the library."""
    return SealedValue("place", where, "fernet:" + seal(key, plaintext, VECTOR), project, role)


def data_key(project: str, key: bytes = MASTER, plaintext: bytes = DATA_KEY) -> SealedValue:
    """Wrap a project's data key."""
    return sealed(plaintext, key, where=project, role=Role.DATA_KEY)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltHome:
    """A home with values under three master keys, of which it holds the first."""
    root = tmp_path_factory.mktemp("built") / "home"
    return build_home(root, keys=3, rows=6, lookalikes=True, artifacts=False)


@pytest.fixture(scope="module")
def frozen(built: BuiltHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of its database."""
    return copy_database(built.database, tmp_path_factory.mktemp("frozen") / "copy.db").path


def test_every_planted_value_opens_with_its_key(built: BuiltHome, frozen: Path) -> None:
    """All but the user's own words open, and each key opens what was planted under it."""
    home = locate(built.root, {})
    keys = tuple(candidate(key, f"key-{number}") for number, key in enumerate(built.master_keys))

    report = try_keys(read_documents(home), frozen, keys)

    directly = {
        fingerprint(key): sum(value.key == key for value in built.sealed)
        for key in built.master_keys
    }
    assert report.opened == len(built.sealed)
    assert {each.fingerprint: each.values for each in report.by_key} == directly
    assert sum(each.through_projects for each in report.by_key) == sum(
        value.key_name.startswith("project:") for value in built.sealed
    )
    assert report.unopened == (
        Unopened("config/admin-state.json", "/providers/0/config/password", NOT_SEALED),
    )


def test_values_of_missing_keys_are_named(built: BuiltHome, frozen: Path) -> None:
    """With the home's own key alone, the others' values stay closed, their projects' too."""
    home = locate(built.root, {})

    report = try_keys(read_documents(home), frozen, find_candidates(home, {}))

    closed = {value.token for value in built.sealed if value.key_name in ("master-1", "master-2")}
    direct = [each for each in report.unopened if each.reason == NO_KEY]
    assert len(direct) == len(closed)
    assert {each.reason for each in report.unopened} == {NO_KEY, NO_DATA_KEY, NOT_SEALED}
    assert report.opened + len(report.unopened) == report.total == len(built.sealed) + 1
    assert [each.source for each in report.by_key] == ["secrets/master.key"]


def test_without_any_key_all_stay_closed() -> None:
    """What is sealed is counted anyway."""
    report = open_all([sealed(), data_key("p"), sealed(key=DATA_KEY, project="p")], ())

    assert (report.total, report.opened, report.by_key) == (3, 0, ())
    assert [each.reason for each in report.unopened] == [NO_KEY, NO_KEY, NO_DATA_KEY]


def test_nothing_sealed_is_nothing_wrong() -> None:
    """An empty home needs no key."""
    assert open_all([], [candidate(MASTER)]) == SealedReport()


def test_project_values_open_through_their_data_key() -> None:
    """Wherever the data key comes in the order of values."""
    report = open_all(
        [sealed(key=DATA_KEY, project="p"), data_key("p"), sealed()],
        [candidate(OTHER, "environment"), candidate(MASTER)],
    )

    assert report.by_key == (OpenedBy("master.key", fingerprint(MASTER), 2, 1),)


def test_project_value_under_the_master_key_opens_too() -> None:
    """A row that was moved into a project keeps its old key until it is written again."""
    report = open_all([data_key("p"), sealed(project="p")], [candidate(MASTER)])

    assert report.unopened == ()


def test_project_value_under_no_known_key_is_not_blamed_on_its_data_key() -> None:
    """If the data key opens, something else is wrong with the value."""
    report = open_all([data_key("p"), sealed(key=OTHER, project="p")], [candidate(MASTER)])

    assert [each.reason for each in report.unopened] == [NO_KEY]


@pytest.mark.parametrize("plaintext", [b"", b"words", b"!" * 44, b"\xff" * 44])
def test_value_that_is_no_data_key_is_reported(plaintext: bytes) -> None:
    """It opens, but nothing can be opened with it."""
    report = open_all(
        [data_key("p", plaintext=plaintext), sealed(key=DATA_KEY, project="p")],
        [candidate(MASTER)],
    )

    assert [each.reason for each in report.unopened] == [NOT_A_KEY, NO_DATA_KEY]


@pytest.mark.parametrize(
    "text",
    ["", "my own words", "é", "gAAAA", "A" * 100, seal(MASTER, b"x", VECTOR)[:-1], "gAAAAAAA" * 9],
)
def test_text_that_only_begins_like_a_sealed_value_is_distinguished(text: str) -> None:
    """Other text, or a value that was cut, are no matter of keys."""
    report = open_all([SealedValue("place", "/x", f"fernet:{text}")], [candidate(MASTER)])

    assert [each.reason for each in report.unopened] == [NOT_SEALED]


def test_stray_counts_only_if_it_opens() -> None:
    """Where Sagewai seals nothing, a prefix may be chance; a value that opens is not."""
    strays = [
        sealed(role=Role.STRAY, where="/sealed"),
        sealed(role=Role.STRAY, key=OTHER, where="/foreign"),
        SealedValue("place", "/words", "fernet:words", role=Role.STRAY),
    ]

    report = open_all(strays, [candidate(MASTER)])

    assert (report.total, report.opened, report.unopened) == (1, 1, ())


def test_one_key_in_two_places_counts_for_the_first() -> None:
    """The environment and the file often hold the same."""
    report = open_all([sealed()], [candidate(MASTER, "environment"), candidate(MASTER)])

    assert report.by_key == (OpenedBy("environment", fingerprint(MASTER), 1, 0),)


def test_candidate_without_a_key_is_passed_over() -> None:
    """A file that holds no key opens nothing and breaks nothing."""
    report = open_all([sealed()], [candidate(b"no key", "environment"), candidate(MASTER)])

    assert [each.source for each in report.by_key] == ["master.key"]


def test_best_candidate_opens_the_most() -> None:
    """It is the one to install; the first source of it."""
    keys = [candidate(MASTER, "a"), candidate(OTHER, "b"), candidate(OTHER, "c")]
    values = [sealed(), sealed(key=OTHER), sealed(key=OTHER)]

    assert open_all(values, keys).best(keys) == keys[1]
    assert open_all(values, []).best(keys) is None
    assert SealedReport().best(keys) is None


def test_token_signed_but_not_encrypted_under_a_key_does_not_count_as_opened() -> None:
    """A matching signature is not enough: every value is decrypted."""
    raw = base64.urlsafe_b64decode(MASTER)
    short = base64.urlsafe_b64encode(raw[:16] + bytes(16))

    report = open_all([sealed(bytes(15))], [candidate(short)])

    assert [each.reason for each in report.unopened] == [NO_KEY]


@settings(max_examples=60)
@given(
    plaintext=st.binary(max_size=200),
    key=st.binary(min_size=32, max_size=32).filter(lambda key: key != bytes([1] * 32)),
)
def test_what_is_sealed_opens(plaintext: bytes, key: bytes) -> None:
    """Any plaintext under any key opens with it and with no other."""
    encoded = base64.urlsafe_b64encode(key)
    value = sealed(plaintext, encoded)

    assert open_all([value], [candidate(encoded)]).unopened == ()
    assert open_all([value], [candidate(MASTER)]).opened == 0


@settings(max_examples=100)
@given(data=st.data())
def test_any_flipped_bit_keeps_a_value_closed(data: st.DataObject) -> None:
    """Damage never passes for an opened value."""
    token = bytearray(base64.urlsafe_b64decode(seal(MASTER, b"a secret of some length", VECTOR)))
    token[data.draw(st.integers(0, len(token) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    text = "fernet:" + base64.urlsafe_b64encode(token).decode()

    report = open_all([SealedValue("place", "/x", text)], [candidate(MASTER)])

    assert report.opened == 0


def test_report_tells_no_secret(built: BuiltHome, frozen: Path) -> None:
    """Neither keys, nor tokens, nor what they open to, are in the report or its JSON."""
    home = locate(built.root, {})
    keys = tuple(
        candidate(key, f"key-{number}") for number, key in enumerate(built.master_keys[:2])
    )

    report = try_keys(read_documents(home), frozen, keys)
    output = repr(report) + json.dumps(asdict(report))

    for value in built.sealed:
        assert value.plaintext not in output
        assert value.token[7:] not in output
    for key in (*built.master_keys, *built.data_keys.values()):
        assert key.decode() not in output


def test_json_of_the_report_is_complete() -> None:
    """What a manifest records can be read back by name."""
    report = open_all([sealed(), sealed(key=OTHER, where="/y")], [candidate(MASTER)])

    assert json.loads(json.dumps(asdict(report))) == {
        "total": 2,
        "opened": 1,
        "by_key": [
            {
                "source": "master.key",
                "fingerprint": fingerprint(MASTER),
                "values": 1,
                "through_projects": 0,
            }
        ],
        "unopened": [{"place": "place", "where": "/y", "reason": NO_KEY}],
    }


def test_home_without_a_database_is_examined_by_its_documents(built: BuiltHome) -> None:
    """A restore of the configuration alone has none."""
    documents = read_documents(locate(built.root, {}))

    report = try_keys(documents, None, ())

    assert 0 < report.total < len(built.sealed)


def test_damaged_database_is_damage(tmp_path: Path) -> None:
    """A file that is no database cannot be searched."""
    (tmp_path / "copy.db").write_bytes(b"no database" * 100)

    with pytest.raises(DamagedError):
        try_keys({}, tmp_path / "copy.db", ())


def test_examined_database_is_left_alone(frozen: Path) -> None:
    """No -wal or -shm comes to be next to it."""
    content = frozen.read_bytes()

    try_keys({}, frozen, ())

    assert frozen.read_bytes() == content
    assert [path.name for path in frozen.parent.iterdir()] == [frozen.name]
