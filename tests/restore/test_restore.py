"""Restoring: the home comes back as it was, private, with its key, or the target is untouched."""

import contextlib
import dataclasses
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import real_homes
from archives import DIRECTORY, MOMENT_NS, STATE, forge, write
from archives import small as small_archive
from other_process import running
from program import call
from round_trips import (
    assert_same_home,
    assert_same_rows,
    bring_back,
    expected_of,
    found_in,
    leftovers_beside,
    snapshot_of,
)
from sagewai_ops.archive.age import Decryption, Encryption, temporary_identity
from sagewai_ops.archive.manifest import (
    FORMAT_VERSION,
    Entry,
    EntryType,
    Header,
    encode_header,
)
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    SchemaAheadError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import locate
from sagewai_ops.keys.candidates import fingerprint
from sagewai_ops.permissions.scan import inspect
from sagewai_ops.progress import Progress
from sagewai_ops.restore import restore as restoring
from sagewai_ops.restore.access import count_access
from sagewai_ops.restore.plan import RestoreOptions, RestorePlan, build_plan, plan_restore
from sagewai_ops.restore.undo import undo_restore
from sagewai_ops.snapshots.database_check import Check, DatabaseFacts, examine_database
from small_homes import everything_of, small
from unprivileged import NO_USER, reachable_directory, unprivileged

pytestmark = pytest.mark.in_memory  # these tests sync often

IS_ROOT = os.geteuid() == 0
OTHER_KEY = b"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the umask that the test asks for."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o077], indirect=True)
@pytest.mark.parametrize("name", real_homes.NAMES)
@pytest.mark.usefixtures("umask")
def test_home_that_sagewai_wrote_comes_back(tmp_path: Path, name: str) -> None:
    """Content, links, times, empty directories and rows are the source's; modes are the rules'."""
    source = real_homes.unpack(name, tmp_path)

    report = bring_back(snapshot_of(source), tmp_path / "there", key_home=source)

    # The administrator's own key files come along as far as something is under them.
    own = [] if name != "legacy-both-differ" else ["master.key"]
    assert_same_home(source, tmp_path / "there", *own)
    assert not report.keys.unopened
    assert leftovers_beside(tmp_path / "there") == []


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_home_that_sagewai_wrote_is_replaced_by_itself(tmp_path: Path, name: str) -> None:
    """In place, the own key files stay where they were, and all of the old home is kept."""
    source = real_homes.unpack(name, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, symlinks=True)
    before = everything_of(source)

    report = bring_back(snapshot_of(source), source, replace=True)

    own = [] if name != "legacy-both-differ" else ["master.key"]
    assert found_in(source).keys() == expected_of(copy, source, *own).keys()
    assert_same_rows(copy, source)
    assert [warning for warning in report.warnings if "opens nothing in" in warning] == [
        f"{source / path}: key {fingerprint((copy / path).read_bytes())} opens nothing in the "
        "snapshot, kept with the previous home"
        for path in own
    ]
    assert report.previous is not None
    assert everything_of(report.previous) == before


@pytest.mark.parametrize(
    "recipe",
    [
        {"journal": "everything", "artifacts": True},
        {"journal": "tail", "vectors": 3, "newline_names": True, "artifacts": True},
        {"journal": "none", "undecodable_names": True, "long_names": True, "artifacts": True},
        {"layout": "flat", "leftovers": True},
        {"keys": 0, "own_table": True, "own_column": True},
        {"orphans": 2, "lookalikes": True, "sockets": True, "links_out": True, "artifacts": True},
    ],
    ids=lambda recipe: "-".join(recipe),
)
def test_built_home_comes_back(tmp_path: Path, recipe: dict[str, object]) -> None:
    """All that a snapshot contains of a home is restored."""
    built = small(tmp_path / "home", **recipe)

    bring_back(snapshot_of(built.root), tmp_path / "there", key_home=built.root)

    assert_same_home(built.root, tmp_path / "there", *built.left_out)


def test_holes_and_empty_directories_come_back(tmp_path: Path) -> None:
    """A sparse file takes no more room than it did, and a directory with nothing in it is there."""
    root = small(tmp_path / "home").root
    (root / "data/nothing").mkdir(parents=True)
    with open(root / "data/sparse", "wb") as stream:
        stream.seek(50_000_000)
        stream.write(b"end")

    bring_back(snapshot_of(root), tmp_path / "there", key_home=root)

    assert_same_home(root, tmp_path / "there")
    assert (tmp_path / "there/data/sparse").stat().st_blocks * 512 < 1_000_000
    assert (tmp_path / "there/data/nothing").is_dir()


def test_open_modes_of_an_archive_do_not_come_back(tmp_path: Path) -> None:
    """A hostile mode has no effect: secrets are private, and no set-user-id bit survives."""
    secrets = Entry("secrets", EntryType.DIRECTORY, 0o777, MOMENT_NS)
    profiles = Entry("secrets/profiles.json", EntryType.FILE, 0o666, MOMENT_NS)
    data = Entry("data", EntryType.DIRECTORY, 0o3777, MOMENT_NS)
    tool = Entry("data/tool", EntryType.FILE, 0o6755, MOMENT_NS)
    config = dataclasses.replace(DIRECTORY, mode=0o777)
    state = dataclasses.replace(STATE, mode=0o666)
    archive = forge(
        tmp_path / "a.tar.zst",
        [(config, b""), (state, b"{}"), (data, b""), (tool, b"x"), (secrets, b""), (profiles, b"")],
    )

    bring_back(archive, tmp_path / "there")

    modes = {path: stat.S_IMODE(found[0]) for path, found in found_in(tmp_path / "there").items()}
    assert modes["secrets"] == 0o700
    assert modes["secrets/profiles.json"] == 0o600
    assert modes["config"] & 0o022 == 0
    assert modes["config/admin-state.json"] == 0o600
    assert modes["data"] & 0o7000 == 0
    assert modes["data/tool"] == 0o755
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) & 0o022 == 0


def test_home_that_a_process_has_open_is_left_alone(tmp_path: Path) -> None:
    """The process is named, and nothing is touched."""
    root = small(tmp_path / "home").root
    archive = snapshot_of(root)
    hold = (
        "import sqlite3\nc = sqlite3.connect(sys.argv[1])\n"
        "c.execute('SELECT count(*) FROM sqlite_master').fetchall()\npause()\npause()\n"
    )
    with running(hold, str(root / "db/sagewai.db")) as other:
        before = everything_of(root)
        with pytest.raises(TargetBusyError, match=f"pid {other.pid} "):
            bring_back(archive, root, replace=True)

        assert everything_of(root) == before
    assert leftovers_beside(root) == []


def test_process_that_starts_during_the_extraction_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has the database open is asked again right before names change."""
    root = small(tmp_path / "home").root
    archive = snapshot_of(root)
    before = everything_of(root)

    def refuse(*_arguments: object) -> None:
        raise TargetBusyError("database: in use by pid 1")

    monkeypatch.setattr(restoring, "require_target_unused", refuse)

    with pytest.raises(TargetBusyError):
        bring_back(archive, root, replace=True)

    assert everything_of(root) == before
    assert leftovers_beside(root) == []


def test_directory_that_is_not_empty_needs_replace(tmp_path: Path) -> None:
    """Without `replace` it is refused and stays as it is."""
    target = tmp_path / "there"
    target.mkdir()
    (target / "note").write_text("mine")

    with pytest.raises(TargetBusyError, match="not empty"):
        bring_back(small_archive(tmp_path / "a.tar.zst"), target)

    assert os.listdir(target) == ["note"]
    assert leftovers_beside(target) == []


def test_what_appears_in_the_meantime_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two init containers start at once: an absent target has no lock, and one is the first."""
    target = tmp_path / "there"

    def come_second(*arguments: Any) -> RestorePlan:
        plan = build_plan(*arguments)
        (target / "config").mkdir(parents=True)
        (target / "config/admin-state.json").write_text("theirs")
        return plan

    monkeypatch.setattr(restoring, "build_plan", come_second)
    with pytest.raises(TargetBusyError, match="not empty any more"):
        bring_back(small_archive(tmp_path / "a.tar.zst"), target)

    assert (target / "config/admin-state.json").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "there"]


def test_file_in_the_target_s_place_is_refused(tmp_path: Path) -> None:
    """A home is a directory; a file at its path is not replaced."""
    (tmp_path / "there").write_text("mine")

    with pytest.raises(TargetBusyError, match="not a directory"):
        bring_back(small_archive(tmp_path / "a.tar.zst"), tmp_path / "there", replace=True)


def test_without_any_key_it_is_refused(tmp_path: Path) -> None:
    """Values that nothing opens are not brought back by accident; nothing is left of the try."""
    root = small(tmp_path / "home").root

    with pytest.raises(KeyMissingError, match="tried none"):
        bring_back(snapshot_of(root), tmp_path / "deep/there")

    assert sorted(os.listdir(tmp_path)) == ["home", "home.snapshots"]


def test_wrong_key_file_is_refused_even_if_another_key_would_do(tmp_path: Path) -> None:
    """Who names a key means it: one that opens nothing is a mistake."""
    built = small(tmp_path / "home")
    (tmp_path / "wrong").write_bytes(OTHER_KEY)

    with pytest.raises(KeyMissingError, match="opens none of"):
        bring_back(
            snapshot_of(built.root),
            tmp_path / "there",
            key_home=built.root,
            key_file=tmp_path / "wrong",
        )

    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("umask", [0o000, 0o077], indirect=True)
@pytest.mark.usefixtures("umask")
def test_key_file_becomes_the_home_s_own(tmp_path: Path) -> None:
    """It is installed as 44 characters with mode 0600, in a directory with mode 0700."""
    built = small(tmp_path / "home")
    (tmp_path / "named").write_bytes(built.master_keys[0] + b"\n")

    report = bring_back(snapshot_of(built.root), tmp_path / "there", key_file=tmp_path / "named")

    place = tmp_path / "there/secrets/master.key"
    assert place.read_bytes() == built.master_keys[0]
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert report.key_installed
    assert report.key_source == "--key-file"


def test_without_key_restores_and_says_what_stays_closed(tmp_path: Path) -> None:
    """The warning names the file where the key must be before Sagewai starts."""
    root = small(tmp_path / "home").root

    report = bring_back(snapshot_of(root), tmp_path / "there", without_key=True)

    assert not (tmp_path / "there/secrets/master.key").exists()
    assert any("secrets/master.key" in warning for warning in report.warnings)
    assert report.keys.unopened


def test_key_of_the_environment_opens_and_is_not_written_down(tmp_path: Path) -> None:
    """A key that lives outside the home stays outside."""
    built = small(tmp_path / "home")
    variables = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}

    report = bring_back(snapshot_of(built.root), tmp_path / "there", environment=variables)

    assert report.key_source == "SAGEWAI_MASTER_KEY"
    assert not report.key_installed
    assert not (tmp_path / "there/secrets/master.key").exists()


def test_own_key_file_is_kept_though_the_environment_has_the_key_too(tmp_path: Path) -> None:
    """A home does not lose its key file because another source was asked first."""
    built = small(tmp_path / "home")
    archive = snapshot_of(built.root)
    variables = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}

    bring_back(archive, built.root, replace=True, environment=variables)

    assert (built.root / "secrets/master.key").read_bytes().strip() == built.master_keys[0]


def test_own_key_file_is_kept_though_nothing_is_sealed_yet(tmp_path: Path) -> None:
    """A home fresh from `init` has a key and no sealed values; it keeps the key."""
    root = small(tmp_path / "home", keys=0).root
    (root / "secrets").mkdir(exist_ok=True)
    (root / "secrets/master.key").write_bytes(OTHER_KEY)
    (root / "secrets/master.key").chmod(0o600)

    bring_back(snapshot_of(root), root, replace=True)

    assert (root / "secrets/master.key").read_bytes() == OTHER_KEY


def test_key_of_another_home_does_not_come_along(tmp_path: Path) -> None:
    """What opens nothing in the snapshot stays with the home that it was for."""
    built = small(tmp_path / "home")
    other = small(tmp_path / "other", keys=0).root
    (other / "secrets").mkdir(exist_ok=True)
    (other / "secrets/master.key").write_bytes(OTHER_KEY)

    report = bring_back(snapshot_of(built.root), other, replace=True, key_home=built.root)

    assert (other / "secrets/master.key").read_bytes() == built.master_keys[0]
    assert report.previous is not None
    assert (report.previous / "secrets/master.key").read_bytes() == OTHER_KEY


def test_key_in_a_sealed_archive_needs_no_other(tmp_path: Path) -> None:
    """With `--key sealed` the archive is enough to bring the home back."""
    built = small(tmp_path / "home")
    recipient, identity = temporary_identity()
    archive = snapshot_of(
        built.root, encryption=Encryption(recipients=(recipient,)), custody="sealed"
    )
    shutil.rmtree(built.root)

    report = bring_back(archive, built.root, decryption=Decryption(identities=(identity,)))

    assert (built.root / "secrets/master.key").read_bytes() == built.master_keys[0]
    assert not report.keys.unopened


def test_sealed_archive_restores_the_key_in_use_over_an_unused_file(tmp_path: Path) -> None:
    """Where the environment's key shadowed a file, the home gets the one, and the other aside."""
    built = small(tmp_path / "home")
    (built.root / "secrets/master.key").write_bytes(OTHER_KEY)
    variables = {"SAGEWAI_MASTER_KEY": built.master_keys[0].decode()}
    recipient, identity = temporary_identity()
    archive = snapshot_of(
        built.root,
        encryption=Encryption(recipients=(recipient,)),
        custody="sealed",
        environment=variables,
    )

    report = bring_back(archive, tmp_path / "there", decryption=Decryption(identities=(identity,)))

    assert (tmp_path / "there/secrets/master.key").read_bytes() == built.master_keys[0]
    aside = tmp_path / "there/external/master.key"
    assert aside.read_bytes() == OTHER_KEY
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert any("external/master.key" in warning for warning in report.warnings)


def test_encrypted_archive_without_identity_is_refused(tmp_path: Path) -> None:
    """Nothing is written for an archive that does not open."""
    recipient, _identity = temporary_identity()
    archive = small_archive(tmp_path / "a.tar.zst.age", Encryption(recipients=(recipient,)))

    with pytest.raises(KeyMissingError):
        bring_back(archive, tmp_path / "there")

    assert os.listdir(tmp_path) == ["a.tar.zst.age"]


def test_home_of_several_keys_keeps_its_own(tmp_path: Path) -> None:
    """Values that the source could not open are no reason to refuse, and are named."""
    built = small(tmp_path / "home", keys=3)
    archive = snapshot_of(built.root)

    report = bring_back(archive, built.root, replace=True)

    assert (built.root / "secrets/master.key").read_bytes().strip() == built.master_keys[0]
    assert any("open with no key, as when" in warning for warning in report.warnings)


def test_home_runs_on_its_own_key_though_another_opens_more(tmp_path: Path) -> None:
    """The key that the home had comes back, not the one that happens to open the most."""
    built = small(tmp_path / "home", keys=2)
    archive = snapshot_of(built.root)
    (built.root / "master.key").write_bytes(built.master_keys[1])

    report = bring_back(archive, built.root, replace=True)

    assert (built.root / "secrets/master.key").read_bytes().strip() == built.master_keys[0]
    assert (built.root / "master.key").read_bytes() == built.master_keys[1]
    assert not report.keys.unopened
    assert report.plan.key_fingerprint == fingerprint(built.master_keys[0])


def test_archive_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    """A flipped bit, wherever it is, leaves target and directory as they were."""
    whole = small_archive(tmp_path / "a.tar.zst").read_bytes()
    damaged = tmp_path / "b.tar.zst"
    target = tmp_path / "there"
    target.mkdir()
    (target / "note").write_text("mine")

    for place in {*range(0, len(whole), 11), *range(40), *range(len(whole) - 40, len(whole))}:
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DamagedError):
            bring_back(damaged, target, replace=True)

        assert os.listdir(target) == ["note"]
        assert sorted(os.listdir(tmp_path)) == ["a.tar.zst", "b.tar.zst", "there"]


def test_archive_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """A truncated archive is damaged."""
    whole = small_archive(tmp_path / "a.tar.zst").read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "b.tar.zst").write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            bring_back(tmp_path / "b.tar.zst", tmp_path / "there")

    assert not (tmp_path / "there").exists()


def test_database_that_is_none_is_damage(tmp_path: Path) -> None:
    """A file that is no database in the place of one is not put into a home."""
    directory = Entry("db", EntryType.DIRECTORY, 0o755, MOMENT_NS)
    database = Entry("db/sagewai.db", EntryType.FILE, 0o600, MOMENT_NS)
    archive = forge(tmp_path / "a.tar.zst", [(directory, b""), (database, b"no database" * 500)])

    with pytest.raises(DamagedError):
        bring_back(archive, tmp_path / "there")

    assert os.listdir(tmp_path) == ["a.tar.zst"]


def test_database_that_is_not_what_its_manifest_says_is_damage(tmp_path: Path) -> None:
    """Row counts are compared with those that were recorded when the snapshot was taken."""
    root = small(tmp_path / "home").root
    bring_back(snapshot_of(root), tmp_path / "clean", key_home=root)
    directory = Entry("db", EntryType.DIRECTORY, 0o755, MOMENT_NS)
    database = Entry("db/sagewai.db", EntryType.FILE, 0o600, MOMENT_NS)
    archive = forge(
        tmp_path / "a.tar.zst",
        [(directory, b""), (database, (tmp_path / "clean/db/sagewai.db").read_bytes())],
        manifest=lambda content: content.replace(
            b'\n "entries"',
            b'\n "database": {"tables": {"org": 99}, "integrity": ["ok"], "page_size": 4096,'
            b' "page_count": 9, "schema_level": "", "schema_state": "", "unknown_tables": [],'
            b' "foreign_key_violations": 0, "foreign_key_tables": []},\n "entries"',
            1,
        ),
    )

    with pytest.raises(DamagedError, match="differs from its manifest"):
        bring_back(archive, tmp_path / "there", without_key=True)

    assert not (tmp_path / "there").exists()


def test_newer_format_is_refused(tmp_path: Path) -> None:
    """A format that this program does not know is not guessed at."""
    archive = forge(
        tmp_path / "a.tar.zst",
        [(DIRECTORY, b"")],
        header=encode_header(Header("test", format_version=FORMAT_VERSION + 1)),
    )

    with pytest.raises(SchemaAheadError, match=f"format {FORMAT_VERSION + 1}"):
        bring_back(archive, tmp_path / "there")


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    """A database ahead of this program is not put into a home."""
    archive = forge(
        tmp_path / "a.tar.zst",
        [(DIRECTORY, b"")],
        header=encode_header(Header("test", facts={"schema_level": "099_future"})),
    )

    with pytest.raises(SchemaAheadError, match="099_future"):
        bring_back(archive, tmp_path / "there")


def test_unknown_columns_are_restored_and_reported(tmp_path: Path) -> None:
    """A column of the user's own is no reason to keep him from his home."""
    built = small(tmp_path / "home", journal="none")
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        connection.execute("ALTER TABLE workers ADD COLUMN of_the_user TEXT DEFAULT 'kept'")
        connection.commit()

    report = bring_back(snapshot_of(built.root), tmp_path / "there", key_home=built.root)

    assert "columns unknown to this program" in report.warnings[0]
    assert_same_rows(built.root, tmp_path / "there")


def _file(path: str, **changes: object) -> tuple[Entry, bytes]:
    entry = Entry(path, EntryType.FILE, 0o600, MOMENT_NS)
    return dataclasses.replace(entry, **changes), b"hostile"  # type: ignore[arg-type]


def _link(path: str, target: str) -> tuple[Entry, bytes]:
    return Entry(path, EntryType.LINK, 0o777, MOMENT_NS, target=target), b""


def _directory(path: str) -> tuple[Entry, bytes]:
    return Entry(path, EntryType.DIRECTORY, 0o755, MOMENT_NS), b""


HOSTILE = {
    "absolute": [_file("/tmp/sagewai-ops-hostile")],
    "up": [_file("../hostile")],
    "up inside": [_directory("config"), _file("config/../../hostile")],
    "link out": [_link("config", "/etc")],
    "link up": [_link("config", "../outside")],
    "link out by another": [
        _directory("data"),
        _directory("data/a"),
        _link("data/a/up", "../.."),
        _link("sessions", "data/a/up/data/a/up/data/../../evil"),
        _link("data/b", "a/up/data/a/up"),
        _link("out", "data/b/.."),
    ],
    "link for a document": [_directory("config"), _link("config/connections.json", "../note")],
    "link for the secrets": [_directory("data"), _link("secrets", "data")],
    "through a link": [_link("config", "data"), _directory("data"), _file("config/hostile")],
    "twice": [_file("note"), _file("note")],
    "file as a directory": [_file("config"), _file("config/hostile")],
    "no directory": [_file("config/hostile")],
    "sidecar": [_directory("db"), _file("db/sagewai.db-wal")],
    "lock": [_directory("config"), _file("config/admin-state.json.lock")],
    "our own name": [_file(".sagewai-ops-staging")],
    "our own directory": [_directory(".sagewai-ops-before-restore-20200101T000000000000Z")],
    "time": [_file("note", mtime_ns=10**30)],
    "one place by two ways": [
        _directory("external"),
        _directory("external/home"),
        _file("external/home/note"),
        _file("note"),
    ],
    "link by another way": [
        _directory("external"),
        _directory("external/home"),
        _link("external/home/config", "data"),
        _directory("data"),
        _directory("config"),
        _file("config/hostile"),
    ],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archive_is_refused(tmp_path: Path, members: list[tuple[Entry, bytes]]) -> None:
    """Nothing is written outside the staging, and nothing of that is left."""
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = forge(tmp_path / "a.tar.zst", members)
    before = everything_of(tmp_path)

    with pytest.raises(DamagedError):
        bring_back(archive, tmp_path / "there")

    assert everything_of(tmp_path).keys() == before.keys()
    assert not Path("/tmp/sagewai-ops-hostile").exists()


@pytest.mark.parametrize(
    "facts",
    [
        b'"home": 7,',
        b'"home": {"mode": "rwx", "uid": -5, "gid": 99999999999, "mtime_ns": 1e99},',
        b'"home": {"mode": "7777", "mtime_ns": 99999999999999999999999999},',
        b'"keys": [1], "left_out": 3, "external": "no", "database": [],',
        b'"external": [],',
        b'"external": 3,',
        b'"external": "x",',
        b'"external": {"external/NOTHING": 1},',
        b'"keys": {"total": "many", "unopened": {"a": 1}}, "left_out": [1, {}],',
        b'"keys": {"unopened": [4, {"place": []}]}, "database": {"tables": 5},',
    ],
)
def test_manifest_with_facts_of_the_wrong_type_is_damaged(tmp_path: Path, facts: bytes) -> None:
    """Its facts are checked like its members, before they are used."""
    archive = forge(
        tmp_path / "a.tar.zst",
        [(DIRECTORY, b""), (STATE, b"{}")],
        manifest=lambda content: content.replace(b'\n "entries"', facts + b'\n "entries"', 1),
    )

    with pytest.raises(DamagedError, match=r"manifest\.json: field"):
        bring_back(archive, tmp_path / "there")

    assert os.listdir(tmp_path) == ["a.tar.zst"]


@pytest.mark.parametrize("name", [b'"\\ud800xx"', b'"x\\u0000x"', b"17", b'"config/.."'])
def test_name_that_is_none_is_damage(tmp_path: Path, name: bytes) -> None:
    """JSON can contain names that are invalid on any system; they are refused."""
    archive = forge(
        tmp_path / "a.tar.zst",
        [_file("NAMED")],
        manifest=lambda content: content.replace(b'"NAMED"', name),
    )

    with pytest.raises(DamagedError):
        bring_back(archive, tmp_path / "there")

    assert os.listdir(tmp_path) == ["a.tar.zst"]


@contextlib.contextmanager
def mounted(place: Path, *words: str) -> Iterator[None]:
    """Mount something for the length of the block, where root can."""
    done = subprocess.run(["mount", *words, str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("is_known_before", [True, False])
def test_disk_that_is_too_small_is_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_known_before: bool
) -> None:
    """Whether it is seen at once or met in the middle, nothing is left on it."""
    noise = Entry("data/noise", EntryType.FILE, 0o644, MOMENT_NS)
    archive = write(tmp_path / "a.tar.zst", [_directory("data"), (noise, os.urandom(3_000_000))])
    if not is_known_before:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    disk = tmp_path / "disk"
    disk.mkdir()

    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        with pytest.raises(NoSpaceError):
            bring_back(archive, disk / "there")

        assert os.listdir(disk) == []


@pytest.mark.skipif(not IS_ROOT, reason="only root changes owners")
def test_impossible_owner_is_refused(tmp_path: Path) -> None:
    """It is not a number that the system has for a user."""
    archive = forge(tmp_path / "a.tar.zst", [_file("note", uid=2**40)])

    with pytest.raises(DamagedError):
        bring_back(archive, tmp_path / "there", same_owner=True)

    assert not (tmp_path / "there").exists()


@pytest.mark.skipif(not IS_ROOT, reason="only root changes owners")
@pytest.mark.parametrize("layout", ["canonical", "flat"])
def test_owner_comes_back_for_root_on_request(tmp_path: Path, layout: str) -> None:
    """With --same-owner, what a restore itself writes or makes has the recorded owner too."""
    root = small(tmp_path / "home", layout=layout).root
    key = tmp_path / "key"
    shutil.copy(next(root.rglob("master.key")), key)
    for path in [root, *root.rglob("*")]:
        os.chown(path, NO_USER, NO_USER, follow_symlinks=False)
    archive, homes = snapshot_of(root), (root, tmp_path / "there")

    for home in homes:
        bring_back(
            archive,
            home,
            key_file=key,
            replace=True,
            revoke_sessions=True,
            rebind_fleet=True,
            same_owner=True,
        )

    for home in homes:
        restored = [home, *home.rglob("*")]
        owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in restored}
        assert owners == {(NO_USER, NO_USER)}


@pytest.mark.skipif(not IS_ROOT, reason="the archive must contain files of another user")
def test_restore_without_root_creates_own_files() -> None:
    """Owners are not changed, and read-only directories are restored, too."""
    with reachable_directory() as directory:
        root = small(directory / "home").root
        (root / "data/closed").mkdir(parents=True)
        (root / "data/closed/note").write_text("x")
        (root / "data/closed").chmod(0o555)
        archive = snapshot_of(root)
        shutil.copy(root / "secrets/master.key", directory / "key")
        for path in (archive.parent, archive, directory / "key"):
            os.chown(path, NO_USER, NO_USER)
        with unprivileged():
            with pytest.raises(KeyMissingError):
                bring_back(archive, directory / "refused")
            assert leftovers_beside(directory / "refused") == []

            bring_back(archive, directory / "there", key_file=directory / "key")

            # Compared as user `nobody`, too: root can read everything.
            assert stat.S_IMODE((directory / "there/data/closed").stat().st_mode) == 0o555

        restored = [directory / "there", *(directory / "there").rglob("*")]
        assert {path.lstat().st_uid for path in restored} == {NO_USER}
        assert (directory / "there/data/closed/note").read_text() == "x"


def test_home_that_is_a_link_is_replaced_behind_it(tmp_path: Path) -> None:
    """The link stays, and what it leads to is exchanged."""
    root = small(tmp_path / "real").root
    (tmp_path / "home").symlink_to("real")
    archive = snapshot_of(root)
    (root / "extra").write_text("x")

    report = bring_back(archive, tmp_path / "home", replace=True)

    assert os.readlink(tmp_path / "home") == "real"
    assert not (root / "extra").exists()
    assert report.previous is not None
    assert report.previous.name.startswith("real.before-restore-")


def _check_entries(archive: Path, home: Path) -> None:
    """Restore over a home whose name cannot be exchanged, take it back, and forth again."""
    (home / "extra").write_text("x")
    before = found_in(home)

    report = bring_back(archive, home, replace=True)

    assert report.plan.paths is not None
    assert report.previous is not None
    assert report.previous.parent == home
    assert not (home / "extra").exists()
    after = {path: found for path, found in found_in(home).items() if path[0] != "."}
    for expected in (before, after):
        undo_restore(locate(home, {}))
        found = {path: entry for path, entry in found_in(home).items() if path[0] != "."}
        assert found.keys() == expected.keys()
        assert {path: entry[2] for path, entry in found.items()} == {
            path: entry[2] for path, entry in expected.items()
        }
    assert leftovers_beside(home) == []


def test_home_that_is_a_mount_point_is_restored_entry_by_entry(tmp_path: Path) -> None:
    """A container's volume keeps its mount, and undo works in it."""
    root = small(tmp_path / "volume", journal="none").root
    archive = snapshot_of(root)
    home = tmp_path / "home"
    home.mkdir()
    with mounted(home, "--bind", str(root)):
        _check_entries(archive, home)


def test_home_whose_parent_is_not_ours_is_restored_entry_by_entry() -> None:
    """Who may not rename the home itself still gets it back, and back again."""
    with reachable_directory() as directory:
        parent = directory / "parent"
        parent.mkdir()
        root = small(parent / "home", journal="none").root
        archive = snapshot_of(root, directory=directory / "snapshots")
        for path in [root, *root.rglob("*"), archive.parent, archive]:
            if IS_ROOT:
                os.chown(path, NO_USER, NO_USER, follow_symlinks=False)
        parent.chmod(0o555)
        with unprivileged():
            _check_entries(archive, root)


def test_mount_inside_a_home_is_not_left_behind(tmp_path: Path) -> None:
    """A home that holds a file system of its own is refused: it would not move along."""
    root = small(tmp_path / "home").root
    (root / "data").mkdir(exist_ok=True)
    archive = snapshot_of(root)
    (tmp_path / "models").mkdir()

    with mounted(root / "data", "--bind", str(tmp_path / "models")):
        before = everything_of(root)
        with pytest.raises(TargetBusyError, match="a mount point"):
            bring_back(archive, root, replace=True)
        assert everything_of(root) == before

        bring_back(archive, root, only=("config",))
    assert leftovers_beside(root) == []


def test_only_config_leaves_the_rest(tmp_path: Path) -> None:
    """A part is exchanged as it is in the snapshot; what else there is stays."""
    root = small(tmp_path / "home").root
    archive = snapshot_of(root)
    state = (root / "config/admin-state.json").read_bytes()
    (root / "config/admin-state.json").write_bytes(b"{}")
    (root / "config/extra").write_text("x")
    (root / "note").write_text("mine")

    report = bring_back(archive, root, only=("config",))

    assert (root / "config/admin-state.json").read_bytes() == state
    assert not (root / "config/extra").exists()
    assert (root / "note").read_text() == "mine"
    assert report.plan.paths == ("config",)
    assert report.previous is not None
    assert (report.previous / "config/extra").read_text() == "x"


@pytest.mark.parametrize("part", ["db", "db/sagewai.db"])
@pytest.mark.parametrize("has_others", [False, True])
def test_only_the_database_takes_its_sidecars_away(
    tmp_path: Path, part: str, *, has_others: bool
) -> None:
    """The log of the other database would be played into this one; undo brings both back."""
    built = small(tmp_path / "home")
    archive = snapshot_of(built.root)
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        connection.execute("DELETE FROM prompt_logs")
        connection.commit()
    shutil.copytree(built.root, tmp_path / "changed")
    log = b"not the log of the restored database"
    (built.root / "db/sagewai.db-wal").write_bytes(log)
    if has_others:
        (built.root / "db/own.txt").write_text("mine")

    bring_back(archive, built.root, only=(part,))

    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        assert connection.execute("SELECT count(*) FROM prompt_logs").fetchone() == (1,)
    assert (built.root / "db/own.txt").exists() == (has_others and part == "db/sagewai.db")
    undo_restore(locate(built.root, {}))
    assert (built.root / "db/sagewai.db-wal").read_bytes() == log
    assert built.database.read_bytes() == (tmp_path / "changed/db/sagewai.db").read_bytes()
    assert (built.root / "db/own.txt").exists() == has_others


def test_only_a_file_is_restored_with_the_directories_above_it(tmp_path: Path) -> None:
    """Directories that are missing come back with their modes and times."""
    root = small(tmp_path / "home").root
    (root / "data/a/b").mkdir(parents=True)
    (root / "data/a/b/note").write_text("x")
    (root / "data/a/b/other").write_text("y")
    (root / "data/a/b").chmod(0o750)
    os.utime(root / "data/a/b", ns=(MOMENT_NS, MOMENT_NS))
    archive = snapshot_of(root)
    shutil.rmtree(root / "data/a")

    bring_back(archive, root, only=("data/a/b/note",))

    assert os.listdir(root / "data/a/b") == ["note"]
    status = (root / "data/a/b").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o750, MOMENT_NS)


def test_part_that_is_not_in_the_snapshot_is_not_found(tmp_path: Path) -> None:
    """Each part that is asked for must be there, not just one of them."""
    root = small(tmp_path / "home").root
    archive = snapshot_of(root)
    (root / "nothing").write_text("mine")
    before = everything_of(root)

    with pytest.raises(NotFoundError, match="nothing not found in it"):
        bring_back(archive, root, only=("config", "nothing"))

    assert everything_of(root) == before


@pytest.mark.parametrize("part", ["../other", "config/../..", "/", "."])
def test_part_that_leads_out_of_the_home_is_refused(tmp_path: Path, part: str) -> None:
    """Files next to the home are never moved, whatever the options."""
    root = small(tmp_path / "home").root
    (tmp_path / "other").write_text("mine")

    with pytest.raises(UsageError):
        bring_back(snapshot_of(root), root, only=("config", part))

    assert (tmp_path / "other").read_text() == "mine"


def test_key_file_without_secrets_is_a_contradiction(tmp_path: Path) -> None:
    """A key that would be installed nowhere is refused rather than passed over."""
    built = small(tmp_path / "home")

    with pytest.raises(UsageError, match="secrets"):
        bring_back(snapshot_of(built.root), built.root, only=("config",), key_file=built.master_key)


def test_only_secrets_keeps_the_key(tmp_path: Path) -> None:
    """The directory of secrets is replaced, but the key that the archive lacks is kept."""
    built = small(tmp_path / "home")
    archive = snapshot_of(built.root)
    (built.root / "secrets/profiles.json").write_text("{}")

    bring_back(archive, built.root, only=("secrets",))

    assert built.master_key.read_bytes().strip() == built.master_keys[0]
    assert built.profiles.read_text() != "{}"


def test_plan_writes_nothing_and_is_what_the_restore_does(tmp_path: Path) -> None:
    """A dry run prints the same plan, and changes no time."""
    root = small(tmp_path / "home", journal="none").root
    archive = snapshot_of(root)
    before = everything_of(tmp_path)
    options = RestoreOptions(replace=True)

    plan = plan_restore(archive, locate(root, {}), options)

    assert everything_of(tmp_path) == before
    assert bring_back(archive, root, replace=True).plan == plan


def test_sessions_and_tokens_that_become_valid_are_counted(tmp_path: Path) -> None:
    """The report counts the access that becomes valid again."""
    root = small(tmp_path / "home").root

    report = bring_back(snapshot_of(root), tmp_path / "there", key_home=root)

    with contextlib.closing(sqlite3.connect(root / "db/sagewai.db")) as connection:
        sessions = connection.execute(
            "SELECT count(*) FROM user_session WHERE expires_at > datetime('now')"
        ).fetchone()[0]
    assert report.access.sessions >= 1 + sessions
    assert report.access.api_tokens >= 1


def test_fleet_rows_are_warned_of_where_the_path_differs(tmp_path: Path) -> None:
    """Their organisation id is made from the home's path."""
    root = small(tmp_path / "home").root
    archive = snapshot_of(root)

    elsewhere = bring_back(archive, tmp_path / "there", key_home=root)
    in_place = bring_back(archive, root, replace=True)

    assert elsewhere.access.fleet_rows > 0
    assert any("fleet rows" in warning for warning in elsewhere.warnings)
    assert not any("fleet rows" in warning for warning in in_place.warnings)


def test_document_from_outside_comes_to_its_place_in_the_home(tmp_path: Path) -> None:
    """What an override put elsewhere goes where Sagewai looks without one."""
    built = small(tmp_path / "home")
    outside = tmp_path / "connections.json"
    os.rename(built.connections, outside)
    outside.chmod(0o644)
    variables = {"SAGEWAI_CONNECTIONS_FILE": str(outside)}
    archive = snapshot_of(built.root, environment=variables)

    report = bring_back(archive, tmp_path / "there", key_home=built.root, environment=variables)

    place = tmp_path / "there/config/connections.json"
    assert place.read_bytes() == outside.read_bytes()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert any("SAGEWAI_CONNECTIONS_FILE is set" in warning for warning in report.warnings)


def test_external_document_is_restored_to_external_if_its_path_is_occupied(tmp_path: Path) -> None:
    """Neither of the two is lost, and the one aside is private whatever its mode was."""
    built = small(tmp_path / "home")
    outside = tmp_path / "connections.json"
    outside.write_bytes(b'{"version": 2, "connections": []}')
    outside.chmod(0o644)
    variables = {"SAGEWAI_CONNECTIONS_FILE": str(outside)}
    archive = snapshot_of(built.root, environment=variables)

    report = bring_back(archive, tmp_path / "there", key_home=built.root)

    aside = tmp_path / "there/external/SAGEWAI_CONNECTIONS_FILE"
    assert aside.read_bytes() == outside.read_bytes()
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert stat.S_IMODE(aside.parent.stat().st_mode) == 0o700
    assert any(str(aside) in warning for warning in report.warnings)
    own = tmp_path / "there/config/connections.json"
    assert own.read_bytes() == built.connections.read_bytes()


def test_concurrent_restores_are_serialized(tmp_path: Path) -> None:
    """A home that another run holds is refused."""
    root = small(tmp_path / "home").root
    archive = snapshot_of(root)

    with locks.exclusive(root), pytest.raises(LockedError):
        bring_back(archive, root, replace=True)


def test_home_that_comes_while_the_archive_is_extracted_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry created in an empty target during the restore is kept, and named."""
    target = tmp_path / "there"
    count = count_access

    def put_there(*arguments: object) -> object:
        target.mkdir()
        (target / "note").write_text("mine")
        return count(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(restoring, "count_access", put_there)

    with pytest.raises(TargetBusyError, match="not empty any more"):
        bring_back(small_archive(tmp_path / "a.tar.zst"), target)

    assert os.listdir(target) == ["note"]
    assert leftovers_beside(target) == []


def test_restored_home_violates_no_rule_whatever_its_modes_were(tmp_path: Path) -> None:
    """What `verify-perms` would repair is right from the beginning."""
    built = small(tmp_path / "home", artifacts=True)
    for name, content in (
        ("sagewai.db", b""),
        ("db/notes", b"x"),
        ("secrets/deep/one", b"x"),
        ("fleet/worker.json", b"{}"),
        ("fleet/notes", b"x"),
        ("config/x.json.bak-1", b"{}"),
        ("connections.json", b"{}"),
    ):
        (built.root / name).parent.mkdir(exist_ok=True)
        (built.root / name).write_bytes(content)
    for path in (built.root, *built.root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o7777 if path.is_dir() else 0o6777)

    bring_back(snapshot_of(built.root), tmp_path / "there", key_home=built.root)

    seen = inspect(locate(tmp_path / "there", {}))
    assert [finding.path for finding in seen.findings if finding.repaired is not None] == []
    assert (tmp_path / "there/data/artifacts/run.sh").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("options", "has_key", "expected"),
    [({}, True, "recorded"), ({"check": "full"}, True, "full"), ({}, False, "full")],
)
def test_database_is_checked_again_on_request_or_where_no_key_vouches_for_its_hash(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    options: dict[str, Any],
    has_key: bool,
    expected: str,
) -> None:
    """The hash of the manifest shows that the bytes are those that were checked."""
    small(tmp_path / "home")
    archive = snapshot_of(tmp_path / "home")
    examined = []

    def examine(path: Path, progress: Progress, check: Check) -> DatabaseFacts:
        examined.append(path)
        return examine_database(path, progress, check)

    monkeypatch.setattr("sagewai_ops.snapshots.database_check.examine_database", examine)
    report = bring_back(
        archive,
        tmp_path / "new",
        key_home=tmp_path / "home" if has_key else None,
        without_key=not has_key,
        **options,
    )
    assert report.database_check == expected
    assert len(examined) == (expected == "full")
    found = examine_database(tmp_path / "new/db/sagewai.db")
    assert report.database
    assert dataclasses.replace(report.database, full_check_at="") == found
    assert_same_rows(tmp_path / "home", tmp_path / "new")


def test_database_that_was_damaged_at_backup_is_checked_again(tmp_path: Path) -> None:
    """What a manifest records of damage is not taken for a check that passed."""
    built = small(tmp_path / "home", journal="none")
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'sqlite_autoindex_org_1'")
        connection.commit()
    archive = snapshot_of(tmp_path / "home")
    report = bring_back(archive, tmp_path / "new", key_home=tmp_path / "home")
    assert report.database_check == "full"
    assert report.database
    assert report.database.integrity
    assert [text for text in report.warnings if "database is damaged, as in" in text]
    answer = call("--home", tmp_path / "home", "restore", archive, "--to", tmp_path / "a", "-v")
    assert answer.code == 0
    assert "rows, as in the snapshot, DAMAGED\n" in answer.out
    assert "warning: the restored database is damaged, as in the snapshot: " in answer.err
