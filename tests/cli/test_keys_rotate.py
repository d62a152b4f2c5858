"""`keys rotate` as people and scripts meet it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyrage
import pytest

import home_writer
from home_builder import BuiltHome
from json_schemas import problems
from opened_values import CLOSED, opened
from other_process import running
from program import COMMAND, Answer, call, run
from pseudo_terminal import watched
from sagewai_ops.database.sqlite import in_use
from sagewai_ops.fs import beneath
from sagewai_ops.home.paths import locate
from sagewai_ops.keys.candidates import fingerprint
from sagewai_ops.operations import rotate_keys
from sagewai_ops.operations.rotate_keys import Options, rotate
from sagewai_ops.swap.pending import pending_operations
from small_homes import everything_of, small
from step_counter import killed
from unprivileged import reachable_directory, unprivileged

OTHER = b"b3RoZXIgbWFzdGVyIGtleSBvdGhlciBtYXN0ZXIga2U="
NO_SNAPSHOT = ("--no-snapshot", "--yes")


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A home with its own key."""
    return small(tmp_path / "home")


@pytest.fixture
def broken(built: BuiltHome) -> BuiltHome:
    """A home whose rotation was killed between the first document and the second."""

    def die() -> None:
        with pytest.MonkeyPatch.context() as patch:
            rename = os.rename

            def renamed(old: Path, new: Path) -> None:
                if Path(new).name == "connections.json":
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(old, new)

            patch.setattr(beneath, "rename", renamed)
            patch.setattr(in_use, "find_users", lambda *_databases, **_options: ())
            rotate(locate(built.root, {}), {}, Options())

    assert killed(die)
    return built


def words(built: BuiltHome, *more: object) -> tuple[object, ...]:
    """Return the command."""
    return ("--home", built.root, "keys", "rotate", *more)


def test_a_signal_after_the_rotation_is_too_late(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`interrupted` would mean that the home has the old key."""
    report = rotate_keys._report

    def stop_and_report(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return report(*arguments)

    monkeypatch.setattr(rotate_keys, "_report", stop_and_report)

    answer = call(*words(built, *NO_SNAPSHOT, "--json"))

    assert answer.code == 0
    assert built.master_key.read_bytes() not in built.master_keys


def silent(answer: Answer, built: BuiltHome, *more: bytes) -> bool:
    """Return whether an answer discloses nothing: no key, no value, no token."""
    output = answer.out + answer.err
    keys = [*built.master_keys, *built.data_keys.values(), built.master_key.read_bytes(), *more]
    secrets = [key.decode() for key in keys]
    secrets += [text for each in built.sealed for text in (each.plaintext, each.token)]
    return not any(secret in output for secret in secrets)


def test_a_rotation_with_its_snapshot(built: BuiltHome, tmp_path: Path) -> None:
    """Silent like all that acts; the snapshot opens to the old home, the home with the new key."""
    identity = pyrage.x25519.Identity.generate()
    directory = tmp_path / "snapshots"

    answer = run(*words(built, "--recipient", identity.to_public(), "--snapshots", directory))

    assert (answer.code, answer.out, answer.err) == (0, "", "")
    new = built.master_key.read_bytes()
    assert new not in built.master_keys
    assert CLOSED not in opened(built.root, new, built.data_keys.values())
    assert call("--home", built.root, "keys", "check", "--json").result["lost_to_sagewai"] == 0
    (tmp_path / "id").write_text(str(identity))
    restored = call(
        *("--home", built.root, "restore", "latest", "--to", tmp_path / "old", "--json"),
        *("--identity", tmp_path / "id"),
    )
    assert restored.code == 10  # the default directory has none: it went to the named one
    archive = next(directory.glob("*.age"))
    words_of_restore = ("restore", archive, "--to", tmp_path / "old", "--identity", tmp_path / "id")
    assert call("--home", built.root, *words_of_restore).code == 0
    assert (tmp_path / "old/secrets/master.key").read_bytes() == built.master_keys[0]


def test_json_tells_what_was_done(built: BuiltHome, tmp_path: Path) -> None:
    """And shows no key; recipients may come from a file."""
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "team").write_text(f"{identity.to_public()}\n")

    answer = call(*words(built, "--json", "--recipients-file", tmp_path / "team"))

    assert answer.code == 0
    result = answer.result
    assert problems("keys-rotate", result) == []
    assert result["old_key"]["fingerprint"] == fingerprint(built.master_keys[0])
    assert result["new_key"]["fingerprint"] == fingerprint(built.master_key.read_bytes())
    assert sum(result["resealed"].values()) + result["through_projects"] == len(built.sealed)
    assert result["effective"]
    assert Path(result["snapshot"]).is_file()
    assert silent(answer, built)


def test_text_is_printed_on_request(built: BuiltHome) -> None:
    """Counts by place and where the keys are."""
    answer = call(*words(built, "-v", *NO_SNAPSHOT))

    assert answer.code == 0
    assert f"from {fingerprint(built.master_keys[0])} to " in answer.out
    assert "  secrets/profiles.json: " in answer.out
    assert f"  old key: {built.master_key}.legacy-" in answer.out
    assert silent(answer, built)


def test_a_dry_run_counts_and_changes_nothing(built: BuiltHome, tmp_path: Path) -> None:
    """It needs no recipient, and names no key that no user will ever have."""
    (tmp_path / "new.key").write_bytes(OTHER)
    before = everything_of(built.root)

    people = call(*words(built, "--dry-run"))
    scripts = call(*words(built, "--dry-run", "--json"))
    named = call(*words(built, "--dry-run", "--json", "--new-key-file", tmp_path / "new.key"))

    assert people.code == scripts.code == named.code == 0
    assert "values would be re-encrypted, nothing was changed" in people.out
    assert scripts.result["new_key"] is None
    assert named.result["new_key"]["fingerprint"] == fingerprint(OTHER)
    assert problems("keys-rotate", scripts.result) == problems("keys-rotate", named.result) == []
    assert everything_of(built.root) == before
    assert all(silent(each, built, OTHER) for each in (people, scripts, named))


def test_without_recipients_it_is_refused(built: BuiltHome, tmp_path: Path) -> None:
    """The old key would be nowhere; to keep it as a file must be requested and confirmed."""
    before = everything_of(built.root)
    identity = pyrage.x25519.Identity.generate()

    bare = call(*words(built))
    unconfirmed = call(*words(built, "--no-snapshot"))
    both = call(*words(built, *NO_SNAPSHOT, "--recipient", identity.to_public()))

    assert [each.code for each in (bare, unconfirmed, both)] == [2, 2, 2]
    assert "--no-snapshot --yes" in bare.err
    assert "confirmation required" in unconfirmed.err
    assert everything_of(built.root) == before


def test_a_new_key_that_others_can_read_is_reported(built: BuiltHome, tmp_path: Path) -> None:
    """The copy in the home is private; the file that it came from is not."""
    (tmp_path / "new.key").write_bytes(OTHER)
    (tmp_path / "new.key").chmod(0o644)

    answer = call(*words(built, *NO_SNAPSHOT, "--new-key-file", tmp_path / "new.key"))

    assert answer.code == 0
    assert "mode 0644, other users can read or replace the new key" in answer.err
    assert silent(answer, built, OTHER)


def test_a_person_can_refuse(built: BuiltHome) -> None:
    """Asked once, on the terminal."""
    before = built.master_key.read_bytes()

    code, shown = watched(
        [*COMMAND, "--home", str(built.root), "keys", "rotate", "--no-snapshot"],
        dict(os.environ),
        answers=[("[y/N]", "n")],
    )

    assert code == 2
    assert "without a snapshot?" in shown
    assert built.master_key.read_bytes() == before


def test_a_key_of_the_environment_ends_incomplete(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3, so that no script starts Sagewai with the old key; the next steps are always printed."""
    built.master_key.unlink()
    monkeypatch.setenv("SAGEWAI_MASTER_KEY", built.master_keys[0].decode())

    answer = call(*words(built, *NO_SNAPSHOT))
    checked = call("--home", built.root, "keys", "check", "--json")

    assert answer.code == 3
    assert f"set SAGEWAI_MASTER_KEY to the content of {built.master_key}" in answer.err
    assert silent(answer, built)
    assert checked.code == 4
    assert checked.result["lost_to_sagewai"] == len(built.sealed)
    monkeypatch.delenv("SAGEWAI_MASTER_KEY")
    assert call("--home", built.root, "keys", "check", "--json").result["lost_to_sagewai"] == 0


def test_values_that_no_key_opens_are_refused_or_named(tmp_path: Path) -> None:
    """12; with the option 3, each by its place."""
    built = small(tmp_path / "home", keys=2)

    refused = call(*words(built, *NO_SNAPSHOT))
    left = call(*words(built, *NO_SNAPSHOT, "--leave-unopened", "--json"))

    assert refused.code == 12
    assert "sealed values not opened by any available key" in refused.err
    assert left.code == 3
    assert left.result["left"]
    assert problems("keys-rotate", left.result) == []
    assert all("unchanged" in line for line in left.document["warnings"][:5])
    assert silent(left, built)


def test_a_home_in_use_is_refused(built: BuiltHome) -> None:
    """15, by the name of the process; it would go on to seal with the old key."""
    with home_writer.start(built.root):
        answer = call(*words(built, *NO_SNAPSHOT))

    assert answer.code == 15
    assert "in use by" in answer.err
    assert built.master_key.read_bytes() == built.master_keys[0]


def test_two_at_once_are_one_and_a_refusal(built: BuiltHome) -> None:
    """11 while another run holds the home."""
    hold = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "pause()\n"
    )
    with running(hold, str(built.root)):
        answer = call(*words(built, *NO_SNAPSHOT, "--wait", "0"))

    assert answer.code == 11
    assert built.master_key.read_bytes() == built.master_keys[0]
    assert call(*words(built, *NO_SNAPSHOT)).code == 0


def test_a_read_only_home_is_refused() -> None:
    """14, and nothing is left behind."""
    with reachable_directory() as directory, unprivileged():
        built = small(directory / "home", journal="none")
        for path in (built.root, *(path for path in built.root.rglob("*") if path.is_dir())):
            path.chmod(0o500)

        answer = call(*words(built, *NO_SNAPSHOT))

        assert answer.code == 14
        assert "nothing was changed" in answer.err


def test_until_it_is_recovered_every_other_command_refuses(broken: BuiltHome) -> None:
    """11, with the command that helps; status reports it too."""
    identity = pyrage.x25519.Identity.generate()
    commands = (
        ("backup",),
        ("init",),
        ("migrate-layout",),
        ("verify-perms", "--fix"),
        ("db", "upgrade"),
        ("keys", "check"),
        ("keys", "escrow", "--recipient", identity.to_public(), "--to", broken.root / "../k.age"),
        ("keys", "rotate", *NO_SNAPSHOT),
        ("export-to-postgres", "--plan", "postgresql://user@127.0.0.1:1/none"),
    )

    for command in commands:
        answer = call("--home", broken.root, *command)
        assert answer.code == 11, command
        assert f"sagewai-ops --home {broken.root} recover" in answer.err

    status = call("--home", broken.root, "status", "--json")
    assert status.result["interrupted_rotation"]
    assert any("sagewai-ops recover" in line for line in status.document["warnings"])


def test_a_recovery_finishes_and_says_so(broken: BuiltHome) -> None:
    """Once; then there is nothing to do. Every other command runs again."""
    first = run(*words(broken, "--recover", "--json"))
    again = run(*words(broken, "--recover", "-v"))

    assert (first.code, again.code) == (0, 0)
    assert problems("keys-rotate", first.result) == []
    assert first.result["recovery"] == "finished"
    assert first.result["key_fingerprint"] == fingerprint(broken.master_key.read_bytes())
    assert "nothing to do" in again.out
    assert silent(first, broken)
    new = broken.master_key.read_bytes()
    assert CLOSED not in opened(broken.root, new, broken.data_keys.values())
    assert call("--home", broken.root, "backup").code == 0
    assert not call("--home", broken.root, "status", "--json").result["interrupted_rotation"]


def test_a_recovery_waits_for_who_uses_the_home(broken: BuiltHome) -> None:
    """15; the journal stays for the next try."""
    with home_writer.start(broken.root):
        answer = call(*words(broken, "--recover"))

    assert answer.code == 15
    assert pending_operations(broken.root)


def test_a_home_that_moved_is_recovered(broken: BuiltHome, tmp_path: Path) -> None:
    """Paths in the journal are relative: a volume comes up at another place."""
    shutil.move(broken.root, tmp_path / "moved")

    answer = call("--home", tmp_path / "moved", "keys", "rotate", "--recover", "--json")

    assert answer.result["recovery"] == "finished"
    new = (tmp_path / "moved/secrets/master.key").read_bytes()
    assert CLOSED not in opened(tmp_path / "moved", new, broken.data_keys.values())


def test_the_other_answers_of_keys_follow_their_schemas(built: BuiltHome, tmp_path: Path) -> None:
    """`fingerprint`, `check` and `escrow`."""
    identity = pyrage.x25519.Identity.generate()
    answers = {
        "keys-fingerprint": call("--home", built.root, "keys", "fingerprint", "--json"),
        "keys-check": call("--home", built.root, "keys", "check", "--json"),
        "keys-escrow": call(
            *("--home", built.root, "keys", "escrow", "--json", "--to", tmp_path / "k.age"),
            *("--recipient", identity.to_public()),
        ),
    }

    assert [problems(name, each.result) for name, each in answers.items()] == [[], [], []]
