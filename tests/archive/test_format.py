"""docs/format.md is enough to write another reader: `format_reader` is one."""

import os
from pathlib import Path

import pyrage
import pytest

import format_reader
from program import call, taken
from small_homes import everything_of, rows_of, small

GOLDEN = Path(__file__).parents[2] / "fixtures/snapshots"
SPARSE_BYTES = 9_000_000  # frames hold 4 MiB
FIRST_MOMENT_NS = -1_500_000_000  # one and a half seconds before 1970
LAST_SECONDS = 8**11  # the first that no header can hold


def _home(root: Path) -> Path:
    """Build a home with entries that need extended headers."""
    small(root, undecodable_names=True, newline_names=True, long_names=True)
    odd = root / "data/odd"
    odd.mkdir()
    for name in (b"a" * 99, b"b" * 100, b"c" * 101, b"\xff", "ü".encode()):
        (odd / os.fsdecode(name)).mkdir()
        (odd / os.fsdecode(name) / "in it").write_bytes(name)
        os.symlink(name, os.fsencode(odd) + b"/to " + name)
    (odd / "holes").touch()
    os.truncate(odd / "holes", SPARSE_BYTES)
    for file, moment in (
        (odd / "old", FIRST_MOMENT_NS),
        (odd / "late", LAST_SECONDS * 10**9 + 7),
    ):
        file.touch()
        os.utime(file, ns=(moment, moment))
    (root / "snapshot.json").write_text("the home's own")
    return root


def test_second_reader_reads_the_database_of_a_server() -> None:
    """The golden snapshot, member by member."""
    found = format_reader.read(GOLDEN / "version-2-postgres.tar.zst")

    server = found.manifest["postgres"]
    rows = {table["name"]: table["rows"] for table in server["tables"]}
    assert (rows["sessions"], rows["workflow_events"], rows['own "table"']) == (2, 2, 2)
    assert found.header["engine"] == "postgresql"


@pytest.mark.parametrize("encrypted", [False, True])
def test_second_reader_reads_a_whole_snapshot(tmp_path: Path, *, encrypted: bool) -> None:
    """Odd names, links, holes and times included, plain or encrypted, byte for byte."""
    home = _home(tmp_path / "home")
    identity = pyrage.x25519.Identity.generate()
    words = ("--recipient", str(identity.to_public())) if encrypted else ()
    before = everything_of(home)

    archive = taken(call("--home", home, "backup", "--json", *words))
    key = (home / "secrets/master.key").read_bytes().strip()
    found = format_reader.read(archive, str(identity), key)

    assert found.header["format"] == found.manifest["format"] == 2
    assert found.mac == found.expected_mac
    assert archive.name.startswith(f"sagewai-{found.header['id']}.tar.zst")
    entries = {entry["path"]: entry for entry in found.manifest["entries"]}
    odd = [path for path in before if path.startswith("data/odd/")]
    assert len(odd) == 18
    for path in odd:
        mode, moment, content = before[path]
        entry = entries[path]
        assert (int(entry["mode"], 8), entry["mtime_ns"]) == (mode & 0o7777, moment)
        assert entry.get("target", "") or found.contents.get(path, "") == content
    assert entries["data/odd/holes"]["sparse"] is True
    assert found.contents["external/home/snapshot.json"] == b"the home's own"
    copy = tmp_path / "copy.db"
    copy.write_bytes(found.contents["db/sagewai.db"])
    assert rows_of(copy) == rows_of(home / "db/sagewai.db")


@pytest.mark.parametrize(
    "name", [f"version-{number}.tar.zst{age}" for number in (1, 2) for age in ("", ".age")]
)
def test_second_reader_reads_golden_snapshots(name: str) -> None:
    """The document describes them too."""
    identity = next(
        line
        for line in (GOLDEN / "identity.txt").read_text().splitlines()
        if line.startswith("AGE-SECRET-KEY-")
    )

    sealed = format_reader.read(GOLDEN / "version-1.tar.zst.age", identity)
    key = sealed.contents["secrets/master.key"]

    found = format_reader.read(GOLDEN / name, identity, key if "version-2" in name else b"")

    assert found.mac == found.expected_mac
    assert found.header["id"] == found.manifest["id"]
    assert found.contents["db/sagewai.db"].startswith(b"SQLite format 3\0")
