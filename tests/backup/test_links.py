"""Links through backup and restore: relative ones as they are, the home's own path made anew."""

import os
from pathlib import Path

import archives
from home_builder import build_home
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.home.paths import locate
from sagewai_ops.restore.plan import RestoreOptions
from sagewai_ops.restore.restore import restore


def test_an_absolute_link_into_the_home_leads_into_the_restored_one(tmp_path: Path) -> None:
    """The link names the new home, and in the tar stream it is relative."""
    build_home(tmp_path / "home", artifacts=False)
    home = locate(tmp_path / "home", {})
    directory = home.root / "data" / "a"
    directory.mkdir(parents=True)
    (directory / "file").write_text("content")
    (directory / "absolute").symlink_to(directory / "file")
    (directory / "relative").symlink_to("../a/file")

    report = create_snapshot(home, tmp_path / "snapshots", BackupOptions())
    assert report.path is not None
    target = locate(tmp_path / "restored", {})
    restore(report.path, target, RestoreOptions(key_home=home))

    restored = target.root / "data" / "a"
    assert os.readlink(restored / "absolute") == str(restored / "file")
    assert os.readlink(restored / "relative") == "../a/file"
    import tarfile

    with tarfile.open(fileobj=archives.tar_stream(report.path)) as tar:
        assert tar.getmember("data/a/absolute").linkname == "file"
