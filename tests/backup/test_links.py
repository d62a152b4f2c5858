"""Links through backup and restore: inside the home, out of it, and followed ones."""

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import archives
from format_reader import read
from json_schemas import problems
from program import call, taken
from round_trips import assert_same_home, bring_back
from sagewai_ops.archive import manifest
from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.errors import DamagedError, SchemaAheadError, UsageError
from sagewai_ops.home.paths import locate
from sagewai_ops.snapshots.omissions import Reason
from small_homes import everything_of, small

pytestmark = pytest.mark.in_memory

MOMENT_NS = archives.MOMENT_NS


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose artifacts are on a bigger disk."""
    root = small(tmp_path / "home").root
    disk = tmp_path / "disk"
    (disk / "below").mkdir(parents=True)
    (disk / "report.md").write_text("a report")
    (disk / "below/image").write_bytes(b"an image")
    (root / "data/artifacts").rmdir()
    (root / "data/artifacts").symlink_to(disk)
    return root


def back_up(root: Path, *follow: str) -> BackupReport:
    """Create a snapshot next to the home."""
    directory = root.with_name("home.snapshots")
    return create_snapshot(locate(root, {}), directory, BackupOptions(follow=follow))


def archive_of(root: Path, *follow: str) -> Path:
    """Create a snapshot next to the home and return its archive."""
    path = back_up(root, *follow).path
    assert path is not None
    return path


def test_absolute_link_into_the_home_is_rewritten_for_the_restored_home(tmp_path: Path) -> None:
    """The link names the new home, and in the tar stream it is relative."""
    root = small(tmp_path / "home").root
    directory = root / "data/a"
    directory.mkdir(parents=True)
    (directory / "file").write_text("content")
    (directory / "absolute").symlink_to(directory / "file")
    (directory / "relative").symlink_to("../a/file")
    archive = archive_of(root)

    bring_back(archive, tmp_path / "restored", key_home=root)

    restored = tmp_path / "restored/data/a"
    assert os.readlink(restored / "absolute") == str(restored / "file")
    assert os.readlink(restored / "relative") == "../a/file"
    import tarfile

    with tarfile.open(fileobj=archives.tar_stream(archive)) as tar:
        assert tar.getmember("data/a/absolute").linkname == "file"


def test_a_restored_home_has_the_links_that_leave_it(home: Path, tmp_path: Path) -> None:
    """restore(backup(home)) == home; the target is neither stored nor touched."""
    (home / "data/gone").symlink_to("/nowhere/at/all")
    (home / "data/up").symlink_to("../../disk/report.md")
    (home / "data/by-way").symlink_to("artifacts/report.md")
    before = everything_of(tmp_path / "disk")
    report = back_up(home)

    assert [cause.rule for cause in report.quality.omitted] == ["linked-file", "linked-file"]
    assert {cause.name for cause in report.quality.omitted} == {"data/by-way", "data/up"}
    assert not any(item.reason is Reason.LEAVES for item in report.omissions)
    assert report.outside_links == {
        "data/artifacts": str(tmp_path / "disk"),
        "data/by-way": "artifacts/report.md",
        "data/gone": "/nowhere/at/all",
        "data/up": "../../disk/report.md",
    }
    assert report.path is not None
    restored = bring_back(report.path, tmp_path / "restored", key_home=home)
    assert restored.plan.outside_links == report.outside_links
    assert_same_home(home, tmp_path / "restored")
    assert everything_of(tmp_path / "disk") == before


def test_the_second_reader_agrees_on_such_links(home: Path, tmp_path: Path) -> None:
    """docs/format.md defines how they are stored."""
    archive = archive_of(home)

    snapshot = read(archive)
    assert snapshot.header["format"] == snapshot.manifest["format"] == 2
    (entry,) = [entry for entry in snapshot.manifest["entries"] if "outside" in entry]
    assert (entry["path"], entry["target"]) == ("data/artifacts", str(tmp_path / "disk"))


def test_older_program_asks_for_a_newer_version(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of format 1 does not report such an archive as damaged."""
    archive = archive_of(home)
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 1)

    with pytest.raises(SchemaAheadError, match="format 2"), open_archive(archive):
        pass


def test_links_that_leave_are_created_after_all_other_members(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing could be written through one, even if a check were missing."""
    (home / "data/zzz").write_text("the last file")
    archive = archive_of(home)
    created: list[str] = []
    really_open, really_link = os.open, os.symlink

    def opening(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_CREAT and options.get("dir_fd") is not None:
            created.append(str(path))
        return really_open(path, flags, *arguments, **options)

    def linking(source: str, name: str, **options: Any) -> None:
        created.append(name)
        really_link(source, name, **options)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "symlink", linking)
    bring_back(archive, tmp_path / "restored", key_home=home)

    assert {"zzz", "artifacts"} <= set(created)
    assert created.index("artifacts") > created.index("zzz")


def test_followed_links_are_restored_as_directories(home: Path, tmp_path: Path) -> None:
    """The target is stored under the path of the link, and the plan names both."""
    disk = tmp_path / "disk"
    (disk / "near").symlink_to("report.md")
    (disk / "absolute").symlink_to(disk / "below/image")
    report = back_up(home, "data/art*")

    assert report.is_complete
    assert (report.followed, report.outside_links) == ({"data/artifacts": str(disk)}, {})
    assert report.path is not None
    restored = tmp_path / "restored"
    done = bring_back(report.path, restored, key_home=home)

    assert done.plan.followed == {"data/artifacts": str(disk)}
    assert not (restored / "data/artifacts").is_symlink()
    assert (restored / "data/artifacts/report.md").read_text() == "a report"
    assert (restored / "data/artifacts/below/image").read_bytes() == b"an image"
    assert os.readlink(restored / "data/artifacts/near") == "report.md"
    inside = restored / "data/artifacts/below/image"
    assert os.readlink(restored / "data/artifacts/absolute") == str(inside)


def test_links_out_of_a_followed_directory_are_never_followed(home: Path, tmp_path: Path) -> None:
    """They are stored as links, whatever the pattern matches; so are those that only look near."""
    disk, other = tmp_path / "disk", tmp_path / "other"
    other.mkdir()
    (other / "private").write_text("not asked for")
    (disk / "out").symlink_to(other)
    (disk / "back").symlink_to(home / "config")
    (disk / "climbing").symlink_to("../other")
    (disk / "loop").symlink_to(disk)

    report = back_up(home, "data/*")

    assert report.followed == {"data/artifacts": str(disk)}
    assert report.outside_links == {
        "data/artifacts/climbing": "../other",
        "data/artifacts/out": str(other),
    }
    assert report.path is not None
    with open_archive(report.path) as reader:
        entries = {entry.path: entry for entry in reader.manifest.entries}
    assert not any(path.startswith("data/artifacts/out/") for path in entries)
    assert entries["data/artifacts/back"].target == "../../config"
    assert entries["data/artifacts/loop"].target == "."
    assert_restores(report.path, tmp_path / "restored", home)


def assert_restores(archive: Path, target: Path, home: Path) -> None:
    """Restore, and check that the link is still a link."""
    bring_back(archive, target, key_home=home)
    assert (target / "data/artifacts/out").is_symlink()


def test_a_link_to_a_file_of_the_owner_is_a_loss(home: Path, tmp_path: Path) -> None:
    """The snapshot has the link and not the file; `--follow` includes it, `--accept` permits it."""
    model = tmp_path / "model.bin"
    model.write_bytes(b"weights")
    (home / "data/model").symlink_to(model)
    options = ("--home", home, "backup", "--json")

    plain = call(*options)
    accepted = call(*options, "--accept", "linked-file")
    followed = call(*options, "--follow", "data/model")

    assert (plain.code, accepted.code, followed.code) == (3, 0, 0)
    warnings = plain.document["warnings"]
    assert f"data/model: stored as a link, its file {model} is not in the snapshot" in warnings
    assert "to include the file: sagewai-ops backup --follow data/model" in warnings
    restored = tmp_path / "restored"
    bring_back(taken(followed), restored, key_home=home)
    assert not (restored / "data/model").is_symlink()
    assert (restored / "data/model").read_bytes() == b"weights"


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of a file")
def test_a_link_to_a_file_of_the_system_is_none(home: Path, tmp_path: Path) -> None:
    """An environment of Python below `data/` has one to its interpreter."""
    (tmp_path / "python3").touch()
    os.chown(tmp_path / "python3", 40001, 40001)
    (home / "data/python3").symlink_to(tmp_path / "python3")

    assert back_up(home).is_complete


def test_a_followed_file_with_the_key_is_omitted(home: Path, tmp_path: Path) -> None:
    """A clear archive has no key, whatever name leads to it."""
    (tmp_path / "key").write_bytes((home / "secrets/master.key").read_bytes())
    (home / "data/token").symlink_to(tmp_path / "key")

    report = back_up(home, "data/token")

    assert any((item.path, item.reason) == ("data/token", Reason.KEY) for item in report.omissions)


@pytest.mark.parametrize("place", ["", "home", "home/data", "home.snapshots", "home.snapshots/a"])
def test_following_into_the_home_or_the_snapshots_is_refused(
    home: Path, tmp_path: Path, place: str
) -> None:
    """A snapshot would contain itself; nothing is written."""
    (tmp_path / "home.snapshots/a").mkdir(parents=True)
    alias = tmp_path.with_name(f"{tmp_path.name}-alias")
    alias.symlink_to(tmp_path)
    try:
        target = str(alias / place)
        (home / "data/round").symlink_to(target)

        with pytest.raises(UsageError, match=r"data/round: .+ overlaps with"):
            back_up(home, "data/round")
        assert back_up(home).outside_links["data/round"] == target
    finally:
        alias.unlink()


def test_a_loop_is_refused(home: Path, tmp_path: Path) -> None:
    """Only if it is to be followed; as a link it is stored."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (home / "data/loop").symlink_to(tmp_path / "a")

    with pytest.raises(UsageError, match="data/loop: a loop of links"):
        back_up(home, "data/loop")
    assert "data/loop" in back_up(home).outside_links


def test_a_directory_that_is_named_twice_is_stored_once(home: Path, tmp_path: Path) -> None:
    """The second link leads to the first; one that contains a followed directory is refused."""
    (home / "data/second").symlink_to(tmp_path / "disk")
    archive = archive_of(home, "data/*")
    with open_archive(archive) as reader:
        entries = {entry.path: entry for entry in reader.manifest.entries}
    assert entries["data/second"].target == "artifacts"
    (home / "data/third").symlink_to(tmp_path / "home.snapshots/../disk/below")

    with pytest.raises(UsageError, match="overlaps with"):
        back_up(home, "data/*")


def test_a_target_that_is_missing_makes_a_followed_link_a_loss(home: Path, tmp_path: Path) -> None:
    """The disk is not mounted: the link is stored, and the backup is incomplete."""
    (tmp_path / "disk").rename(tmp_path / "elsewhere")

    report = back_up(home, "data/artifacts")

    (loss,) = (item for item in report.omissions if item.reason.is_loss)
    assert (loss.path, loss.reason) == ("data/artifacts", Reason.UNREADABLE)
    assert report.outside_links == {"data/artifacts": str(tmp_path / "disk")}


def test_a_link_elsewhere_can_be_followed(home: Path, tmp_path: Path) -> None:
    """Only storing one as a link is for `data/` alone."""
    (home / "config/more").symlink_to(tmp_path / "disk")

    report = back_up(home, "config/more", "config/less")

    assert report.followed == {"config/more": str(tmp_path / "disk")}
    assert report.is_complete
    assert any("--follow config/less: no link" in note for note in report.warnings())


def test_excluded_links_are_not_followed(home: Path) -> None:
    """`--exclude` wins."""
    directory = home.with_name("home.snapshots")
    options = BackupOptions(follow=("data/artifacts",), exclude=("data/artifacts",))

    report = create_snapshot(locate(home, {}), directory, options)

    assert (report.followed, report.outside_links) == ({}, {})


def test_the_commands_report_them(home: Path, tmp_path: Path) -> None:
    """Text and JSON of backup, show, diff, extract, restore; each exits 0."""
    disk = tmp_path / "disk"
    options = ("--home", home)

    plan = call(*options, "backup", "--dry-run")
    assert f"store data/artifacts as a link to {disk}" in plan.out
    plan = call(*options, "backup", "--dry-run", "--follow", "data/artifacts")
    assert f"include {disk} in place of data/artifacts" in plan.out
    taken = call("--verbose", *options, "backup")
    assert taken.code == 0, taken.err
    assert f"data/artifacts: stored as a link, {disk} is not in the snapshot" in taken.out
    answer = call(*options, "backup", "--follow", "data/artifacts", "--json")
    assert (answer.code, problems("backup", answer.result)) == (0, [])
    assert answer.result["followed"] == {"data/artifacts": str(disk)}
    first, second = (item["id"] for item in reversed(listed(home)))

    shown = call(*options, "snapshots", "show", first, "--files")
    assert f"data/artifacts -> {disk}" in shown.out
    assert (
        problems("snapshots-show", call(*options, "snapshots", "show", second, "--json").result)
        == []
    )
    diff = call(*options, "snapshots", "diff", first, second)
    assert "~ data/artifacts  type" in diff.out
    assert "+ data/artifacts/report.md" in diff.out
    assert call(*options, "snapshots", "extract", first, "--to", tmp_path / "out").code == 0
    assert os.readlink(tmp_path / "out/data/artifacts") == str(disk)

    dry = call(*options, "restore", first, "--replace", "--dry-run")
    assert f"{home}/data/artifacts -> {disk}, outside the home" in dry.out
    planned = call(*options, "restore", second, "--replace", "--dry-run")
    assert f"{home}/data/artifacts, in place of a link to {disk}" in planned.out
    done = call(*options, "restore", first, "--replace", "--json")
    assert (done.code, problems("restore", done.result)) == (0, [])
    assert done.result["outside_links"] == {"data/artifacts": str(disk)}
    parts = call("--verbose", *options, "restore", second, "--only", "data")
    assert f"{home}/data/artifacts, in place of a link to {disk}" in parts.out
    assert (home / "data/artifacts/report.md").read_text() == "a report"
    assert (disk / "report.md").read_text() == "a report"


def listed(home: Path) -> list[dict[str, Any]]:
    """List the snapshots of a home, the newest first."""
    result = call("--home", home, "snapshots", "list", "--json").result
    snapshots = result["snapshots"]
    assert isinstance(snapshots, list)
    return sorted(snapshots, key=lambda item: item["sequence"], reverse=True)


def test_the_mirror_has_the_link_too(home: Path, tmp_path: Path) -> None:
    """It is kept by the next run, verified, and restored; followed, it is a directory."""
    backup = ("--home", home, "backup", "--format", "directory")
    mirror = tmp_path / "home.snapshots/tree"

    assert call(*backup).code == call(*backup).code == 0
    assert os.readlink(mirror / "data/artifacts") == str(tmp_path / "disk")
    assert call("snapshots", "verify", mirror).code == 0
    bring_back(mirror, tmp_path / "restored", key_home=home)
    assert_same_home(home, tmp_path / "restored")
    assert call(*backup, "--follow", "data/artifacts").code == 0
    assert (mirror / "data/artifacts/report.md").read_text() == "a report"
    (mirror / "data/artifacts/report.md").write_text("another")
    assert call("snapshots", "verify", mirror).code == 16


def test_a_drill_proves_a_home_with_such_links(home: Path) -> None:
    """Neither the link nor what it leads to fails the permissions of the copy."""
    assert call("--home", home, "backup").code == 0

    drill = call("--home", home, "drill", "--json")

    assert (drill.code, drill.result["outcome"]) == (0, "proved")


def test_verify_perms_agrees(home: Path, tmp_path: Path) -> None:
    """A link below `data/` is no finding, also if others can read its target; one to secrets is."""
    (tmp_path / "disk").chmod(0o755)
    (tmp_path / "disk/report.md").chmod(0o644)
    (tmp_path / "sops").mkdir(mode=0o755)
    (tmp_path / "sops").chmod(0o755)

    assert call("--home", home, "verify-perms", "--fix").code in (0, 4)
    assert call("--home", home, "verify-perms").code == 0
    (home / "secrets/sops").rename(tmp_path / "previous")
    (home / "secrets/sops").symlink_to(tmp_path / "sops")
    assert call("--home", home, "verify-perms").code == 4


def _outside(path: str, target: str = "/tmp") -> Entry:
    return Entry(path, EntryType.LINK, 0o777, MOMENT_NS, target=target, is_outside=True)


_DATA = Entry("data", EntryType.DIRECTORY, 0o700, MOMENT_NS)
_CONFIG = Entry("config", EntryType.DIRECTORY, 0o700, MOMENT_NS)


@pytest.mark.parametrize(
    ("members", "version"),
    [
        # A link is a leaf, in any order and at any depth.
        ([_DATA, _outside("data/out"), Entry("data/out/x", EntryType.FILE, 0o600, 0)], 2),
        ([_DATA, Entry("data/out/x", EntryType.FILE, 0o600, 0), _outside("data/out")], 2),
        ([_DATA, _outside("data/out"), Entry("data/out/a", EntryType.DIRECTORY, 0o700, 0)], 2),
        ([_DATA, _outside("data/out"), _outside("data/out/a")], 2),
        # Not twice, as a link and as a directory.
        (
            [
                _DATA,
                _outside("data/out"),
                Entry("data/out", EntryType.DIRECTORY, 0o700, 0),
                Entry("data/out/x", EntryType.FILE, 0o600, 0),
            ],
            2,
        ),
        # Only below `data/`, only as links, only in format 2, never with the home's own path.
        ([_CONFIG, _outside("config/out")], 2),
        ([_outside("data")], 2),
        ([_outside("db")], 2),
        ([dataclasses.replace(_DATA, is_outside=True)], 2),
        ([_DATA, _outside("data/out")], 1),
        ([_DATA, dataclasses.replace(_outside("data/out"), is_absolute=True)], 2),
        ([_DATA, dataclasses.replace(_outside("data/out"), is_outside=False)], 2),
        ([_DATA, _outside("data/out", "x" * 4096)], 2),
        ([_DATA, _outside("data/out", "a\0b")], 2),
    ],
)
def test_hostile_archives_with_such_links_are_refused(
    tmp_path: Path, members: list[Entry], version: int
) -> None:
    """Nothing is ever written below a link."""
    path = archives.forge(
        tmp_path / "a.tar.zst",
        [(entry, b"" if entry.size_bytes == 0 else b"x") for entry in members],
        version=version,
    )

    with pytest.raises(DamagedError), open_archive(path):
        pass
    answer = call("restore", path, "--to", tmp_path / "target", "--without-key")
    assert answer.code == 16
    assert not (tmp_path / "target").exists()


def test_header_and_manifest_must_agree_on_the_format(tmp_path: Path) -> None:
    """The header alone is read to ask for a newer program."""
    path = archives.forge(
        tmp_path / "a.tar.zst",
        [(_DATA, b"")],
        manifest=lambda content: content.replace(b'"format": 1', b'"format": 2'),
    )

    with pytest.raises(DamagedError, match="differ in format"), open_archive(path):
        pass


def test_a_mirror_with_a_member_below_a_link_is_refused(home: Path, tmp_path: Path) -> None:
    """Its manifest is checked like that of an archive."""
    assert call("--home", home, "backup", "--format", "directory").code == 0
    mirror = tmp_path / "home.snapshots/tree"
    text = (mirror / "manifest.json").read_text()
    lines = text.splitlines()
    (place,) = [number for number, line in enumerate(lines) if '"outside": true' in line]
    document = json.loads(lines[place].rstrip(","))
    below = {**document, "path": "data/artifacts/below", "type": "folder"}
    del below["target"], below["outside"]
    lines.insert(place + 1, json.dumps(below) + ",")
    changed = "\n".join(lines) + "\n"
    (mirror / "manifest.json").write_text(changed)
    import hashlib

    digest = hashlib.sha256(changed.encode()).hexdigest()
    sums = mirror / ".sagewai-ops-manifest.sha256"
    sums.write_text(f"{digest}  manifest.json\n")

    answer = call("restore", mirror, "--to", tmp_path / "target", "--without-key")

    assert answer.code == 16
    assert not (tmp_path / "target").exists()
    assert stat.S_ISLNK((mirror / "data/artifacts").lstat().st_mode)
