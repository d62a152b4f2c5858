"""A home gets another key: every place, wherever the key comes from, and nothing is lost."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import real_homes
from home_builder import BuiltHome, sealing
from home_builder.recipe import Layout
from memory_directory import memory_directory
from opened_values import CLOSED, opened
from sagewai_ops.archive.age import Decryption, Encryption, temporary_identity
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup import create
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.database.sqlite import in_use
from sagewai_ops.errors import (
    DifferenceError,
    KeyMissingError,
    OpsError,
    PermissionDeniedError,
    UsageError,
)
from sagewai_ops.fs.trust import take_reports
from sagewai_ops.home import state_files
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.keys import rotation, rotation_journal
from sagewai_ops.keys.candidates import fingerprint
from sagewai_ops.operations import rotate_keys as rotating
from sagewai_ops.operations.check_keys import check_keys
from sagewai_ops.operations.rotate_keys import Options, RotationResult, rotate
from sagewai_ops.swap.pending import pending_operations
from small_homes import MARK, everything_of, small
from unprivileged import NO_USER, reachable_directory, unprivileged

OTHER = b"b3RoZXIgbWFzdGVyIGtleSBvdGhlciBtYXN0ZXIga2U="


@pytest.fixture(autouse=True)
def _unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the search for processes, which the tests of the command make."""
    monkeypatch.setattr(in_use, "find_users", lambda *_databases, **_options: ())


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A home with its own key."""
    return small(tmp_path / "home")


def turn(
    root: Path, environment: dict[str, str] | None = None, **options: object
) -> RotationResult:
    """Rotate without a snapshot unless it is asked for."""
    named = environment or {}
    return rotate(locate(root, named), named, Options(**options))  # type: ignore[arg-type]


def new_fingerprint(done: RotationResult) -> str:
    """Return the fingerprint of the new key of a rotation that was made."""
    assert done.new_key
    return done.new_key.fingerprint


def test_a_rotation_tells_how_far_it_is(built: BuiltHome) -> None:
    """What is sealed again and what is opened afterwards, in values."""
    output: dict[str, list[int]] = {}

    home = locate(built.root, {})
    rotate(home, {}, Options(), progress=lambda stage, done, total: output.setdefault(
        stage, [total]).append(done))  # fmt: skip

    assert set(output) == {"re-encrypt", "check keys"}
    for total, *done in output.values():
        assert done == [*range(1, total + 1)]


def values_of(built: BuiltHome, key: bytes) -> list[str]:
    """Open everything in a home with one key."""
    return opened(built.root, key, built.data_keys.values())


def contents_of(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Return modes and contents; a look at a database leaves its directory's time another."""
    return {path: (mode, content) for path, (mode, _time, content) in everything_of(root).items()}


@settings(max_examples=8)
@drawn(
    st.integers(1, 99), st.integers(1, 3), st.sampled_from(["canonical", "flat"]), st.integers(0, 1)
)
def test_rotate_then_open_equals_before(
    seed: int, keys: int, layout: Layout, leftovers: int
) -> None:
    """Whatever the home, its layout, and however many keys its values are under."""
    with memory_directory() as directory:
        built = small(
            directory / "home",
            seed=seed,
            keys=keys,
            layout=layout,
            leftovers=bool(leftovers),
            rows=2,
        )
        (built.root / "secrets").mkdir(exist_ok=True)
        for number, key in enumerate(built.master_keys[1:]):
            (built.root / f"secrets/master.key.legacy-{number}").write_bytes(key)
        before = sorted(each.plaintext for each in built.sealed)
        closed = sum(text == CLOSED for text in opened(built.root, OTHER, built.data_keys.values()))

        done = turn(built.root)

        after = values_of(built, built.master_key.read_bytes())
        assert not [text for text in before if text not in after]
        assert after.count(CLOSED) <= closed - sum(done.resealed.values())
        assert done.effective
        assert done.old_key.fingerprint != new_fingerprint(done)
        assert set(done.resealed_by_key) == {fingerprint(key) for key in built.master_keys}
        found = check_keys(locate(built.root, {}), {})
        assert not found.lost_to_sagewai
        assert not found.report.unopened


def test_every_place_is_re_encrypted(tmp_path: Path) -> None:
    """Documents, columns, wrapped data keys, old copies; values under data keys stay."""
    built = small(tmp_path / "home", rows=3, leftovers=True)
    shutil.copy(built.profiles, f"{built.profiles}.legacy-20260101T000000Z")
    shutil.copy(built.admin_state, f"{built.admin_state}.bak-v2-20260101T000000_000000-abcdef")
    through = [each for each in built.sealed if each.key_name.startswith("project:")]

    done = turn(built.root)

    assert done.resealed.keys() == {
        "admin_resources.data",
        "config/.connections.q7w8e9r0.tmp",
        "config/admin-state.json",
        "config/admin-state.json.bak-v2-20260101T000000_000000-abcdef",
        "config/connections.json",
        "config/tmpab12cd_x.tmp",
        "connection.credentials_backend",
        "connection.protocol_data",
        "project.data_key_ref",
        "provider.data",
        "secrets/.profiles.z1x2c3v4.tmp",
        "secrets/profiles.json",
        "secrets/profiles.json.legacy-20260101T000000Z",
    }
    assert done.resealed["project.data_key_ref"] == 3
    assert done.through_projects == len(through) > 0
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        stored = connection.execute("SELECT group_concat(data) FROM provider").fetchone()[0]
    assert all(each.token in stored for each in through if each.place == "provider.data")


def test_modes_and_the_rest_of_the_home_stay(built: BuiltHome) -> None:
    """Only files with tokens change, the key is private whatever it was."""
    built.profiles.chmod(0o640)
    built.master_key.chmod(0o640)
    before = everything_of(built.root)

    turn(built.root)

    after = everything_of(built.root)
    changed = {path for path in before if before[path] != after.get(path)}
    files = {path for path in changed if (built.root / path).is_file()}
    assert {path for path in files if not path.startswith("db/")} == {
        "config/admin-state.json",
        "config/connections.json",
        "secrets/master.key",
        "secrets/profiles.json",
    }
    assert after["secrets/profiles.json"][0] & 0o777 == 0o640
    assert after["secrets/master.key"][0] & 0o777 == 0o600


def test_without_a_snapshot_the_old_key_is_kept_beside(built: BuiltHome) -> None:
    """Older snapshots need it; Sagewai never looks at it."""
    done = turn(built.root)

    assert done.kept_as is not None
    assert done.kept_as.read_bytes() == built.master_keys[0]
    assert done.kept_as.stat().st_mode & 0o777 == 0o600
    assert done.installed == built.master_key


def test_the_snapshot_has_the_old_key_and_the_old_values(built: BuiltHome, tmp_path: Path) -> None:
    """Encrypted, and taken before anything changed; then nothing is kept next to."""
    recipient, identity = temporary_identity()
    state = built.admin_state.read_bytes()
    sealed = BackupOptions(encryption=Encryption(recipients=(recipient,)), custody="sealed")

    done = turn(built.root, snapshot=sealed, snapshots=tmp_path / "snapshots")

    assert done.snapshot is not None
    assert done.kept_as is None
    assert not [*built.master_key.parent.glob("master.key.*")]
    with open_archive(done.snapshot, Decryption(identities=(identity,))) as reader:
        contents = {
            entry.path: b"".join(chunks)
            for entry, chunks in reader.members()
            if entry.path in ("secrets/master.key", "config/admin-state.json")
        }
    assert contents["secrets/master.key"] == built.master_keys[0]
    assert contents["config/admin-state.json"] == state


def test_a_key_of_ones_own_is_taken(built: BuiltHome, tmp_path: Path) -> None:
    """The file stays where it is, and the home has the key as Sagewai wants it."""
    (tmp_path / "new.key").write_bytes(OTHER + b"\n")

    done = turn(built.root, new_key_file=tmp_path / "new.key")

    assert new_fingerprint(done) == fingerprint(OTHER)
    assert built.master_key.read_bytes() == OTHER
    assert CLOSED not in values_of(built, OTHER)


def test_the_same_key_again_is_refused(built: BuiltHome, tmp_path: Path) -> None:
    """Nothing would be gained, and nothing is touched; nor by a file that is no key."""
    (tmp_path / "new.key").write_bytes(built.master_keys[0])
    (tmp_path / "none.key").write_bytes(b"no key")
    before = everything_of(built.root)

    with pytest.raises(UsageError):
        turn(built.root, new_key_file=tmp_path / "new.key")
    with pytest.raises(KeyMissingError):
        turn(built.root, new_key_file=tmp_path / "none.key")

    assert everything_of(built.root) == before


def test_a_key_of_the_environment_leaves_the_new_one_where_sagewai_finds_it(
    built: BuiltHome,
) -> None:
    """Not effective until the variable goes or changes; either way Sagewai opens everything."""
    built.master_key.unlink()
    named = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}

    done = turn(built.root, named)

    assert not done.effective
    assert done.installed == built.master_key
    assert built.master_key.stat().st_mode & 0o777 == 0o600
    assert any("set SAGEWAI_MASTER_KEY" in step for step in done.steps)
    new = built.master_key.read_bytes()
    assert new.decode() not in " ".join((*done.steps, *done.notes, repr(done)))
    assert CLOSED not in values_of(built, new)
    for environment in ({}, {"SAGEWAI_MASTER_KEY": new.decode()}):
        found = check_keys(locate(built.root, environment), environment)
        assert found.key is not None
        assert not found.lost_to_sagewai


def test_another_key_in_that_place_is_not_lost(built: BuiltHome) -> None:
    """The environment hid a file with another key: kept, and its values come along."""
    named = {"SAGEWAI_MASTER_KEY": OTHER.decode()}

    done = turn(built.root, named)

    assert done.resealed_by_key == {fingerprint(built.master_keys[0]): sum(done.resealed.values())}
    assert done.kept_as is not None
    assert done.kept_as.read_bytes() == built.master_keys[0]


def test_whose_key_is_kept_elsewhere_gets_none_into_the_home(
    built: BuiltHome, tmp_path: Path
) -> None:
    """From the environment, with a file of one's own: the operator has both."""
    built.master_key.unlink()
    (tmp_path / "new.key").write_bytes(OTHER)
    named = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}

    done = turn(built.root, named, new_key_file=tmp_path / "new.key")

    assert done.installed is None
    assert not built.master_key.exists()
    assert any("set SAGEWAI_MASTER_KEY to the new key" in step for step in done.steps)
    assert CLOSED not in values_of(built, OTHER)


def test_a_key_of_the_keyring_says_what_to_do_there(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keyring is never written to; its two commands are reported."""
    built.master_key.unlink()
    module = types.ModuleType("keyring")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.get_password = lambda *_: built.master_keys[0].decode()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", module)

    done = turn(built.root, {"PATH": "/"})

    assert not done.effective
    assert done.old_key.source == "keyring"
    assert f"keyring set sagewai-master-key sealed < {built.master_key}" in done.steps
    assert any("keyring del" in step for step in done.steps)


def test_a_key_at_the_root_is_exchanged_there(tmp_path: Path) -> None:
    """In a flat home Sagewai reads that file, and no other has priority."""
    built = small(tmp_path / "home", layout="flat")

    done = turn(built.root)

    assert done.installed == built.root / "master.key"
    assert done.effective
    assert not (built.root / "secrets/master.key").exists()


def test_a_link_is_followed_to_the_key_itself(built: BuiltHome, tmp_path: Path) -> None:
    """The link stays; documents behind links as well."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (built.master_key, built.profiles):
        shutil.move(path, elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)

    done = turn(built.root)

    assert done.installed == elsewhere / "master.key"
    assert built.master_key.is_symlink()
    assert built.profiles.is_symlink()
    assert CLOSED not in values_of(built, built.master_key.read_bytes())


def test_a_link_to_where_one_may_not_write_needs_a_key_of_ones_own() -> None:
    """Such as a secret that a container is given: it is changed where it comes from."""
    with reachable_directory() as directory:
        locked = directory / "locked"
        with unprivileged():
            built = small(directory / "home")
            locked.mkdir()
            shutil.move(built.master_key, locked / "key")
            built.master_key.symlink_to(locked / "key")
            locked.chmod(0o500)
            (directory / "new.key").write_bytes(OTHER)

            with pytest.raises(UsageError, match="not writable"):
                turn(built.root)
            done = turn(built.root, new_key_file=directory / "new.key")

            assert done.installed is None
            assert any("put the new key into" in step for step in done.steps)
            assert CLOSED not in values_of(built, OTHER)


def test_documents_outside_of_the_home_come_along(built: BuiltHome, tmp_path: Path) -> None:
    """Where a variable puts them, with the copies next to them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(built.connections, outside / "connections.json")
    shutil.move(built.admin_state, outside / "state.json")
    shutil.copy(outside / "state.json", outside / "state.json.bak-v2")
    named = {
        "SAGEWAI_ADMIN_STATE_FILE": str(outside / "state.json"),
        "SAGEWAI_CONNECTIONS_FILE": str(outside / "connections.json"),
    }

    done = turn(built.root, named)

    new = built.master_key.read_bytes()
    shutil.rmtree(built.root / "db")
    shutil.copytree(outside, built.root / "config", dirs_exist_ok=True)
    assert done.resealed[str(outside / "state.json.bak-v2")] > 0
    assert CLOSED not in values_of(built, new)


def test_what_no_key_opens_is_refused_or_left(tmp_path: Path) -> None:
    """Named by its place; left, it is as it was to the byte."""
    built = small(tmp_path / "home", keys=2)
    lost = [each for each in built.sealed if each.key == built.master_keys[1]]
    before = everything_of(built.root)

    with pytest.raises(KeyMissingError) as refusal:
        turn(built.root)
    assert everything_of(built.root) == before
    assert "--leave-unopened" in refusal.value.hint
    done = turn(built.root, leave_unopened=True)

    assert done.left
    new = built.master_key.read_bytes()
    content = b"".join(
        path.read_bytes() for path in (built.admin_state, built.connections, built.profiles)
    )
    places = {"admin-state.json", "connections.json", "profiles.json"}
    assert all(each.token.encode() in content for each in lost if each.place in places)
    assert fingerprint(new) == new_fingerprint(done)


def test_a_value_that_is_no_data_key_is_re_encrypted_too(tmp_path: Path) -> None:
    """It opens, so it is nothing to refuse; under the old key it would be lost."""
    built = small(tmp_path / "home")
    token = sealing.token(built.master_keys[0], b"no key", b"v" * 16)
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        connection.execute(
            "INSERT INTO project SELECT 'odd', org_id, 'odd', name, environment,"
            " status, settings, ?, created_at, updated_at FROM project LIMIT 1",
            (f"fernet:{token}",),
        )
        connection.commit()

    done = turn(built.root)

    assert done.left == ()
    assert "no key" in values_of(built, built.master_key.read_bytes())


def test_a_key_that_was_found_again_is_named(tmp_path: Path) -> None:
    """Then nothing has to be left."""
    built = small(tmp_path / "home", keys=2)
    (tmp_path / "found.key").write_bytes(built.master_keys[1])

    done = turn(built.root, key_file=tmp_path / "found.key")

    assert done.left == ()
    assert CLOSED not in values_of(built, built.master_key.read_bytes())


def test_a_home_without_a_key_has_nothing_to_exchange(built: BuiltHome) -> None:
    """12, and a key is not made by the way."""
    built.master_key.unlink()

    with pytest.raises(KeyMissingError, match="no master key"):
        turn(built.root)

    assert not built.master_key.exists()


def test_a_home_with_nothing_sealed_gets_its_key_all_the_same(tmp_path: Path) -> None:
    """Also without a database and without documents."""
    (tmp_path / "home/secrets").mkdir(parents=True)
    (tmp_path / "home/secrets/master.key").write_bytes(OTHER)

    done = turn(tmp_path / "home")

    assert done.resealed == {}
    assert (tmp_path / "home/secrets/master.key").read_bytes() != OTHER


def test_an_unreadable_document_is_refused() -> None:
    """Something in it may be under the old key."""
    with reachable_directory() as directory, unprivileged():
        built = small(directory / "home")
        built.profiles.chmod(0)
        before = built.master_key.read_bytes()

        with pytest.raises(PermissionDeniedError, match=r"profiles\.json"):
            turn(built.root)

        assert built.master_key.read_bytes() == before


@pytest.mark.parametrize("part", ["", "config", "db", "secrets"])
def test_a_directory_that_may_not_be_written_is_refused_at_once(part: str) -> None:
    """Before a snapshot is taken, with nothing changed."""
    with reachable_directory() as directory, unprivileged():
        built = small(directory / "home", journal="none")
        (built.root / part).chmod(0o500)
        before = contents_of(built.root)

        with pytest.raises(PermissionDeniedError, match="nothing was changed"):
            turn(built.root)

        assert contents_of(built.root) == before


def test_a_value_that_appears_in_between_is_noticed(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process wrote with the old key: all is undone."""
    apply = rotation.apply

    def interfere(home: Home, *arguments: object, **options: object) -> None:
        apply(home, *arguments, **options)  # type: ignore[arg-type]
        state = json.loads(built.profiles.read_bytes())
        state["profiles"][0]["secrets"]["LATE"] = built.sealed[0].token
        built.profiles.write_text(json.dumps(state))

    before = values_of(built, built.master_keys[0])
    monkeypatch.setattr(rotation, "apply", interfere)

    with pytest.raises(DifferenceError, match="1 values would not be under the new key"):
        turn(built.root)

    assert built.master_key.read_bytes() == built.master_keys[0]
    after = values_of(built, built.master_keys[0])
    assert CLOSED not in after
    assert len(after) == len(before) + 1


def test_a_signal_in_the_middle_takes_everything_back(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home is as before, the journal is gone."""
    before = values_of(built, built.master_keys[0])

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rotating, "_verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        turn(built.root)

    assert values_of(built, built.master_keys[0]) == before
    left = [name for name in os.listdir(built.root) if name.startswith(".sagewai-ops")]
    assert left == [MARK]  # with the key that authenticates previous snapshots


def test_a_dry_run_tells_the_same_and_touches_nothing(built: BuiltHome) -> None:
    """Counts and places as the run has them."""
    before = everything_of(built.root)

    dry = turn(built.root, dry_run=True)

    assert everything_of(built.root) == before
    done = turn(built.root)
    assert (dry.resealed, dry.resealed_by_key, dry.through_projects) == (
        done.resealed,
        done.resealed_by_key,
        done.through_projects,
    )


def test_keys_that_are_of_no_use_any_more_are_named(built: BuiltHome) -> None:
    """A legacy key at the root or set aside, and what restores have put aside."""
    keys = [built.root / "master.key", built.root / "secrets/master.key.legacy-found"]
    for key in keys:
        key.write_bytes(OTHER)
    aside = built.root.with_name("home.before-restore-20260101T000000000000Z")
    aside.mkdir()

    done = turn(built.root)

    for key in keys:
        assert any(f"{key}: contains the key" in note for note in done.notes)
    assert any(note.startswith(str(aside)) for note in done.notes)
    assert any("sessions, API tokens and passwords stay valid" in note for note in done.notes)


@pytest.fixture(params=real_homes.NAMES)
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A home that the real Sagewai wrote."""
    return real_homes.unpack(request.param, tmp_path)


def test_homes_that_sagewai_wrote(real: Path) -> None:
    """All that opened before opens after, under one key."""
    home = locate(real, {})
    before = check_keys(home, {}).report

    done = turn(real)

    after = check_keys(home, {})
    assert after.report.total == before.total
    assert after.report.unopened == before.unopened == ()
    assert {each.fingerprint for each in after.opened} == {new_fingerprint(done)}


def test_a_restore_in_between_is_noticed(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The key changed between the snapshot and the rotation: the snapshot would not have it."""
    creating = create.create_snapshot

    def take(*arguments: object, **options: object) -> object:
        report = creating(*arguments, **options)  # type: ignore[arg-type]
        built.master_key.write_bytes(OTHER)
        return report

    monkeypatch.setattr(rotating, "create_snapshot", take)
    recipient, _ = temporary_identity()
    sealed = BackupOptions(encryption=Encryption(recipients=(recipient,)), custody="sealed")

    with pytest.raises(OpsError):
        turn(built.root, snapshot=sealed, snapshots=tmp_path / "s")

    assert built.master_key.read_bytes() == OTHER


@pytest.mark.skipif(os.getuid() != 0, reason="only root can work in the home of another")
def test_root_leaves_what_it_writes_to_the_owner(built: BuiltHome) -> None:
    """A key of root's own, which Sagewai cannot read, would be replaced by Sagewai."""
    for path in (built.root, *built.root.rglob("*")):
        os.lchown(path, NO_USER, NO_USER)
    shutil.rmtree(built.master_key.parent)
    named = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}

    turn(built.root, named)
    turn(built.root)

    files = [path for path in built.root.rglob("*") if not path.name.endswith(("-wal", "-shm"))]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in files} == {(NO_USER, NO_USER)}
    assert built.master_key.stat().st_mode & 0o777 == 0o600


def test_a_link_that_leads_nowhere_is_no_key(tmp_path: Path) -> None:
    """Sagewai passes over it to the key at the root: that one is exchanged."""
    built = small(tmp_path / "home", layout="flat")
    (built.root / "secrets/master.key").symlink_to("nowhere")

    done = turn(built.root)

    assert done.installed == built.root / "master.key"
    assert done.effective


def test_a_dangling_link_is_replaced(built: BuiltHome) -> None:
    """For the new key of a home whose key is in the environment."""
    built.master_key.unlink()
    built.master_key.symlink_to("nowhere")
    named = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}

    done = turn(built.root, named)

    assert done.installed == built.master_key
    assert CLOSED not in values_of(built, built.master_key.read_bytes())


def test_a_directory_in_the_place_of_the_key_is_refused(built: BuiltHome) -> None:
    """Nothing is changed."""
    built.master_key.unlink()
    built.master_key.mkdir()
    named = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}
    before = everything_of(built.root)

    with pytest.raises(OpsError, match="not a regular file"):
        turn(built.root, named)

    assert everything_of(built.root) == before


def test_a_copy_that_is_removed_in_between_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone holds nothing under the old key."""
    built = small(tmp_path / "home")
    copy = Path(f"{built.profiles}.bak-v1")
    shutil.copy(built.profiles, copy)
    apply = rotation.apply

    def remove_first(*arguments: object, **options: object) -> None:
        copy.unlink()
        apply(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rotation, "apply", remove_first)
    monkeypatch.setattr(rotating, "_verify", lambda *_: None)

    turn(built.root)

    assert CLOSED not in values_of(built, built.master_key.read_bytes())


def test_the_lock_of_sagewais_writers_is_held_and_waited_for(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that keeps it does not stop the rotation."""
    monkeypatch.setattr(state_files, "_LOCK_WAIT_SECONDS", 0.05)
    with open(f"{built.admin_state}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        turn(built.root)

    assert CLOSED not in values_of(built, built.master_key.read_bytes())


def test_a_journal_of_another_user_is_left_alone() -> None:
    """In a directory that others write, any user can put one, and block every command."""
    take_reports()
    with reachable_directory() as directory:
        with unprivileged():
            (directory / rotation_journal.DIRECTORY).mkdir(0o000)
        directory.chmod(0o777)

        assert not pending_operations(directory)
        assert len(take_reports()) == 1
