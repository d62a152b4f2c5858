"""A drill uses the restored home, writes down what was proved, and leaves nothing behind."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

import real_homes
from archives import flip, forge
from home_builder import BuiltHome
from round_trips import snapshot_of
from sagewai_ops.archive.age import Decryption, Encryption, temporary_identity
from sagewai_ops.database.sqlite.integrity import check_integrity
from sagewai_ops.errors import (
    DamagedError,
    InterruptedRunError,
    KeyMissingError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    SchemaAheadError,
    UsageError,
)
from sagewai_ops.fs import locks
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.home.paths import locate
from sagewai_ops.operations import drill as drilling
from sagewai_ops.operations.drill import DrillOptions, drill
from sagewai_ops.operations.drill_report import PROVED, UNPROVED, DrillReport
from sagewai_ops.restore.restore import restore
from sagewai_ops.schema.upgrade_sqlite import upgrade_database
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots import scratch as scratch_module
from small_homes import everything_of, small
from step_counter import counting, failing, killed_at, until_done
from unprivileged import reachable_directory, unprivileged

pytestmark = pytest.mark.in_memory  # what these tests make durable is much

OTHER_KEY = b"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A small home."""
    return small(tmp_path / "home")


@pytest.fixture
def archive(built: BuiltHome) -> Path:
    """A snapshot of it."""
    return snapshot_of(built.root)


def try_it(archive: Path, home: Path | None, **options: Any) -> DrillReport:
    """Drill with the keys of a home."""
    return drill(archive, DrillOptions(key_home=locate(home, {}) if home else None, **options))


def card_of(archive: Path) -> dict[str, Any]:
    """Read a card as it is written."""
    card = json.loads(cards.card_path(archive).read_bytes())
    assert isinstance(card, dict)
    return card


def left_beside(archive: Path) -> list[str]:
    """List what is neither the snapshot nor its card."""
    return sorted({*os.listdir(archive.parent)} - {archive.name, f"{archive.name}.json"})


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_a_home_that_sagewai_wrote_is_proved_and_neither_it_nor_the_archive_touched(
    tmp_path: Path, name: str
) -> None:
    """Rows, keys and modes hold; next to the card nothing changes."""
    root = real_homes.unpack(name, tmp_path)
    archive = snapshot_of(root)
    before, content = everything_of(root), archive.read_bytes()

    report = try_it(archive, root)

    assert report.outcome == PROVED
    assert report.checked == ("restore", "database", "keys", "permissions", "upgrade")
    assert report.findings == ()
    assert report.restored.keys.total
    assert not report.key_in_snapshot
    assert report.upgrade is not None
    assert report.upgrade.rows_after == report.restored.database.tables  # type: ignore[union-attr]
    assert (everything_of(root), archive.read_bytes()) == (before, content)
    assert left_beside(archive) == []


def test_the_card_gets_the_proof_and_keeps_all_else(built: BuiltHome, archive: Path) -> None:
    """When, with which program, and what was checked; private still."""
    before = card_of(archive)

    report = try_it(archive, built.root)

    card = card_of(archive)
    assert before.pop("mac") != card.pop("mac")
    assert {name: card[name] for name in before} == before
    assert card["proved_restorable_at"] == f"{report.at:%Y-%m-%dT%H:%M:%SZ}"
    assert set(card) - set(before) == {"proved_restorable_at", "drill"}
    assert card["drill"] == {
        "at": card["proved_restorable_at"],
        "outcome": "proved",
        "checked": ["restore", "database", "keys", "permissions", "upgrade"],
        "failed": None,
        "code": None,
        "findings": 0,
        "seconds": card["drill"]["seconds"],
        "tool_version": before["tool_version"],
    }
    assert cards.card_path(archive).stat().st_mode & 0o777 == 0o600
    assert report.recorded


@pytest.mark.parametrize("content", [None, b"{", b'{"archive": "another"}'])
def test_a_lost_card_comes_back_with_the_proof(
    built: BuiltHome, archive: Path, content: bytes | None
) -> None:
    """From the archive's own header."""
    before = card_of(archive)
    cards.card_path(archive).unlink()
    if content is not None:
        cards.card_path(archive).write_bytes(content)

    try_it(archive, built.root)

    card = card_of(archive)
    same = {"id", "sequence", "home", "home_id", "key_fingerprint", "schema_level", "created_at",
            "archive", "archive_bytes", "content_bytes", "key_custody", "encrypted", "files",
            "complete", "sound"}  # fmt: skip
    assert {name: card[name] for name in same} == {name: before[name] for name in same}
    assert card["proved_restorable_at"]
    assert card["verified_at"]


def test_a_drill_that_fails_takes_an_earlier_proof_away(built: BuiltHome, archive: Path) -> None:
    """What does not come back does not count as proved, whatever it did before."""
    try_it(archive, built.root)
    flip(archive)

    with pytest.raises(DamagedError):
        try_it(archive, built.root)

    card = card_of(archive)
    assert "proved_restorable_at" not in card
    assert (card["drill"]["outcome"], card["drill"]["code"]) == ("failed", "damaged")
    assert card["drill"]["failed"] == "restore"
    (found,) = catalog.list_snapshots(archive.parent)
    assert (found.proved_at, found.has_failed_drill) == ("", True)
    assert left_beside(archive) == []

    flip(archive)
    assert try_it(archive, built.root).outcome == PROVED
    assert card_of(archive)["proved_restorable_at"]


def test_a_key_that_is_gone_is_a_failed_drill(built: BuiltHome, archive: Path) -> None:
    """The commonest disaster: the archive is whole, and nothing opens what is sealed in it."""
    try_it(archive, built.root)
    shutil.rmtree(built.root)

    with pytest.raises(KeyMissingError, match="no available key opens"):
        try_it(archive, built.root)

    card = card_of(archive)
    assert (card["drill"]["failed"], card["drill"]["code"]) == ("keys", "key-missing")
    assert "proved_restorable_at" not in card
    assert left_beside(archive) == []


def test_without_a_key_the_rest_is_proved_and_not_counted(built: BuiltHome, archive: Path) -> None:
    """All is tried, the card reports that it is no proof, and an earlier one stays."""
    try_it(archive, built.root)
    earlier = card_of(archive)["proved_restorable_at"]

    report = try_it(archive, None, without_key=True)

    assert report.outcome == UNPROVED
    assert "keys" not in report.checked
    assert {finding.check for finding in report.findings} == {"keys"}
    card = card_of(archive)
    assert (card["drill"]["outcome"], card["proved_restorable_at"]) == ("unproved", earlier)


def test_without_key_is_no_hindrance_where_the_key_is_at_hand(
    built: BuiltHome, archive: Path
) -> None:
    """It allows closed values and asks for none."""
    assert try_it(archive, built.root, without_key=True).outcome == PROVED


def test_a_key_file_opens_what_is_sealed(built: BuiltHome, archive: Path, tmp_path: Path) -> None:
    """The right one proves, another one fails."""
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    shutil.copy(built.master_key, right)
    wrong.write_bytes(OTHER_KEY)

    with pytest.raises(KeyMissingError, match="opens none"):
        try_it(archive, None, key_file=wrong)
    report = try_it(archive, None, key_file=right)

    assert report.outcome == PROVED
    assert report.restored.key_source == "--key-file"


def test_a_key_in_the_archive_needs_no_home(built: BuiltHome) -> None:
    """Sealed in, it opens all; the report states that a lost home leaves it."""
    recipient, identity = temporary_identity()
    archive = snapshot_of(
        built.root, encryption=Encryption(recipients=(recipient,)), custody="sealed"
    )
    shutil.rmtree(built.root)

    report = try_it(archive, None, decryption=Decryption(identities=(identity,)))

    assert report.key_in_snapshot
    assert report.outcome == PROVED


def test_an_archive_that_cannot_be_opened_differs_from_one_that_was_not_tried(
    built: BuiltHome,
) -> None:
    """A wrong identity is a failed drill; a forgotten option is not."""
    recipient, identity = temporary_identity()
    archive = snapshot_of(built.root, encryption=Encryption(recipients=(recipient,)))
    try_it(archive, built.root, decryption=Decryption(identities=(identity,)))
    proved = card_of(archive)

    with pytest.raises(KeyMissingError):
        try_it(archive, built.root)
    assert card_of(archive) == proved

    with pytest.raises(KeyMissingError):
        try_it(archive, built.root, decryption=Decryption(identities=(temporary_identity()[1],)))
    card = card_of(archive)
    assert card["drill"]["outcome"] == "failed"
    assert "proved_restorable_at" not in card


def test_nothing_of_an_encrypted_archive_gets_into_its_card(built: BuiltHome) -> None:
    """The card is clear, so what was found is counted and not reported."""
    (built.root / "master.key").write_bytes(built.master_key.read_bytes())
    recipient, identity = temporary_identity()
    archive = snapshot_of(built.root, encryption=Encryption(recipients=(recipient,)))
    with contextlib.closing(sqlite3.connect(built.root / "db/sagewai.db")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]

    try_it(archive, built.root, decryption=Decryption(identities=(identity,)))

    text = cards.card_path(archive).read_text()
    assert not [table for table in tables if f'"{table}"' in text]


def test_a_database_that_was_damaged_when_it_was_taken_is_no_proof(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back as it was, and that is not enough."""
    monkeypatch.setattr(
        "sagewai_ops.database.sqlite.integrity.find_damage",
        lambda *_arguments, **_options: (("row 1 missing",), {}),
    )
    archive = snapshot_of(built.root)

    with pytest.raises(
        DamagedError, match="damaged before the snapshot was created, row 1 missing"
    ):
        try_it(archive, built.root)

    assert card_of(archive)["drill"]["failed"] == "database"
    assert card_of(archive)["drill"]["checked"] == ["restore"]


def test_references_to_nothing_are_findings_and_no_failure(tmp_path: Path) -> None:
    """They were there when the snapshot was taken, and come back as they were."""
    built = small(tmp_path / "home", journal="tail")
    with contextlib.closing(sqlite3.connect(built.root / "db/sagewai.db")) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("DELETE FROM user_account")
        connection.commit()
        assert connection.execute("PRAGMA foreign_key_check").fetchone()
    archive = snapshot_of(built.root)

    report = try_it(archive, built.root)

    assert report.outcome == PROVED
    assert {finding.check for finding in report.findings} == {"database"}
    assert "have broken references" in report.findings[0].text
    assert card_of(archive)["drill"]["findings"] == len(report.findings)


def test_an_older_database_is_brought_to_the_head_on_the_scratch_copy(tmp_path: Path) -> None:
    """What an upgrade would add is reported; the snapshot stays as it is."""
    built = small(tmp_path / "home", journal="tail")
    with contextlib.closing(sqlite3.connect(built.root / "db/sagewai.db")) as connection:
        connection.execute("DROP TABLE prompt_logs")
        connection.commit()
    archive = snapshot_of(built.root)
    content = archive.read_bytes()

    report = try_it(archive, built.root)

    assert report.upgrade is not None
    assert "prompt_logs" in report.upgrade.added
    assert report.upgrade.rehearsed
    assert archive.read_bytes() == content


def test_a_database_that_an_upgrade_damages_is_no_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was added is looked at once more."""
    built = small(tmp_path / "home", journal="tail")
    with contextlib.closing(sqlite3.connect(built.root / "db/sagewai.db")) as connection:
        connection.execute("DROP TABLE prompt_logs")
        connection.commit()
    archive = snapshot_of(built.root)
    monkeypatch.setattr(
        drilling,
        "check_integrity",
        lambda path: dataclasses.replace(check_integrity(path), integrity=("torn",)),
    )

    with pytest.raises(DamagedError, match="torn"):
        try_it(archive, built.root)

    assert card_of(archive)["drill"]["failed"] == "upgrade"


def test_a_database_ahead_of_this_program_is_a_failed_drill(tmp_path: Path) -> None:
    """Its restore would be refused too: by a column that this version does not know."""
    built = small(tmp_path / "home", journal="tail")
    with contextlib.closing(sqlite3.connect(built.root / "db/sagewai.db")) as connection:
        connection.execute("ALTER TABLE workers ADD COLUMN of_the_future TEXT")
        connection.commit()
    archive = snapshot_of(built.root)

    with pytest.raises(SchemaAheadError):
        try_it(archive, built.root)

    assert card_of(archive)["drill"]["code"] == "schema-ahead"


def test_rules_that_do_not_hold_are_findings(
    built: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that lost its modes would be noticed here, and nowhere above the home."""

    def careless(source: Path, target: Any, *arguments: Any, **options: Any) -> Any:
        report = restore(source, target, *arguments, **options)
        (target.root / "db/sagewai.db").chmod(0o644)
        target.root.parent.chmod(0o777)
        return report

    monkeypatch.setattr(drilling, "restore", careless)

    report = try_it(archive, built.root)

    (finding,) = report.findings
    assert finding.check == "permissions"
    assert finding.text.startswith("P010 db/sagewai.db: mode 0644")


def test_a_home_without_a_database_is_proved_without_one(tmp_path: Path) -> None:
    """There is nothing to upgrade."""
    root = tmp_path / "home"
    (root / "config").mkdir(parents=True)
    (root / "config/connections.json").write_text('{"version": 2, "connections": {}}')
    archive = snapshot_of(root)

    report = try_it(archive, root)

    assert (report.outcome, report.upgrade, report.restored.database) == ("proved", None, None)


def test_the_scratch_directory_is_private_locked_and_where_it_was_asked_for(
    built: BuiltHome, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0700 whatever the umask, in memory, next to the home or in a chosen directory."""
    seen: list[tuple[Path, int, bool]] = []

    def watching(source: Path, target: Any, *arguments: Any, **options: Any) -> Any:
        scratch = target.root.parent
        mode = stat.S_IMODE(scratch.stat().st_mode)
        seen.append((scratch, mode, locks.is_abandoned(scratch)))
        return restore(source, target, *arguments, **options)

    monkeypatch.setattr(drilling, "restore", watching)
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    before = os.umask(0)
    try:
        try_it(archive, built.root)
        try_it(archive, built.root, scratch=chosen)
        monkeypatch.setattr(scratch_module, "_MEMORY", tmp_path / "none")
        try_it(archive, built.root)
    finally:
        os.umask(before)

    assert [scratch.parent for scratch, _mode, _free in seen] == [
        Path("/dev/shm") if os.path.isdir("/dev/shm") else built.root.parent,
        chosen,
        built.root.parent,
    ]
    assert {(mode, free) for _scratch, mode, free in seen} == {(0o700, False)}
    assert list(chosen.iterdir()) == []
    assert left_beside(archive) == []


def test_scratch_must_be_a_directory_outside_of_the_home(
    built: BuiltHome, archive: Path, tmp_path: Path
) -> None:
    """A backup would contain it, and a mistyped path is not made."""
    with pytest.raises(UsageError, match="inside the home"):
        try_it(archive, built.root, scratch=built.root / "data")
    with pytest.raises(NotFoundError, match="not a directory"):
        try_it(archive, built.root, scratch=tmp_path / "none")

    assert not (tmp_path / "none").exists()


def test_what_is_no_snapshot_is_drilled_and_gets_no_card(
    built: BuiltHome, archive: Path, tmp_path: Path
) -> None:
    """A copy of any name, as a download has."""
    copy = tmp_path / "elsewhere" / "download.bin"
    copy.parent.mkdir()
    shutil.copy(archive, copy)

    report = try_it(copy, built.root)

    assert (report.outcome, report.recorded, report.not_recorded) == ("proved", False, "")
    assert os.listdir(copy.parent) == ["download.bin"]


def test_a_link_to_a_snapshot_proves_the_snapshot(
    built: BuiltHome, archive: Path, tmp_path: Path
) -> None:
    """Its card is next to the archive, not next to the link."""
    link = tmp_path / "newest.tar.zst"
    link.symlink_to(archive)

    assert try_it(link, built.root).recorded

    assert card_of(archive)["proved_restorable_at"]
    assert sorted(os.listdir(tmp_path)) == ["home", "home.snapshots", "newest.tar.zst"]


def test_no_archive_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(NotFoundError, match="not found"):
        try_it(tmp_path / "none.tar.zst", None)


def test_hostile_archives_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    """As by a restore."""
    path = tmp_path / catalog.archive_name("20260101T000000Z-0a1b2c", is_encrypted=False)
    forge(path, [], header=b"{}")

    with pytest.raises(OpsError):
        try_it(path, None)

    assert left_beside(path) == []


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EACCES, PermissionDeniedError)]
)
def test_what_the_system_refuses_is_no_verdict(
    built: BuiltHome, archive: Path, code: int, kind: type[OpsError]
) -> None:
    """A full disk is no fault of the snapshot: its proof stays."""
    try_it(archive, built.root)
    proved = card_of(archive)

    with failing(8, code, for_ever=False), pytest.raises(kind) as caught:
        try_it(archive, built.root)

    assert "--work-dir DIR" in caught.value.hint
    assert card_of(archive) == proved
    assert left_beside(archive) == []


def test_what_cannot_be_read_any_more_is_a_failed_drill(built: BuiltHome, archive: Path) -> None:
    """A disk that reports errors does not bring the home back."""
    try_it(archive, built.root)

    with failing(8, errno.EIO), pytest.raises(OpsError):
        try_it(archive, built.root)

    assert card_of(archive)["drill"]["code"] == "failed"
    assert "proved_restorable_at" not in card_of(archive)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_signal_while_the_card_is_written_is_a_signal(
    built: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch, *, is_damaged: bool
) -> None:
    """It is not taken for a card that cannot be written."""

    def interrupt(*_arguments: object) -> None:
        raise InterruptedRunError(15)

    monkeypatch.setattr(cards, "update_card", interrupt)
    if is_damaged:
        flip(archive)

    with pytest.raises(InterruptedRunError):
        try_it(archive, built.root)


def test_a_card_that_cannot_be_written_is_reported(
    built: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is proved anyway, but not recorded."""

    def refuse(_archive: Path, _card: object, _key: object) -> None:
        raise PermissionDeniedError("the card: read-only file system")

    monkeypatch.setattr(cards, "write_card", refuse)

    report = try_it(archive, built.root)
    flip(archive)
    with pytest.raises(DamagedError) as caught:
        try_it(archive, built.root)

    assert (report.outcome, report.recorded) == ("proved", False)
    assert "read-only" in report.not_recorded
    assert "outcome not recorded: the card: read-only" in caught.value.message


def test_a_snapshot_that_is_pruned_meanwhile_gets_no_card(
    built: BuiltHome, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card without an archive would be litter."""

    def prune(*arguments: Any, **options: Any) -> Any:
        archive.unlink()
        return upgrade_database(*arguments, **options)

    monkeypatch.setattr(drilling, "upgrade_database", prune)
    cards.card_path(archive).unlink()

    report = try_it(archive, built.root)

    assert not report.recorded
    assert os.listdir(archive.parent) == []


def test_a_kill_at_any_step_leaves_what_the_next_run_sweeps(
    built: BuiltHome, archive: Path
) -> None:
    """The card is the old or the new one; the next drill, or the next backup, cleans up."""
    with counting() as steps:
        try_it(archive, built.root)
    card = card_of(archive)
    left = set()

    for number in range(2, steps.count - 4, 9):  # the last five write the card
        assert killed_at(number, lambda: try_it(archive, built.root))
        assert card_of(archive) == card
        left.update(left_beside(archive))
    report = try_it(archive, built.root)

    assert left
    assert all(name.startswith(".sagewai-") and name.endswith(".drill") for name in left)
    assert report.swept
    assert left_beside(archive) == []
    assert killed_at(20, lambda: try_it(archive, built.root))
    assert left_beside(archive) != []
    snapshot_of(built.root)
    assert [name for name in os.listdir(archive.parent) if name.startswith(".")] == []


def test_what_a_kill_left_elsewhere_is_swept_as_well(
    built: BuiltHome, archive: Path, tmp_path: Path
) -> None:
    """A link next to the snapshots points to it; the next run of any kind follows it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for clean in (lambda: try_it(archive, built.root), lambda: snapshot_of(built.root)):
        assert killed_at(60, lambda: try_it(archive, built.root, scratch=elsewhere))
        assert len(list(elsewhere.iterdir())) == 1
        assert len([name for name in os.listdir(archive.parent) if name.startswith(".")]) == 1

        clean()

        assert list(elsewhere.iterdir()) == []
        assert [name for name in os.listdir(archive.parent) if name.startswith(".")] == []


def test_a_link_that_no_drill_made_is_not_followed(archive: Path, tmp_path: Path) -> None:
    """What is removed bears the name of a scratch directory, and no run has locked it."""
    precious = tmp_path / "precious"
    name = ".sagewai-20260101T000000Z-0a1b2c.drill"
    live = tmp_path / name
    for directory in (precious, live):
        directory.mkdir()
    (archive.parent / ".sagewai-20260101T000000Z-0a1b2d.staging").symlink_to(precious)

    with locks.exclusive(live):
        (archive.parent / name).symlink_to(live)
        assert catalog.sweep(archive.parent) == []
    (archive.parent / name).unlink()
    (archive.parent / name).symlink_to(precious)
    assert catalog.sweep(archive.parent) == []

    assert precious.is_dir()
    assert live.is_dir()


def test_the_card_is_changed_in_one_step(built: BuiltHome, archive: Path) -> None:
    """Killed while it is written: it is the old or the new one, never none."""
    before = card_of(archive)
    changes = {"proved_restorable_at": "2026-01-01T00:00:00Z"}
    found = []

    def attempt(number: int) -> bool:
        was_killed = killed_at(number, lambda: cards.update_card(archive, changes, {}))
        found.append(card_of(archive))
        return was_killed

    until_done(attempt)

    after = before | changes
    del after["mac"]  # written without a key
    assert found[0] == before
    assert found[-1] == after
    assert all(card in (before, after) for card in found)


def test_another_users_reader_of_the_snapshots_learns_where_to_drill(tmp_path: Path) -> None:
    """Who may read the snapshots and not write next to them drills in memory or elsewhere."""
    with reachable_directory() as directory:
        built = small(directory / "home")
        archive = snapshot_of(built.root)
        archive.parent.chmod(0o755)
        for path in archive.parent.iterdir():
            path.chmod(0o644)
        key = directory / "key"
        key.write_bytes(built.master_key.read_bytes())
        key.chmod(0o644)
        if os.geteuid():
            archive.parent.chmod(0o555)
        with unprivileged():
            assert try_it(archive, None, key_file=key).not_recorded
            scratch = directory / "scratch"
            scratch.mkdir()
            report = try_it(archive, None, key_file=key, scratch=scratch)

        assert (report.outcome, report.recorded) == ("proved", False)
        assert report.not_recorded
        assert list(scratch.iterdir()) == []
        archive.parent.chmod(0o755)
    assert tmp_path.is_dir()


def test_directories_that_forbid_it_are_removed_as_well() -> None:
    """A home may hold directories that its own user may not write to."""
    with reachable_directory() as directory:
        with unprivileged():
            tree = directory / "tree"
            (tree / "closed/inner").mkdir(parents=True)
            (tree / "closed/inner/file").touch()
            (tree / "closed/inner").chmod(0o000)
            (tree / "closed").chmod(0o500)

            remove_tree(tree)

        assert list(directory.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EPERM, errno.EILSEQ, errno.EDQUOT])
def test_a_file_system_that_cannot_store_the_home_is_no_fault_of_the_snapshot(
    built: BuiltHome, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Without links, rights, names or space: the proof stays, and the hint names another place."""
    (built.root / "data/link").symlink_to("../config")
    archive = snapshot_of(built.root)
    try_it(archive, built.root)
    before = card_of(archive)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "symlink", refuse)

    with pytest.raises(OpsError) as caught:
        try_it(archive, built.root)

    assert "--work-dir" in caught.value.hint
    assert not isinstance(caught.value, DamagedError)
    assert card_of(archive) == before
