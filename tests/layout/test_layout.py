"""Moving the flat layout: every shape of it, refusals, kills and failures at every step."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from home_builder import build_home
from other_process import running
from private_home import KEY, tree_of
from sagewai_ops.errors import (
    LockedError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs.locks import exclusive
from sagewai_ops.home.fleet import fleet_organisation
from sagewai_ops.home.paths import LEGACY_PLACES, locate
from sagewai_ops.layout.journal import JOURNAL, recover
from sagewai_ops.layout.plan import Action
from sagewai_ops.operations.migrate_layout import LayoutReport, migrate_layout
from step_counter import counting, failing, killed_at, until_done
from unprivileged import reachable_directory, unprivileged

OLD, NEW = 1_700_000_000, 1_800_000_000  # mtimes, in seconds
OTHER_KEY = b"OTg3NjU0MzIxMDk4NzY1NDMyMTA5ODc2NTQzMjEwOTg="
DOCUMENTS = tuple(name for name in LEGACY_PLACES if name != "master.key")
PLACE_OF = dict(LEGACY_PLACES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty home."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def put(path: Path, content: bytes, *, mode: int = 0o600, time: int = OLD) -> Path:
    """Write a file with a mode and a time, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, (time, time))
    return path


def flat(root: Path) -> dict[str, bytes]:
    """Write the four legacy files; map each place of today to its content."""
    contents = {name: KEY if name == "master.key" else name.encode() for name in LEGACY_PLACES}
    for name, content in contents.items():
        put(root / name, content)
    return {LEGACY_PLACES[name]: content for name, content in contents.items()}


def migrate(root: Path, environment: dict[str, str] | None = None, **options: Any) -> LayoutReport:
    """Migrate a home."""
    return migrate_layout(locate(root, environment or {}), environment or {}, **options)


def files(root: Path) -> dict[str, bytes | str]:
    """Map each file and link of a home to its content or target."""
    return {
        path: content for path, (mode, _, _, content) in tree_of(root).items() if mode & 0o170000
        != 0o040000
    }  # fmt: skip


def actions(report: LayoutReport) -> dict[str, Action]:
    """Map each name to what was done with it."""
    return {item.name: item.action for item in report.items}


def kept(report: LayoutReport, name: str) -> str:
    """Return the path of what was kept because of a document."""
    (path,) = [item.kept or "" for item in report.items if item.name == name]
    assert ".legacy-20" in path
    return path


def unchanged_by_a_second_run(root: Path) -> bool:
    """Return whether another run changes nothing."""
    before = tree_of(root)
    migrate(root)
    return tree_of(root) == before


def test_flat_home_gets_the_layout_of_today(root: Path) -> None:
    """Each of the four is in its place with its content, private, and nothing else is there."""
    contents = flat(root)

    report = migrate(root)

    assert files(root) == contents
    assert all((root / place).stat().st_mode & 0o7777 == 0o600 for place in contents)
    assert all((root / place).stat().st_mtime == OLD for place in contents)
    assert (root / "secrets").stat().st_mode & 0o7777 == 0o700
    assert set(actions(report).values()) == {Action.MOVE}
    assert report.complete
    assert unchanged_by_a_second_run(root)


def test_home_without_legacy_files_is_not_touched(root: Path) -> None:
    """No directories are made, and no lock or journal is left."""
    before = root.stat().st_mtime_ns

    report = migrate(root)

    assert report.items == ()
    assert list(root.iterdir()) == []
    assert root.stat().st_mtime_ns == before


@pytest.mark.parametrize("moved", list(LEGACY_PLACES))
def test_partly_migrated_home_is_completed(root: Path, moved: str) -> None:
    """What is in its place already stays as it is."""
    contents = flat(root)
    (root / PLACE_OF[moved]).parent.mkdir()
    (root / moved).rename(root / PLACE_OF[moved])

    report = migrate(root)

    assert files(root) == contents
    assert moved not in actions(report)


def test_dry_run_plans_and_changes_nothing(root: Path) -> None:
    """The same items and steps as a run."""
    flat(root)
    before = tree_of(root)

    planned = migrate(root, dry_run=True)
    assert tree_of(root) == before
    done = migrate(root)

    assert planned.items == done.items
    assert [step.step for step in planned.steps] == [step.step for step in done.steps]


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640, 0o755, 0o200])
def test_wrong_modes_are_repaired(root: Path, mode: int) -> None:
    """A key that lets others in would be overwritten by Sagewai's next start."""
    contents = flat(root)
    for name in LEGACY_PLACES:
        (root / name).chmod(mode)

    migrate(root)

    assert all((root / place).stat().st_mode & 0o7777 == 0o600 for place in contents)


def test_modes_do_not_depend_on_the_umask(root: Path) -> None:
    """New directories are private under any umask."""
    flat(root)
    before = os.umask(0o000)
    try:
        migrate(root)
    finally:
        os.umask(before)

    assert {path.stat().st_mode & 0o777 for path in (root / "config", root / "secrets")} == {0o700}


@pytest.mark.parametrize("name", list(LEGACY_PLACES))
def test_equal_copies_become_one(root: Path, name: str) -> None:
    """The one in place stays, privately; the copy at the root goes."""
    place = put(root / PLACE_OF[name], KEY, mode=0o644)
    put(root / name, KEY, time=NEW)

    report = migrate(root)

    assert files(root) == {PLACE_OF[name]: KEY}
    assert place.stat().st_mode & 0o7777 == 0o600
    assert place.stat().st_mtime == OLD
    assert actions(report) == {name: Action.REMOVE}
    assert unchanged_by_a_second_run(root)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_newer_document_at_the_root_goes_in_place(root: Path, name: str) -> None:
    """The older one is kept next to it under a name that shows its origin, with private modes."""
    put(root / PLACE_OF[name], b"older", mode=0o644)
    put(root / name, b"newer", time=NEW)

    report = migrate(root)

    assert files(root) == {PLACE_OF[name]: b"newer", kept(report, name): b"older"}
    assert kept(report, name).startswith(PLACE_OF[name] + ".legacy-")
    assert (root / kept(report, name)).stat().st_mode & 0o7777 == 0o600
    assert any(kept(report, name) in warning for warning in report.warnings)
    assert unchanged_by_a_second_run(root)


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("time", [OLD - 1, OLD])
def test_document_in_place_stays_unless_it_is_older(root: Path, name: str, time: int) -> None:
    """As with Sagewai, but the other is kept next to it and named."""
    put(root / PLACE_OF[name], b"in place")
    put(root / name, b"at the root", mode=0o644, time=time)

    report = migrate(root)

    assert files(root) == {PLACE_OF[name]: b"in place", kept(report, name): b"at the root"}
    assert (root / kept(report, name)).stat().st_mode & 0o7777 == 0o600
    assert unchanged_by_a_second_run(root)


def test_key_in_use_stays_however_old(root: Path) -> None:
    """A newer key may open less; Sagewai uses the one in secrets/."""
    put(root / "secrets/master.key", KEY)
    put(root / "master.key", OTHER_KEY, time=NEW)

    report = migrate(root)

    assert files(root) == {"secrets/master.key": KEY, kept(report, "master.key"): OTHER_KEY}


@pytest.mark.parametrize("broken", [b"", b"short"])
def test_key_replaces_what_is_no_key(root: Path, broken: bytes) -> None:
    """Sagewai would overwrite a broken key with a new one; the good one goes in place."""
    put(root / "secrets/master.key", broken, time=NEW)
    put(root / "master.key", KEY)

    report = migrate(root)

    assert files(root) == {"secrets/master.key": KEY, kept(report, "master.key"): broken}


def test_two_kept_in_one_second_get_names_of_their_own(root: Path) -> None:
    """Nothing is overwritten by what is kept."""
    for content in (b"first", b"second", b"third"):
        put(root / "config/connections.json", b"in place", time=NEW)
        put(root / "connections.json", content)
        migrate(root)

    held = {*files(root).values()}
    assert held == {b"in place", b"first", b"second", b"third"}


@pytest.mark.parametrize("is_absolute", [True, False])
def test_link_is_replaced_by_what_it_leads_to(root: Path, *, is_absolute: bool) -> None:
    """Sagewai would move the link, and a relative one would lead nowhere."""
    real = put(root / "real.json", b"state", mode=0o644)
    (root / "admin-state.json").symlink_to(real if is_absolute else "real.json")

    report = migrate(root)

    assert files(root) == {"config/admin-state.json": b"state"}
    assert (root / "config/admin-state.json").stat().st_mode & 0o7777 == 0o600
    assert actions(report) == {"admin-state.json": Action.MOVE}
    assert unchanged_by_a_second_run(root)


def test_what_a_link_leads_to_outside_stays_there(root: Path) -> None:
    """Nothing outside of the home is removed: its content is copied, and that is reported."""
    real = put(root.parent / "elsewhere.key", KEY, mode=0o644, time=NEW)
    (root / "master.key").symlink_to(real)

    report = migrate(root)

    assert files(root) == {"secrets/master.key": KEY}
    assert (root / "secrets/master.key").stat().st_mode & 0o7777 == 0o600
    assert (root / "secrets/master.key").stat().st_mtime == NEW
    assert real.read_bytes() == KEY
    assert any(str(real) in warning for warning in report.warnings)


def test_two_links_to_one_file_become_two_files(root: Path) -> None:
    """The second cannot move what the first has moved."""
    put(root / "real.json", b"{}")
    for name in ("admin-state.json", "connections.json"):
        (root / name).symlink_to("real.json")

    migrate(root)

    assert files(root) == {"config/admin-state.json": b"{}", "config/connections.json": b"{}"}


def test_link_to_another_document_leaves_that_one_whole(root: Path) -> None:
    """A legacy name that leads to another legacy file gets a copy of it."""
    put(root / "connections.json", b"{}")
    (root / "admin-state.json").symlink_to("connections.json")

    migrate(root)

    assert files(root) == {"config/admin-state.json": b"{}", "config/connections.json": b"{}"}


def test_link_to_its_own_place_is_removed(root: Path) -> None:
    """An operator's bridge from the old name to the new is no second copy."""
    put(root / "config/admin-state.json", b"state")
    (root / "admin-state.json").symlink_to("config/admin-state.json")

    report = migrate(root)

    assert files(root) == {"config/admin-state.json": b"state"}
    assert actions(report) == {"admin-state.json": Action.REMOVE}


def test_place_that_is_a_link_to_the_root_gets_the_file(root: Path) -> None:
    """The other bridge: a link in config/ to the legacy file."""
    put(root / "admin-state.json", b"state")
    (root / "config").mkdir()
    (root / "config/admin-state.json").symlink_to("../admin-state.json")

    migrate(root)

    assert files(root) == {"config/admin-state.json": b"state"}
    assert not (root / "config/admin-state.json").is_symlink()


def test_two_links_to_one_place_become_a_file(root: Path) -> None:
    """Both names lead to a third file."""
    put(root / "data/state.json", b"state")
    (root / "config").mkdir()
    (root / "config/admin-state.json").symlink_to("../data/state.json")
    (root / "admin-state.json").symlink_to("data/state.json")

    migrate(root)

    assert files(root) == {"config/admin-state.json": b"state"}


def test_hard_links_become_one_name(root: Path) -> None:
    """Two names of one file are not two documents."""
    put(root / "config/connections.json", b"{}")
    os.link(root / "config/connections.json", root / "connections.json")

    migrate(root)

    assert files(root) == {"config/connections.json": b"{}"}


def test_dangling_link_is_left_and_named(root: Path) -> None:
    """What it leads to may be on a disk that is not mounted."""
    flat(root)
    (root / "connections.json").unlink()
    (root / "connections.json").symlink_to("/mnt/disk/connections.json")

    report = migrate(root)

    assert files(root)["connections.json"] == "/mnt/disk/connections.json"
    assert actions(report)["connections.json"] is Action.LEAVE
    assert not report.complete
    assert report.left == {"connections.json": "broken link to /mnt/disk/connections.json"}
    assert len(files(root)) == 4
    assert unchanged_by_a_second_run(root)


@pytest.mark.parametrize("target", ["connections.json", "nowhere"])
def test_link_to_itself_is_left(root: Path, target: str) -> None:
    """A loop is a link that leads nowhere."""
    (root / "connections.json").symlink_to(target)

    assert migrate(root).left.keys() == {"connections.json"}


def test_directory_at_the_root_is_left_and_named(root: Path) -> None:
    """A container that binds a missing file leaves a directory of its name."""
    (root / "admin-state.json").mkdir()
    os.mkfifo(root / "profiles.json")

    report = migrate(root)

    assert report.left == {
        "admin-state.json": "is a directory",
        "profiles.json": "is not a regular file",
    }
    assert sorted(path.name for path in root.iterdir()) == ["admin-state.json", "profiles.json"]


def test_directory_in_the_place_is_kept_beside(root: Path) -> None:
    """Sagewai would crash; here the directory makes room, with all that is in it."""
    put(root / "connections.json", b"{}")
    put(root / "config/connections.json/inside", b"kept")

    report = migrate(root)

    directory = kept(report, "connections.json")
    assert files(root) == {"config/connections.json": b"{}", f"{directory}/inside": b"kept"}


def test_dangling_link_in_the_place_is_kept_beside(root: Path) -> None:
    """Sagewai would replace it and forget where it led."""
    put(root / "connections.json", b"{}")
    (root / "config").mkdir()
    (root / "config/connections.json").symlink_to("/mnt/disk/connections.json")

    report = migrate(root)

    assert files(root) == {
        "config/connections.json": b"{}",
        kept(report, "connections.json"): "/mnt/disk/connections.json",
    }


@pytest.mark.parametrize("content", [b"a file", None])
def test_part_that_is_no_directory_is_refused(root: Path, content: bytes | None) -> None:
    """Where config is a file, or a link to nowhere, nothing at all is done."""
    flat(root)
    if content is None:
        (root / "config").symlink_to("/mnt/disk/config")
    else:
        (root / "config").write_bytes(content)
    before = tree_of(root)

    with pytest.raises(UsageError):
        migrate(root)

    assert tree_of(root) == before


@pytest.mark.parametrize("part", ["config", "secrets"])
def test_directory_that_is_a_link_is_refused(root: Path, tmp_path: Path, part: str) -> None:
    """A directory of the home is a directory, or a mount; nothing is written through a link."""
    flat(root)
    (tmp_path / "other").mkdir()
    (root / part).symlink_to(tmp_path / "other")
    before = files(root)

    with pytest.raises(UsageError, match=f"{part}: a symlink"):
        migrate(root)

    assert files(root) == before
    assert os.listdir(tmp_path / "other") == []


def test_two_mounts_of_one_file_system_get_copies(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's volumes can share a device, and still no rename leads from one to another."""
    contents = flat(root)
    rename = os.rename

    def refused(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if not os.path.samestat(os.fstat(src_dir_fd), os.fstat(dst_dir_fd)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", refused)
    migrate(root)

    assert files(root) == contents


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("SAGEWAI_ADMIN_STATE_FILE", "admin-state.json"),
        ("SAGEWAI_ADMIN_STATE", "admin-state.json"),
        ("SAGEWAI_CONNECTIONS_FILE", "connections.json"),
    ],
)
def test_document_that_a_variable_names_is_left(root: Path, variable: str, name: str) -> None:
    """The operator manages it; an empty variable counts as unset."""
    contents = flat(root)

    report = migrate(root, {variable: str(root / name)})
    assert actions(report)[name] is Action.MANAGED
    assert (root / name).exists()
    assert len(files(root)) == 4
    assert report.complete

    migrate(root, {variable: ""})
    assert files(root) == contents


@pytest.mark.parametrize("variable", ["SAGEWAI_ADMIN_STATE_FILE", "SAGEWAI_CONNECTIONS_FILE"])
def test_variable_with_a_missing_path_is_reported(root: Path, variable: str) -> None:
    """Sagewai would start without the document that is at the root."""
    flat(root)
    (root.parent / "there.json").touch()

    missing = migrate(root, {variable: str(root.parent / "gone.json")})
    there = migrate(root, {variable: str(root.parent / "there.json")})

    assert any("gone.json, which does not exist" in warning for warning in missing.warnings)
    assert there.warnings == ()


@pytest.mark.parametrize("variable", ["SAGEWAI_MASTER_KEY", "SAGEWAI_SOPS_ROOT", "DATABASE_URL"])
def test_other_variables_do_not_keep_anything(root: Path, variable: str) -> None:
    """A key in the environment does not stop the file from being moved."""
    contents = flat(root)

    migrate(root, {variable: "sqlite:////missing/x.db"})

    assert files(root) == contents


def test_alias_that_the_server_ignores_is_reported(root: Path) -> None:
    """With the alias alone the server would start empty; with both alike all is well."""
    flat(root)
    old = str(root / "admin-state.json")

    alone = migrate(root, {"SAGEWAI_ADMIN_STATE": old})
    both = migrate(root, {"SAGEWAI_ADMIN_STATE": old, "SAGEWAI_ADMIN_STATE_FILE": old})

    assert any("it starts empty" in warning for warning in alone.warnings)
    assert not any("SAGEWAI_ADMIN_STATE" in warning for warning in both.warnings)


def test_database_at_the_root_is_reported_and_left(root: Path) -> None:
    """Sagewai never reads it, and does not report it."""
    put(root / "sagewai.db", b"")
    put(root / "sagewai.db-wal", b"")

    report = migrate(root)

    assert report.left.keys() == {"sagewai.db", "sagewai.db-wal"}
    assert not report.complete
    assert len(files(root)) == 2


def test_fleet_rows_that_become_invisible_are_counted(tmp_path: Path) -> None:
    """Their organisation's id is made of the path of the state file."""
    built = build_home(tmp_path / "home", layout="flat", artifacts=False)

    report = migrate(built.root)

    assert dict(report.fleet_rows) == {"enrollment_keys": 3, "fleet_tasks": 3, "workers": 3}
    (warning,) = (each for each in report.warnings if "become invisible" in each)
    assert "restore latest --replace --rebind-fleet" in warning


def test_fleet_rows_of_todays_path_stay_visible(tmp_path: Path) -> None:
    """Sagewai 1.0 already made them with the path of today."""
    root = tmp_path / "home"
    state = os.fspath(root / "config/admin-state.json")
    built = build_home(root, layout="flat", artifacts=False, fleet_path=state)

    assert dict(migrate(built.root).fleet_rows) == {}


def test_fleet_organisation_follows_the_path() -> None:
    """The first 16 hex digits of a SHA-256 over path and administrator."""
    state = Path("/srv/config/admin-state.json")

    assert fleet_organisation(state, "a") != fleet_organisation(Path("/srv/x.json"), "a")
    assert fleet_organisation(state, "") == fleet_organisation(state, "default")
    assert len(fleet_organisation(state, "a")) == len("default:") + 16


def test_database_moves_with_nothing_lost(tmp_path: Path) -> None:
    """All of a flat home that is not one of the four stays as it is."""
    built = build_home(tmp_path / "home", layout="flat", journal="everything")
    before = files(built.root)

    migrate(built.root)

    after = files(built.root)
    for name, place in LEGACY_PLACES.items():
        assert after.pop(place) == before.pop(name)
    shared = "db/sagewai.db-shm"  # scratch memory, which any reader may rewrite
    assert {**after, shared: b""} == {**before, shared: b""}


def test_home_in_use_is_refused_and_the_process_named(tmp_path: Path) -> None:
    """A running server would write to the old places again."""
    built = build_home(tmp_path / "home", layout="flat", artifacts=False)
    code = """
import sqlite3
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
pause()
"""
    with running(code, os.fspath(built.database)) as server:
        before = set(files(built.root))
        planned = migrate(built.root, dry_run=True)

        with pytest.raises(TargetBusyError, match=f"pid {server.pid}"):
            migrate(built.root)

        assert set(files(built.root)) == before
        assert any(f"pid {server.pid}" in warning for warning in planned.warnings)


def test_migrated_home_in_use_is_fine(tmp_path: Path) -> None:
    """Where nothing is to be done, no process has to be stopped."""
    built = build_home(tmp_path / "home", artifacts=False)
    code = "import sqlite3\nconnection = sqlite3.connect(sys.argv[1])\npause()"

    with running(code, os.fspath(built.database)):
        assert migrate(built.root).steps == ()


def test_second_run_at_once_is_refused(root: Path) -> None:
    """One run at a time on a home."""
    flat(root)

    with exclusive(root), pytest.raises(LockedError):
        migrate(root)


def test_missing_home_is_not_found(tmp_path: Path) -> None:
    """There is nothing to migrate."""
    with pytest.raises(NotFoundError):
        migrate(tmp_path / "none")


@pytest.mark.parametrize("closed", [".", "config", "secrets"])
def test_home_that_cannot_be_written_is_refused_unchanged(closed: str) -> None:
    """The directory is named, and nothing was begun."""
    with reachable_directory() as directory, unprivileged():
        root = directory / "home"
        flat(root)
        for part in ("config", "secrets"):
            (root / part).mkdir()
        (root / closed).chmod(0o500)
        before = tree_of(root)

        with pytest.raises(PermissionDeniedError, match="not writable by uid"):
            migrate(root)

        assert tree_of(root) == before


@pytest.mark.parametrize("closed", ["admin-state.json", "config/admin-state.json"])
def test_link_into_a_closed_directory_is_refused_unchanged(closed: str) -> None:
    """What may not be looked at is not taken for missing: it may be the document."""
    with reachable_directory() as directory, unprivileged():
        root = directory / "home"
        put(directory / "closed/state.json", b"state")
        put(root / "admin-state.json", b"{}")
        (root / "config").mkdir()
        (root / closed).unlink(missing_ok=True)
        (root / closed).symlink_to(directory / "closed/state.json")
        (directory / "closed").chmod(0o000)
        before = tree_of(root)

        with pytest.raises(PermissionDeniedError):
            migrate(root)

        assert tree_of(root) == before


def test_user_without_root_can_migrate() -> None:
    """The home's own user needs no more than his rights."""
    with reachable_directory() as directory, unprivileged():
        contents = flat(directory / "home")

        migrate(directory / "home")

        assert files(directory / "home") == contents


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
def test_root_leaves_the_home_to_its_owner(root: Path) -> None:
    """Directories and copies that root makes belong to the home's user, who must read them."""
    flat(root)
    real = put(root.parent / "real.json", b"{}")
    (root / "profiles.json").unlink()
    (root / "profiles.json").symlink_to(real)
    for path in (root, real, *root.iterdir()):
        os.chown(path, 1001, 1001, follow_symlinks=False)

    migrate(root)

    assert {path.lstat().st_uid for path in root.rglob("*")} == {1001}


def _open_modes(root: Path) -> None:
    for name in LEGACY_PLACES:
        put(root / name, name.encode(), mode=0o666)


def _newer_at_the_root(root: Path) -> None:
    put(root / "config/connections.json", b"older", mode=0o644)
    put(root / "connections.json", b"newer", time=NEW)


def _equal(root: Path) -> None:
    put(root / "config/connections.json", b"same")
    put(root / "connections.json", b"same")


def _link_inside(root: Path) -> None:
    put(root / "real.json", b"state", mode=0o640)
    (root / "admin-state.json").symlink_to("real.json")


def _link_outside(root: Path) -> None:
    put(root.parent / "outside.key", KEY)
    (root / "master.key").symlink_to(root.parent / "outside.key")


def _directory_in_place(root: Path) -> None:
    put(root / "profiles.json", b"{}")
    put(root / "secrets/profiles.json/inside", b"")


SHAPES: dict[str, Callable[[Path], object]] = {
    "flat": flat,
    "open modes": _open_modes,
    "newer at the root": _newer_at_the_root,
    "equal": _equal,
    "link inside": _link_inside,
    "link outside": _link_outside,
    "directory in place": _directory_in_place,
}


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: hundreds of runs, each with a dozen fsyncs."""
    base = Path("/dev/shm")
    if not os.access(base, os.W_OK):
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(dir=base))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_killed_anywhere_the_next_run_ends_it(quick_path: Path, shape: str) -> None:
    """At each step: no content is ever lost, and the next run leaves what an unkilled one does."""
    wanted = _migrated(quick_path / "whole", SHAPES[shape])
    origin = quick_path / "origin" / "home"
    origin.mkdir(parents=True)
    SHAPES[shape](origin)
    held = {*files(origin).values()} - {"real.json", str(origin.parent / "outside.key")}

    def attempt(number: int) -> bool:
        root = quick_path / "killed" / "home"
        shutil.rmtree(root.parent, ignore_errors=True)
        root.mkdir(parents=True)
        SHAPES[shape](root)

        killed = killed_at(number, lambda: migrate(root))
        assert held <= {*files(root).values()}
        migrate(root)

        assert _shape_of(root) == wanted
        return killed

    assert until_done(attempt) > 5


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize(("number", "for_ever"), [(errno.EIO, False), (errno.ENOSPC, True)])
def test_failure_anywhere_leaves_the_home_as_it_was(
    quick_path: Path, shape: str, number: int, *, for_ever: bool
) -> None:
    """At each step the system may refuse: the home is as before, or as asked, never between.

    Where it refuses everything from there on, the next run brings the home there.
    """
    wanted = _migrated(quick_path / "whole", SHAPES[shape])
    root = quick_path / "failed" / "home"

    def attempt(step: int) -> bool:
        shutil.rmtree(root.parent, ignore_errors=True)
        root.mkdir(parents=True)
        SHAPES[shape](root)
        before = tree_of(root)
        try:
            with failing(step, number, for_ever=for_ever), counting() as steps:
                migrate(root)
        except OpsError:
            if (root / JOURNAL).exists() or for_ever:
                assert recover(root).outcome in ("completed", "rolled back", "nothing to do")
            assert tree_of(root) == before or _shape_of(root) == wanted
            return True
        return steps.count >= step

    until_done(attempt)


STATES = (
    "absent", "file", "newer", "equal", "open", "empty", "link", "dangling", "folder",
    "link to the root", "link to the place", "link outside",
)  # fmt: skip


def _make(root: Path, path: str, state: str, content: bytes) -> None:
    """Bring one name of a home into a state; those that lead nowhere at the end are links too."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    name = target.name
    if state in ("file", "newer", "open"):
        put(target, content, mode=0o644 if state == "open" else 0o600,
            time=NEW if state == "newer" else OLD)  # fmt: skip
    elif state in ("equal", "empty"):
        put(target, b"same" if state == "equal" else b"")
    elif state == "folder":
        put(target / "inside", content)
    elif state in ("link", "link outside"):
        real = root / f"data/{content.hex()}" if state == "link" else root.parent / content.hex()
        target.symlink_to(put(real, content))
    elif state != "absent":
        places = {"link to the root": root / name, "link to the place": root / PLACE_OF[name]}
        place = places.get(state, Path("nowhere"))
        target.symlink_to(place if place != target else "nowhere")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    states=st.lists(
        st.tuples(st.sampled_from(STATES), st.sampled_from(STATES)), min_size=4, max_size=4
    )
)
def test_whatever_stands_there_nothing_is_lost(states: list[tuple[str, str]]) -> None:
    """For every mixture: each content is somewhere, a second run changes nothing, all is private.

    What a link out of the home leads to may stay there; it is in the home as well.
    """
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "home"
        root.mkdir()
        for name, (at_root, in_place) in zip(LEGACY_PLACES, states, strict=True):
            _make(root, name, at_root, f"root {name}".encode())
            _make(root, LEGACY_PLACES[name], in_place, f"place {name}".encode())
        held = {content for content in files(root.parent).values() if isinstance(content, bytes)}

        report = migrate(root)

        after = files(root.parent)
        assert held <= {content for content in after.values() if isinstance(content, bytes)}
        assert not [path for path in after if "sagewai-ops" in path]
        for item in report.items:
            if item.action not in (Action.LEAVE, Action.MANAGED):
                assert not os.path.lexists(root / item.name)
                assert (root / item.place).is_file()
            if item.action in (Action.MOVE, Action.REPLACE):
                assert (root / item.place).lstat().st_mode & 0o777 == 0o600
        assert unchanged_by_a_second_run(root)


def test_interrupted_run_meets_a_new_document(root: Path) -> None:
    """Sagewai started in between and made an empty state: both are there at the end."""
    flat(root)
    killed = killed_at(_step_of_the_first_move(root), lambda: migrate(root))
    assert killed
    assert (root / JOURNAL).exists()
    put(root / "config/admin-state.json", b"made during it", time=NEW)

    report = migrate(root)

    assert report.recovered == "rolled back"
    assert (root / "config/admin-state.json").read_bytes() == b"made during it"
    assert (root / kept(report, "admin-state.json")).read_bytes() == b"admin-state.json"
    assert not (root / JOURNAL).exists()


def test_interrupted_run_is_reported_by_a_dry_run(root: Path) -> None:
    """The dry run reports that the interrupted one comes first, and changes nothing."""
    flat(root)
    killed_at(_step_of_the_first_move(root), lambda: migrate(root))
    before = tree_of(root)

    report = migrate(root, dry_run=True)

    assert any("a pending migration" in warning for warning in report.warnings)
    assert tree_of(root) == before
    assert migrate(root).recovered == "finished"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"state": "moving", "steps": [{"kind": "move", "source": "../x", "target": "y"}]}',
        b'{"state": "done", "steps": [{"kind": "move", "target": "db/x", "removes": true}]}',
        b"[" * 100_000,
    ],
)
def test_journal_that_is_none_of_ours_is_refused(root: Path, content: bytes) -> None:
    """A journal that leads out of the home, or removes what is not ours, moves nothing."""
    flat(root)
    put(root / JOURNAL, content)
    before = tree_of(root)

    with pytest.raises(OpsError, match="unusable"):
        migrate(root)

    assert tree_of(root) == before


def test_journal_that_others_may_write_is_refused(root: Path) -> None:
    """The writer of the journal would decide what is moved."""
    put(root / JOURNAL, b'{"state": "done", "steps": []}', mode=0o666)

    with pytest.raises(OpsError, match="unusable"):
        migrate(root)


def _migrated(directory: Path, shape: Callable[[Path], object]) -> dict[str, object]:
    (directory / "home").mkdir(parents=True)
    shape(directory / "home")
    migrate(directory / "home")
    return _shape_of(directory / "home")


def _shape_of(root: Path) -> dict[str, object]:
    """Map paths to modes and contents; what is kept loses its moment."""
    return {
        path.partition(".legacy-")[0] + ("kept" if ".legacy-" in path else ""): (mode, content)
        for path, (mode, _, _, content) in tree_of(root).items()
        if path != "."
    }


def _step_of_the_first_move(root: Path) -> int:
    """Count the steps until the first document is moved, on a copy of a home."""
    copy = root.with_name("counted")
    shutil.copytree(root, copy)
    moves: list[int] = []

    def note(number: int, name: str, path: object) -> None:
        if name == "rename" and Path(str(path)).name in LEGACY_PLACES:
            moves.append(number)

    with counting(note):
        migrate(copy)
    shutil.rmtree(copy)
    return moves[0]


@contextlib.contextmanager
def _other_file_system(root: Path) -> Iterator[Path]:
    """Yield a directory on another device than the home's."""
    base = Path("/dev/shm")
    if not base.is_dir() or base.stat().st_dev == root.stat().st_dev:
        pytest.skip("only one file system here")
    directory = Path(tempfile.mkdtemp(dir=base))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
