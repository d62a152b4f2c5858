"""`drill` as people and scripts meet it."""

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyrage
import pytest

from archives import flip
from home_builder import BuiltHome
from json_schemas import problems
from program import Answer, call, run, taken
from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.permissions.scan import inspect
from sagewai_ops.snapshots import cards, catalog
from small_homes import everything_of, small
from step_counter import killed

pytestmark = pytest.mark.in_memory  # what these tests make durable is much


@pytest.fixture
def home(tmp_path: Path) -> BuiltHome:
    """A small home."""
    return small(tmp_path / "home")


@pytest.fixture
def archive(home: BuiltHome) -> Path:
    """A snapshot of it."""
    return taken(call("--home", home.root, "backup", "--json"))


def test_success_is_silent_in_a_pipe_and_leaves_nothing(home: BuiltHome, archive: Path) -> None:
    """As cron likes it; the home is as it was, the card knows."""
    before = everything_of(home.root)

    answer = run("--home", home.root, "drill")

    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert everything_of(home.root) == before
    assert sorted(os.listdir(archive.parent)) == [archive.name, f"{archive.name}.json"]
    assert cards.read_card(archive)["proved_restorable_at"]


@pytest.mark.usefixtures("archive")
def test_verbose_report_shows_the_checks_and_the_key(home: BuiltHome) -> None:
    """Each drill warns that the snapshot does not contain the key."""
    answer = call("--home", home.root, "drill", "-v")

    lines = answer.out.splitlines()
    assert lines[0].endswith(": proved restorable")
    assert [line.split()[0] for line in lines[1:]] == [
        "restored", "origin", "database", "upgrade", "secrets", "modes", "took",
    ]  # fmt: skip
    assert "NOT in the snapshot" in answer.out
    assert home.master_keys[0].decode() not in answer.out


def test_json_has_the_documented_shape(home: BuiltHome, archive: Path) -> None:
    """The latest is meant where none is named; ids and paths name others."""
    identifier = catalog.list_snapshots(archive.parent)[0].id
    for words in ((), ("latest",), (identifier[:12],), (archive,)):
        answer = call("--home", home.root, "drill", *words, "--json")

        assert answer.code == 0
        assert problems("drill", answer.result) == []
        assert answer.result["snapshot"] == identifier
        assert answer.result["recorded"] is True
        assert answer.result["upgrade"]["rehearsed"] == "copy"


def test_lists_show_the_proof_and_the_failure(home: BuiltHome, archive: Path) -> None:
    """In words and in JSON, in `list` and in `show`."""
    words = ("--home", home.root, "snapshots")
    assert call(*words, "list", "--json").result["snapshots"][0]["proved_restorable_at"] is None
    moment = call("--home", home.root, "drill", "--json").result["at"]

    listed = call(*words, "list")
    row = call(*words, "list", "--json").result["snapshots"][0]
    shown = call(*words, "show", "latest")
    assert moment in listed.out
    assert (row["proved_restorable_at"], row["drill"]["outcome"]) == (moment, "proved")
    assert f"proved    {moment}" in shown.out
    assert call(*words, "show", "latest", "--json").result["proved_restorable_at"] == moment

    flip(archive)
    assert call("--home", home.root, "drill").code == 16
    assert "drill failed" in call(*words, "list").out


def test_a_damaged_archive_exits_16_and_says_what_failed(home: BuiltHome, archive: Path) -> None:
    """Two lines, without the scratch directory's name, which no longer exists."""
    flip(archive)

    answer = call("--home", home.root, "drill")
    document = call("--home", home.root, "drill", "--json").document

    assert answer.code == 16
    assert answer.out == ""
    assert answer.err.startswith("sagewai-ops: error: drill: ")
    assert ".drill" not in answer.err
    assert (document["exit_code"], document["error"]["code"]) == (16, "damaged")


def test_a_lost_key_exits_12_and_a_key_file_repairs_it(
    home: BuiltHome, archive: Path, tmp_path: Path
) -> None:
    """On the machine where the home is gone, too."""
    key = tmp_path / "kept.key"
    shutil.copy(home.master_key, key)
    shutil.rmtree(home.root)
    words = ("--home", home.root, "drill", archive)

    lost = call(*words)
    without = call(*words, "--without-key", "--json")
    found = call(*words, "--key-file", key, "--json")

    assert lost.code == 12
    assert "--install-key FILE" in lost.err
    assert (without.code, without.result["outcome"]) == (4, "unproved")
    assert without.document["warnings"] == [
        f"not proved: no available key opens {without.result['keys']['total']} encrypted values"
    ]
    assert problems("drill", without.result) == []
    assert (found.code, found.result["outcome"]) == (0, "proved")


@pytest.mark.parametrize("method", ["identity", "passphrase"])
def test_encrypted_snapshots_open_as_for_a_restore(
    home: BuiltHome, tmp_path: Path, method: str
) -> None:
    """With an identity or a passphrase from a file; without, exit 12."""
    secret = tmp_path / "secret"
    if method == "identity":
        identity = pyrage.x25519.Identity.generate()
        secret.write_text(str(identity))
        sealing: tuple[str, ...] = ("--recipient", str(identity.to_public()), "--key", "sealed")
        opening = ("--identity", secret)
    else:
        secret.write_text("correct horse\n")
        sealing = ("--passphrase-file", str(secret))
        opening = ("--passphrase-file", secret)
    call("--home", home.root, "backup", *sealing)

    closed = call("--home", home.root, "drill")
    opened = call("--home", home.root, "drill", *opening, "--json")

    assert closed.code == 12
    assert (opened.code, opened.result["outcome"]) == (0, "proved")
    assert opened.result["key_in_snapshot"] is (method == "identity")


def test_findings_exit_4_and_are_shown_without_a_terminal(home: BuiltHome, archive: Path) -> None:
    """The home had them; they are no reason not to restore."""
    archive.unlink()
    with closing(sqlite3.connect(home.root / "db/sagewai.db")) as connection:
        connection.execute("DELETE FROM user_account")
        connection.commit()
    call("--home", home.root, "backup")

    answer = call("--home", home.root, "drill")

    assert answer.code == 4
    assert "finding   database:" in answer.out
    assert "proved restorable" in answer.out


def test_a_proof_that_cannot_be_written_down_exits_3(
    home: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that looks at cards must know."""
    monkeypatch.setattr("sagewai_ops.fs.atomic.replace", _only_for(cards.card_path(archive)))

    answer = call("--home", home.root, "drill")

    assert answer.code == 3
    assert "not recorded" in answer.err


def test_no_snapshot_exits_10(home: BuiltHome) -> None:
    """And names the command that creates one."""
    answer = call("--home", home.root, "drill")

    assert answer.code == 10
    assert "sagewai-ops backup" in answer.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_removes_the_scratch_directory(
    home: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """While it restores, and while it already cleans up; the card stays as it was."""
    card = cards.read_card(archive)
    for place in ("sagewai_ops.restore.restore.check_key", "sagewai_ops.operations.drill.inspect"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_a, **_o: os.kill(os.getpid(), number))

            answer = call("--home", home.root, "drill", "--json")

        assert answer.document["error"]["code"] == "interrupted"
        assert answer.code == code
        assert sorted(os.listdir(archive.parent)) == [archive.name, f"{archive.name}.json"]
        assert cards.read_card(archive) == card


def test_a_signal_after_the_record_is_too_late(
    home: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`interrupted` would mean that the metadata file was not changed."""
    update = cards.update_card

    def update_and_stop(*arguments: Any) -> None:
        update(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cards, "update_card", update_and_stop)

    answer = call("--home", home.root, "drill", "--json")

    assert answer.code == 0
    assert answer.result["recorded"]


def test_a_signal_while_it_cleans_up_does_not_stop_that(
    home: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a scratch directory would be one too many."""
    remove = beneath.remove_tree

    def remove_and_stop(path: Path, *arguments: object) -> None:
        monkeypatch.setattr(beneath, "remove_tree", remove)
        os.kill(os.getpid(), signal.SIGTERM)
        remove(path)

    monkeypatch.setattr(beneath, "remove_tree", remove_and_stop)

    answer = call("--home", home.root, "drill")

    assert answer.code == 143
    assert sorted(os.listdir(archive.parent)) == [archive.name, f"{archive.name}.json"]


def test_what_a_kill_left_is_swept_by_the_next_run(
    home: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock dies with the process."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "sagewai_ops.operations.drill.inspect",
            lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL),
        )
        assert killed(lambda: call("--home", home.root, "drill"))
    left = sorted({*os.listdir(archive.parent)} - {archive.name, f"{archive.name}.json"})

    answer = call("--home", home.root, "drill", "--json")

    assert len(left) == 1
    assert answer.result["swept"] == left
    assert sorted(os.listdir(archive.parent)) == [archive.name, f"{archive.name}.json"]


def test_two_drills_at_a_time_leave_each_other_alone(
    home: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither takes the other's directory for a dead one's."""
    answers: list[Answer] = []
    place = "sagewai_ops.operations.drill.inspect"

    def drill_too(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(place, inspect)
        answers.append(call("--home", home.root, "drill", "--json"))
        return inspect(*arguments, **options)

    monkeypatch.setattr(place, drill_too)

    answers.append(call("--home", home.root, "drill", "--json"))

    assert len(answers) == 2
    assert [answer.result["swept"] for answer in answers] == [[], []]
    assert cards.read_card(archive)["proved_restorable_at"]


def _only_for(card: Path) -> object:
    """Return an `atomic.replace` that may not write one file."""
    replace = atomic.replace

    def refuse(path: Path, content: bytes, **options: Any) -> None:
        if path == card:
            raise PermissionDeniedError(f"{path}: permission denied")
        replace(path, content, **options)

    return refuse


def test_a_tree_has_no_card(tmp_path: Path) -> None:
    """It is there, and a restore proves it; what a drill proved could be written nowhere."""
    built = small(tmp_path / "home")
    call("--home", built.root, "backup", "--format", "directory")

    answer = call("--home", built.root, "drill", "tree")

    assert answer.code == 2
    assert "a directory, which has no metadata file" in answer.err
    assert f"restore {built.root}.snapshots/tree" in answer.err


def test_dry_run_lists_the_steps_of_the_run(tmp_path: Path) -> None:
    """Those that the options and the snapshot ask for; what a run refuses at first is refused."""
    home = small(tmp_path / "home").root
    call("--home", home, "backup")
    (tmp_path / "key").write_bytes((home / "secrets/master.key").read_bytes())
    identity = pyrage.x25519.Identity.generate()
    words = ("--home", home, "drill", "--dry-run", "--json")

    plain = call(*words, "--install-key", tmp_path / "key").result["steps"]
    done = call("--home", home, "drill", "--json").result
    call("--home", home, "backup", "--recipient", identity.to_public())

    text = "\n".join(plain)
    assert done["snapshot"] in plain[0]
    assert f"{done['files']} files" in plain[0]
    assert f"open {done['keys']['total']} encrypted values with the key in {tmp_path}/key" in text
    assert [step.split()[0] for step in plain] == [
        *("restore", "check", "open", "check", "upgrade", "remove", "record")
    ]
    assert call(*words).code == 12  # encrypted, and no identity is named
