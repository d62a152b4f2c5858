"""Making a home: private from the first moment, complete, and nothing of what is there touched."""

import contextlib
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

import real_homes
from program import call
from sagewai_ops.errors import LockedError, UsageError
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import locate
from sagewai_ops.operations.init import InitReport, init_home
from sagewai_ops.schema.sqlite_revision import read_level
from small_homes import everything_of, small

DATA = ("data/artifacts", "data/blueprints", "data/scratch")
EVERYTHING = (
    *(".", "config", "db", "data", "secrets"),
    *DATA,
    *("secrets/master.key", "db/sagewai.db"),
)


def _init(
    root: Path, environment: dict[str, str] | None = None, *, with_key: bool = True
) -> InitReport:
    chosen = environment or {}
    return init_home(locate(root, chosen), chosen, with_key=with_key)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_a_new_home_is_complete_and_private(tmp_path: Path, mask: int) -> None:
    """Directories 0700, key and database 0600, a key of 44 characters without a newline."""
    root = tmp_path / "home"
    before = os.umask(mask)
    try:
        report = _init(root)
    finally:
        os.umask(before)

    assert report.made == EVERYTHING
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in EVERYTHING}
    assert modes == {name: 0o600 if "." in name[1:] else 0o700 for name in EVERYTHING}
    assert len((root / "secrets/master.key").read_bytes()) == 44
    assert report.key_source == "secrets/master.key"
    assert len(report.key_fingerprint) == 16
    assert sorted(everything_of(root)) == sorted(EVERYTHING[1:])


def test_its_database_is_at_the_current_level_in_wal_mode(tmp_path: Path) -> None:
    """Sagewai finds nothing to add, and there are no side files."""
    _init(tmp_path / "home")

    database = tmp_path / "home/db/sagewai.db"
    assert [path.name for path in database.parent.iterdir()] == ["sagewai.db"]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert read_level(connection).state == "current"


def test_the_second_time_changes_nothing(tmp_path: Path) -> None:
    """Every part is reported as existing; bytes, modes and times are kept."""
    root = tmp_path / "home"
    _init(root)
    before = everything_of(root)

    report = _init(root)

    assert report.made == ()
    assert set(report.left) == {"config", "db", "data", "secrets", "db/sagewai.db", *DATA}
    assert everything_of(root) == before


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_a_home_of_the_real_sagewai_is_kept(tmp_path: Path, name: str) -> None:
    """Only missing parts are added; the key in use is found, and no other is created."""
    root = real_homes.unpack(name, tmp_path)
    before = everything_of(root)

    report = _init(root)

    after = everything_of(root)
    files = {path for path, (mode, _time, _content) in before.items() if stat.S_ISREG(mode)}
    assert {path: after[path] for path in files} == {path: before[path] for path in files}
    assert set(after) - set(before) == {path for path in report.made if path != "."}
    assert "secrets/master.key" not in report.made
    assert report.key_source in ("secrets/master.key", "master.key")
    assert any("older layout" in line for line in report.warnings) is (name != "real-small")


def test_a_key_that_sagewai_refuses_is_reported_and_kept(tmp_path: Path) -> None:
    """Sagewai would overwrite it with a new key; the warning names it."""
    built = small(tmp_path / "home")
    built.master_key.chmod(0o644)

    report = _init(built.root)

    assert built.master_key.read_bytes() == built.master_keys[0]
    assert "with a new key" in report.warnings[0]


@pytest.mark.parametrize("content", [b"", b"too short", b"x" * 44])
def test_a_file_that_is_not_a_key_is_kept(tmp_path: Path, content: bytes) -> None:
    """It may be the rest of a key: never overwritten."""
    root = tmp_path / "home"
    (root / "secrets").mkdir(parents=True)
    key = root / "secrets/master.key"
    key.write_bytes(content)
    key.chmod(0o600)

    report = _init(root)

    assert key.read_bytes() == content
    assert report.key_source == ""
    assert len(report.warnings) == 1


def test_a_dangling_link_of_the_key_is_kept(tmp_path: Path) -> None:
    """Its disk may only be unmounted."""
    root = tmp_path / "home"
    (root / "secrets").mkdir(parents=True)
    (root / "secrets/master.key").symlink_to("/mnt/away/master.key")

    report = _init(root)

    assert os.readlink(root / "secrets/master.key") == "/mnt/away/master.key"
    assert report.key_source == ""


@pytest.mark.parametrize("what", ["text", "folder", "link to nothing"])
def test_a_file_that_is_not_a_database_is_kept_and_reported(tmp_path: Path, what: str) -> None:
    """Sagewai could not start in such a home."""
    root = tmp_path / "home"
    database = root / "db/sagewai.db"
    database.parent.mkdir(parents=True)
    if what == "text":
        database.write_text("not a database, but perhaps all that is left of one")
    elif what == "folder":
        database.mkdir()
    else:
        database.symlink_to("/mnt/away/sagewai.db")

    report = _init(root)

    (warning,) = report.warnings
    assert str(database) in warning
    assert report.left["db/sagewai.db"] == "exists"
    assert database.is_symlink() or database.exists()


@pytest.mark.parametrize("name", DATA)
def test_link_out_of_the_home_is_kept(tmp_path: Path, name: str) -> None:
    """Artifacts on another disk that is not mounted stay a link, and no directory is created."""
    root = tmp_path / "home"
    (root / "data").mkdir(parents=True)
    (root / name).symlink_to("/mnt/away/big")

    report = _init(root)

    assert report.left[name] == "exists"
    assert os.readlink(root / name) == "/mnt/away/big"


def test_no_command_reports_the_directories_of_data(tmp_path: Path) -> None:
    """Every command answers 0, and the same, with and without them."""
    root = tmp_path / "home"
    _init(root)
    call("--home", root, "backup")
    commands = (["status"], ["verify-perms"], ["migrate-layout"], ["preflight"])
    outputs = []
    for exist in (True, False):
        for name in DATA:
            if not exist:
                (root / name).rmdir()
        answers = [call("--home", root, *words, "--json") for words in commands]
        outputs.append(
            [(answer.code, sorted(answer.result.get("findings") or ())) for answer in answers]
        )
        assert [answer.code for answer in answers] == [0] * len(commands)

    assert outputs[0] == outputs[1]


def test_a_key_in_the_environment_is_enough(tmp_path: Path) -> None:
    """No key file is created; nor with `--no-key`."""
    key = "c2FnZXdhaS1vcHMtdGVzdHMtbWFzdGVyLWtleS0wMDE="

    report = _init(tmp_path / "home", {"SAGEWAI_MASTER_KEY": key})
    without = _init(tmp_path / "other", with_key=False)

    assert report.key_source == "SAGEWAI_MASTER_KEY"
    assert not (tmp_path / "home/secrets/master.key").exists()
    assert without.key_source == ""
    assert not (tmp_path / "other/secrets/master.key").exists()


def test_overrides_of_the_database_are_followed(tmp_path: Path) -> None:
    """A file outside the home is created and named by its path; a server's database is not."""
    far = tmp_path / "far/other.db"

    report = _init(tmp_path / "home", {"SAGEWAI_DATABASE_URL": f"sqlite:///{far}"})
    served = _init(tmp_path / "served", {"DATABASE_URL": "postgresql://u:secret@h/d"})

    assert far.exists()
    assert str(far) in report.made
    assert not (tmp_path / "home/db/sagewai.db").exists()
    assert not (tmp_path / "served/db/sagewai.db").exists()
    assert "DATABASE_URL" in served.left["db/sagewai.db"]
    assert "secret" not in served.left["db/sagewai.db"]


@pytest.mark.parametrize("name", ["", "config", "secrets"])
def test_a_file_instead_of_a_directory_is_refused_first(tmp_path: Path, name: str) -> None:
    """Nothing is created, and the file is named."""
    path = tmp_path / "home" / name if name else tmp_path / "home"
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")

    with pytest.raises(UsageError, match="not a directory"):
        _init(tmp_path / "home")

    assert path.read_text() == "in the way"
    assert len(everything_of(tmp_path)) == (2 if name else 1)


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    """Files with similar names are kept."""
    root = tmp_path / "home"
    _init(root)
    partial = [
        "db/.sagewai.db.89abcdef.partial",
        "db/.sagewai.db.89abcdef.partial-wal",
        "secrets/.master.key.01234567.partial",
    ]
    kept = ["secrets/.master.key.partial", "db/.sagewai.db.backup"]
    for name in (*partial, *kept):
        (root / name).write_bytes(b"part")
        (root / name).chmod(0o600)

    report = _init(root)

    assert sorted(report.swept) == partial
    assert {path for path in everything_of(root) if Path(path).name.startswith(".")} == {*kept}


def test_a_locked_home_is_not_completed(tmp_path: Path) -> None:
    """A backup that runs sees the home as it is."""
    root = tmp_path / "home"
    root.mkdir()

    with locks.exclusive(root), pytest.raises(LockedError):
        _init(root)

    assert list(root.iterdir()) == []


def test_a_missing_part_is_added_to_a_home(tmp_path: Path) -> None:
    """A removed directory is created again, empty; the others are kept."""
    built = small(tmp_path / "home")
    shutil.rmtree(built.root / "db")

    report = _init(built.root)

    assert report.made == ("db", "data/blueprints", "data/scratch", "db/sagewai.db")
    assert built.master_key.read_bytes() == built.master_keys[0]
