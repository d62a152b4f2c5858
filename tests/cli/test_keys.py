"""`keys` as people and scripts meet it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest

import home_writer
import real_homes
from home_builder import BuiltHome
from program import Answer, call, run
from sagewai_ops.database.sqlite import moment
from sagewai_ops.database.sqlite.read_transaction import (
    NeedsStagingError,
    ReadTransaction,
    open_read_transaction,
)
from sagewai_ops.home.paths import locate
from sagewai_ops.keys.candidates import fingerprint
from sagewai_ops.keys.escrow import ciphertext_of
from sagewai_ops.operations.check_keys import check_keys
from small_homes import everything_of, recode, small

OTHER = b"b3RoZXIgbWFzdGVyIGtleSBvdGhlciBtYXN0ZXIga2U="


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A home whose sealed values are under its own key, without an accident in it."""
    made = small(tmp_path / "home")
    content = json.loads(made.connections.read_text())
    for record in content["connections"]:
        if record["protocol"] == "mcp" and not record["protocol_data"]["credentials"][
            "TOKEN"
        ].startswith("fernet:"):
            record["last_test_ok"] = None
    made.connections.write_text(json.dumps(content))
    return made


def silent(answer: Answer, built: BuiltHome, *more: str) -> bool:
    """Return whether an answer discloses nothing: no key, no plaintext, no token."""
    text = answer.out + answer.err
    secrets = [
        *(key.decode() for key in (*built.master_keys, *built.data_keys.values())),
        *(each.plaintext for each in built.sealed),
        *(each.token for each in built.sealed),
        *(each.value for each in built.secrets),
        *more,
    ]
    return not any(secret in text for secret in secrets)


def test_a_home_in_order_exits_0_and_stays_as_it_is(built: BuiltHome) -> None:
    """Counts by place and key; notes are no findings."""
    before = everything_of(built.root)

    answer = run("--home", built.root, "keys", "check")

    assert answer.code == 0, answer.out
    assert f"sealed values: {len(built.sealed)}, of which {len(built.sealed)} open" in answer.out
    assert f"provider.data: 3 under {fingerprint(built.master_keys[0])}" in answer.out
    assert "note     config/admin-state.json /csrf_secret" in answer.out
    assert "  plaintext" not in answer.out
    assert silent(answer, built)
    assert everything_of(built.root) == before


@pytest.mark.parametrize("name", ["real-small", "legacy-flat", "legacy-both-differ"])
def test_homes_that_sagewai_itself_wrote_are_in_order(name: str, tmp_path: Path) -> None:
    """Everything opens, and what it left in the clear by itself is no finding."""
    home = real_homes.unpack(name, tmp_path)

    answer = call("--home", home, "keys", "check", "--json")

    assert answer.code == 0
    assert answer.result["sealed"]["opened"] == len(answer.result["values"]) >= 44
    assert not any(each["finding"] for each in answer.result["plaintext"])


def test_a_check_tells_how_far_it_is(built: BuiltHome) -> None:
    """In values, the last of them last; those that no key opens count too."""
    output: list[tuple[str, int, int]] = []

    found = check_keys(locate(built.root, {}), {}, progress=lambda *what: output.append(what))

    total = found.report.total
    assert total > 10
    assert output == [("keys", count, total) for count in range(1, total + 1)]


def test_json_lists_each_value_with_its_key(built: BuiltHome) -> None:
    """Place, pointer, key and whether a project's data key is between."""
    answer = call("--home", built.root, "keys", "check", "--json")

    values = answer.result["values"]
    assert len(values) == len(built.sealed)
    assert {each["fingerprint"] for each in values} == {fingerprint(built.master_keys[0])}
    assert {each["source"] for each in values} == {"secrets/master.key"}
    assert answer.result["lost_to_sagewai"] == 0
    assert silent(answer, built)


def test_a_secret_in_the_clear_where_sagewai_seals_is_a_finding(built: BuiltHome) -> None:
    """Named by place and pointer; the value is not shown."""
    content = json.loads(built.profiles.read_text())
    content["profiles"][0]["secrets"]["HAND"] = "hunter2-by-hand"
    built.profiles.write_text(json.dumps(content))

    answer = call("--home", built.root, "keys", "check")

    assert answer.code == 4
    assert "plaintext secrets/profiles.json /profiles/0/secrets/HAND" in answer.out
    assert silent(answer, built, "hunter2-by-hand")


def test_values_under_a_key_that_is_gone_are_findings(tmp_path: Path) -> None:
    """With the key named they open, and are still lost to Sagewai."""
    built = small(tmp_path / "home", keys=2)
    other = tmp_path / "other.key"
    other.write_bytes(built.master_keys[1])

    without = call("--home", built.root, "keys", "check", "--json")
    with_key = call("--home", built.root, "keys", "check", "--json", "--key-file", other)

    assert without.code == with_key.code == 4
    assert without.result["sealed"]["unopened"]
    assert with_key.result["sealed"]["unopened"] == []
    assert with_key.result["lost_to_sagewai"] > 0
    assert silent(without, built)
    assert silent(with_key, built)


def test_a_key_that_was_set_aside_is_tried(tmp_path: Path) -> None:
    """What `migrate-layout` leaves next to the key; of pipes and other content no word."""
    built = small(tmp_path / "home", keys=2)
    built.master_key.with_name("master.key.legacy-1").write_bytes(built.master_keys[1])
    built.master_key.with_name("master.key.legacy-2").write_bytes(b"no key")
    os.mkfifo(built.master_key.with_name("master.key.legacy-3"))

    answer = call("--home", built.root, "keys", "check", "--json")

    sources = {each["source"] for each in answer.result["values"]}
    assert sources == {"secrets/master.key", "secrets/master.key.legacy-1"}
    assert answer.result["sealed"]["unopened"] == []


def test_no_key_that_opens_any_exits_12(built: BuiltHome) -> None:
    """The commonest disaster, reported before the key is needed."""
    built.master_key.write_bytes(OTHER)

    answer = call("--home", built.root, "keys", "check")

    assert answer.code == 12
    assert answer.out == ""
    assert f"none of {len(built.sealed)} sealed values opens, keys tried: 1" in answer.err
    assert silent(answer, built, OTHER.decode())


def test_a_key_that_sagewai_would_replace_is_reported_first(built: BuiltHome) -> None:
    """It opens everything, and is a finding anyway."""
    built.master_key.chmod(0o640)

    answer = call("--home", built.root, "keys", "check")

    assert answer.code == 4
    assert answer.err.startswith(f"sagewai-ops: warning: {built.master_key}: mode 0640, accessible")
    assert "write a new key" in answer.err.splitlines()[0]


def test_it_is_reported_too_when_no_key_opens_any(built: BuiltHome) -> None:
    """Of two troubles, the one that makes the other worse comes first."""
    built.master_key.write_bytes(b"short")

    answer = call("--home", built.root, "keys", "check")

    assert answer.code == 12
    assert "5 characters, not 44" in answer.err.splitlines()[1]


def test_a_document_that_cannot_be_understood_is_a_finding(built: BuiltHome) -> None:
    """Secrets may hide in it; nothing of it is shown."""
    built.connections.write_text('{"password": "hunter2"')

    answer = call("--home", built.root, "keys", "check", "--json")

    assert answer.code == 4
    assert "not JSON" in answer.result["unread"]["config/connections.json"]
    assert silent(answer, built, "hunter2")


def test_a_home_without_anything_sealed_is_in_order(tmp_path: Path) -> None:
    """Also without a database and without a key."""
    (tmp_path / "home/config").mkdir(parents=True)

    answer = call("--home", tmp_path / "home", "keys", "check", "--json")

    assert answer.code == 0
    assert answer.result["sealed"]["total"] == 0
    assert answer.result["keys"] == []


def test_a_server_that_does_not_answer_is_named_as_not_checked(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that left half of it out does not pass for a whole one."""
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", "postgresql://u:pw-of-mine@127.0.0.1:1/s")

    answer = call("--home", built.root, "keys", "check", "--json")

    assert answer.code == 4
    assert "SAGEWAI_DATABASE_URL" in answer.result["unread"]
    assert silent(answer, built, "pw-of-mine")


def test_a_damaged_database_exits_16(built: BuiltHome) -> None:
    """It is no home in order."""
    built.database.write_bytes(b"not a database, but long enough to be taken for a page" * 100)
    for suffix in ("-wal", "-shm"):
        built.database.with_name(built.database.name + suffix).unlink(missing_ok=True)

    assert call("--home", built.root, "keys", "check").code == 16


def test_it_works_beside_a_live_writer(tmp_path: Path) -> None:
    """One moment of the database, while others commit."""
    built = small(tmp_path / "home")

    with home_writer.start(built.root):
        answer = call("--home", built.root, "keys", "check", "--json")

    assert answer.code in (0, 4)
    assert answer.result["sealed"]["unopened"] == []
    assert len(answer.result["values"]) >= len(built.sealed)


def test_columns_under_a_projects_data_key_open_through_it(tmp_path: Path) -> None:
    """The data key is under the master key, the value under the data key."""
    built = small(tmp_path / "home", rows=3)
    through = [each for each in built.sealed if each.key_name.startswith("project:")]

    answer = call("--home", built.root, "keys", "check", "--json")

    assert through
    output = [each for each in answer.result["values"] if each["through_project"]]
    assert len(output) == len(through)
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        connection.execute("UPDATE project SET data_key_ref = ?", ("plain",))
        connection.commit()
    broken = call("--home", built.root, "keys", "check", "--json")
    assert broken.code == 4
    assert len(broken.result["sealed"]["unopened"]) == len(through)
    assert any(each["place"] == "project.data_key_ref" for each in broken.result["plaintext"])


def test_the_fingerprint_is_one_line(built: BuiltHome) -> None:
    """Of the key that Sagewai would use; for scripts."""
    answer = run("--home", built.root, "keys", "fingerprint")

    assert answer.code == 0
    assert answer.out == fingerprint(built.master_keys[0]) + "\n"


def test_all_fingerprints_are_a_table(built: BuiltHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment goes before the file, as in Sagewai."""
    monkeypatch.setenv("SAGEWAI_MASTER_KEY", OTHER.decode())

    each = call("--home", built.root, "keys", "fingerprint")
    answer = call("--home", built.root, "keys", "fingerprint", "--all")

    assert each.out == fingerprint(OTHER) + "\n"
    rows = [line.split() for line in answer.out.splitlines()[1:]]
    assert rows == [
        ["SAGEWAI_MASTER_KEY", fingerprint(OTHER), "in", "use"],
        ["secrets/master.key", fingerprint(built.master_keys[0])],
    ]
    assert silent(answer, built, OTHER.decode())


def test_the_fingerprint_of_a_refused_key_needs_all(built: BuiltHome) -> None:
    """Sagewai would not use it; what would be replaced is still reported."""
    built.master_key.chmod(0o604)

    alone = call("--home", built.root, "keys", "fingerprint")
    answer = call("--home", built.root, "keys", "fingerprint", "--all")

    assert alone.code == 12
    assert "mode 0604" in alone.err
    assert answer.code == 0
    assert fingerprint(built.master_keys[0]) in answer.out
    assert "write a new key" in answer.err


def test_no_key_and_no_home_have_codes_of_their_own(tmp_path: Path) -> None:
    """12 and 10."""
    (tmp_path / "home/config").mkdir(parents=True)

    assert call("--home", tmp_path / "home", "keys", "fingerprint", "--all").code == 12
    assert call("--home", tmp_path / "none", "keys", "fingerprint").code == 10
    assert call("--home", tmp_path / "none", "keys", "check").code == 10


def test_a_database_that_cannot_be_opened_in_place_is_copied(
    built: BuiltHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a private directory, of which nothing is left, nor of one that a killed run made."""
    scratch = tmp_path / "scratch"
    (scratch / ".sagewai-ops-read-0dead000").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(scratch))

    refused = []

    @contextlib.contextmanager
    def refuse(path: Path, **options: float) -> Iterator[ReadTransaction]:
        if path == built.database:
            refused.append(path)
            raise NeedsStagingError(f"database {path}: may not be written")
        with open_read_transaction(path, **options) as transaction:
            yield transaction

    monkeypatch.setattr(moment, "open_read_transaction", refuse)

    answer = call("--home", built.root, "keys", "check", "--json")

    assert answer.code == 0
    assert len(answer.result["values"]) == len(built.sealed)
    assert refused
    assert list(scratch.iterdir()) == []


@pytest.fixture
def identity() -> pyrage.x25519.Identity:
    """Of whom the key is given to."""
    return pyrage.x25519.Identity.generate()


def test_escrow_writes_a_file_and_a_sheet_that_open(
    built: BuiltHome, tmp_path: Path, identity: pyrage.x25519.Identity
) -> None:
    """Silent without a terminal, like all that acts; the home stays as it is."""
    before = everything_of(built.root)
    file, sheet = tmp_path / "key.age", tmp_path / "sheet.txt"

    answer = run(
        *("--home", built.root, "keys", "escrow", "--recipient", identity.to_public()),
        *("--to", file, "--sheet", sheet),
        umask=0o000,
    )

    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert pyrage.decrypt(file.read_bytes(), [identity]) == built.master_keys[0]
    assert pyrage.decrypt(ciphertext_of(sheet.read_text()), [identity]) == built.master_keys[0]
    assert {path.stat().st_mode & 0o777 for path in (file, sheet)} == {0o600}
    assert silent(Answer(0, sheet.read_text(), file.read_bytes().decode("latin-1")), built)
    assert everything_of(built.root) == before


def test_escrow_tells_json_what_it_wrote(
    built: BuiltHome, tmp_path: Path, identity: pyrage.x25519.Identity
) -> None:
    """Recipients from a file too; a dry run checks all and writes nothing."""
    names = tmp_path / "team.txt"
    names.write_text(f"# the team\n{identity.to_public()}\n")
    words = ("--home", built.root, "keys", "escrow", "--json", "--recipients-file", names)
    file = tmp_path / "key.age"

    dry = call(*words, "--to", file, "--dry-run")
    assert not file.exists()
    answer = call(*words, "--to", file)

    assert dry.result == {**answer.result, "dry_run": True}
    assert answer.result["key_fingerprint"] == fingerprint(built.master_keys[0])
    assert answer.result["recipients"] == [str(identity.to_public())]
    assert (answer.result["to"], answer.result["sheet"]) == (str(file), None)
    assert silent(answer, built)
    assert call(*words, "--to", file).code == 15
    assert call(*words, "--to", file, "--force").code == 0


def test_escrow_takes_another_key_and_one_that_sagewai_refuses(
    built: BuiltHome, tmp_path: Path, identity: pyrage.x25519.Identity
) -> None:
    """A key in danger is the one to put aside; the danger is reported."""
    built.master_key.chmod(0o644)
    other = tmp_path / "other.key"
    other.write_bytes(OTHER)
    words = ("--home", built.root, "keys", "escrow", "--recipient", identity.to_public())

    own = call(*words, "--to", tmp_path / "own.age")
    named = call(*words, "--to", tmp_path / "named.age", "--key-file", other)

    assert own.code == named.code == 0
    assert "mode 0644" in own.err
    opened = [
        pyrage.decrypt((tmp_path / name).read_bytes(), [identity])
        for name in ("own.age", "named.age")
    ]
    assert opened == [built.master_keys[0], OTHER]


def test_escrow_refuses_what_makes_no_sense(
    built: BuiltHome, tmp_path: Path, identity: pyrage.x25519.Identity
) -> None:
    """Nothing to write, no user to write for, one file for both, a place in the home, no key."""
    words = ("--home", built.root, "keys", "escrow")
    to_us = ("--recipient", identity.to_public())
    file = tmp_path / "key.age"

    assert call(*words, *to_us).code == 2
    assert call(*words, "--to", file).code == 2
    assert call(*words, "--recipient", "age1nobody", "--to", file).code == 2
    assert call(*words, *to_us, "--to", file, "--sheet", file).code == 2
    assert call(*words, *to_us, "--to", built.master_key, "--force").code == 2
    assert call(*words, *to_us, "--to", tmp_path / "none/key.age").code == 10
    built.master_key.unlink()
    assert call(*words, *to_us, "--to", file).code == 12
    assert not file.exists()


def test_values_of_a_database_in_utf_16_are_found_opened_and_re_encrypted(built: BuiltHome) -> None:
    """SQLite keeps text in the encoding that a database began with."""
    before = call("--home", built.root, "keys", "check", "--json").result
    recode(built.database, "UTF-16le")

    found = call("--home", built.root, "keys", "check", "--json").result
    rotated = call("--home", built.root, "keys", "rotate", "--no-snapshot", "--yes", "--json")
    again = call("--home", built.root, "keys", "check", "--json").result

    assert found["sealed"] == before["sealed"]
    assert found["plaintext"] == before["plaintext"]
    assert rotated.code == 0, rotated
    assert again["sealed"]["opened"] == before["sealed"]["total"]
    assert again["key_fingerprint"] != before["key_fingerprint"]
    assert [each["where"] for each in again["values"]] == [
        each["where"] for each in found["values"]
    ]
