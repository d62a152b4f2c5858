"""Writing members of an archive: each in its place, private, and nothing outside."""

import dataclasses
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from archives import DIRECTORY, LINK, MOMENT_NS, STATE, forge, write
from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.errors import DamagedError, UsageError
from sagewai_ops.fs import atomic
from sagewai_ops.restore.extractor import Extraction, extract_members

MEMBERS = [(DIRECTORY, b""), (STATE, b"{}"), (LINK, b"")]


def _extract(archive: Path, target: Path, *, everything: bool = True, only: str = "") -> Extraction:
    target.mkdir(exist_ok=True)
    with open_archive(archive) as reader:
        return extract_members(
            reader,
            target,
            lambda entry: (
                entry.path
                if entry.path.startswith(only) and entry.path != "snapshot.json"
                else None
            ),
            root=target,
            everything=everything,
        )


def _entry(path: str, kind: EntryType = EntryType.FILE, **changes: object) -> Entry:
    entry = Entry(path, kind, 0o755 if kind is EntryType.DIRECTORY else 0o644, MOMENT_NS)
    return dataclasses.replace(entry, **changes)  # type: ignore[arg-type]


def test_members_come_out_with_their_times(tmp_path: Path) -> None:
    """Files, directories and links are written and counted."""
    archive = write(tmp_path / "a.tar.zst", MEMBERS)

    done = _extract(archive, tmp_path / "out")

    assert (done.files, done.directories, done.links, done.size_bytes) == (1, 1, 1, 2)
    for path in ("config", "config/admin-state.json", "config/link"):
        assert os.lstat(tmp_path / "out" / path).st_mtime_ns == MOMENT_NS
    assert os.readlink(tmp_path / "out/config/link") == "admin-state.json"


def test_directory_that_is_missing_in_between_is_made_private(tmp_path: Path) -> None:
    """Only the file is requested; the directory above it is private."""
    before = os.umask(0)
    try:
        _extract(write(tmp_path / "a.tar.zst", MEMBERS), tmp_path / "out", only="config/admin")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "out/config").stat().st_mode) == 0o700
    assert os.listdir(tmp_path / "out/config") == ["admin-state.json"]


def test_newer_reading_of_a_file_counts(tmp_path: Path) -> None:
    """A file that changed during the backup is archived twice; the second copy counts."""
    superseded = _entry("note", EntryType.SUPERSEDED)
    archive = tmp_path / "a.tar.zst"
    import hashlib

    content = b"first"
    first = dataclasses.replace(
        superseded, size_bytes=len(content), sha256=hashlib.sha256(content).digest()
    )
    forge(archive, [(first, content), (_entry("note"), b"second")])

    done = _extract(archive, tmp_path / "out")

    assert (tmp_path / "out/note").read_bytes() == b"second"
    assert done.files == 1


@pytest.mark.parametrize("size_bytes", [1, 65_535, 65_536, 65_537, 200_000])
def test_sparse_file_is_whole_whatever_its_size(tmp_path: Path, size_bytes: int) -> None:
    """Holes are made of zeros only, and the length is kept where it ends in one."""
    content = bytes(size_bytes // 2) + b"x" + bytes(size_bytes - size_bytes // 2 - 1)
    archive = forge(tmp_path / "a.tar.zst", [(_entry("note", is_sparse=True), content)])

    _extract(archive, tmp_path / "out")

    assert (tmp_path / "out/note").read_bytes() == content


def test_the_disk_gets_large_files_while_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time from where it began before, so that the sync at the end waits less."""
    begun: list[int] = []
    monkeypatch.setattr(atomic, "begin_writeback", lambda _file, offset: begun.append(offset))
    members = [(_entry("large"), bytes(9_000_000)), (_entry("note"), b"x")]

    _extract(write(tmp_path / "a.tar.zst", members), tmp_path / "out")

    assert len(begun) == 3
    assert begun == sorted(set(begun))
    assert begun[0] == 0


def test_nothing_is_read_that_is_not_wanted(tmp_path: Path) -> None:
    """One file out of many needs only its own frames, and still proves them."""
    noise = os.urandom(5_000_000)
    archive = write(tmp_path / "a.tar.zst", [(_entry("noise"), noise), (_entry("zz"), b"x")])
    content = bytearray(archive.read_bytes())
    content[len(content) // 3] ^= 1
    archive.write_bytes(content)

    _extract(archive, tmp_path / "out", everything=False, only="zz")
    with pytest.raises(DamagedError):
        _extract(archive, tmp_path / "all")

    assert os.listdir(tmp_path / "out") == ["zz"]


@pytest.mark.parametrize(
    ("path", "mode", "expected"),
    [
        ("config/connections.json.bak", 0o666, 0o600),
        ("db/sagewai.db", 0o644, 0o600),
        ("secrets/sops/x.yaml", 0o644, 0o600),
        ("master.key", 0o644, 0o600),
        ("fleet/worker.json", 0o644, 0o600),
        ("external/SAGEWAI_ADMIN_STATE_FILE", 0o644, 0o600),
        ("external/SAGEWAI_SOPS_ROOT/x", 0o644, 0o600),
        ("data/tool", 0o6755, 0o755),
        ("data/note", 0o644, 0o644),
    ],
)
def test_modes_are_those_of_the_rules(tmp_path: Path, path: str, mode: int, expected: int) -> None:
    """Secrets are their owner's alone; the rest keeps its own, without odd bits."""
    parts = path.split("/")[:-1]
    directories = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
    archive = forge(
        tmp_path / "a.tar.zst",
        [
            *((_entry(directory, EntryType.DIRECTORY), b"") for directory in directories),
            (_entry(path, mode=mode), b"x"),
        ],
    )

    _extract(archive, tmp_path / "out")

    assert stat.S_IMODE((tmp_path / "out" / path).stat().st_mode) == expected
    if path.startswith(("secrets/", "external/")):
        for directory in directories:
            assert stat.S_IMODE((tmp_path / "out" / directory).stat().st_mode) == 0o700


def test_link_in_the_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    """Not even one in the staging directory, which no archive can create."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config").symlink_to(outside)

    with pytest.raises(DamagedError):
        _extract(write(tmp_path / "a.tar.zst", MEMBERS), tmp_path / "out")

    assert os.listdir(outside) == []


def test_file_that_stands_there_already_is_not_overwritten(tmp_path: Path) -> None:
    """On a system where two names are one, the second is damage."""
    (tmp_path / "out/config").mkdir(parents=True)
    (tmp_path / "out/config/admin-state.json").write_text("mine")

    with pytest.raises(DamagedError, match="conflicts with another"):
        _extract(write(tmp_path / "a.tar.zst", MEMBERS), tmp_path / "out")

    assert (tmp_path / "out/config/admin-state.json").read_text() == "mine"


@pytest.mark.parametrize("changes", [{"mtime_ns": 10**30}, {"mtime_ns": -(10**30)}])
@pytest.mark.parametrize("kind", [EntryType.FILE, EntryType.DIRECTORY])
def test_time_that_no_system_has_is_damage(
    tmp_path: Path, kind: EntryType, changes: dict[str, int]
) -> None:
    """It is refused by name, not by a traceback."""
    archive = forge(tmp_path / "a.tar.zst", [(_entry("note", kind, **changes), b"")])

    with pytest.raises(DamagedError, match="not allowed in a snapshot"):
        _extract(archive, tmp_path / "out")


@pytest.mark.parametrize("path", [".sagewai-ops-staging", ".sagewai-ops-x/y"])
def test_names_of_our_own_are_refused(tmp_path: Path, path: str) -> None:
    """No archive can create a mark or a journal."""
    directory = path.partition("/")[0]
    members = [(_entry(path), b"x")]
    if directory != path:
        members.insert(0, (_entry(directory, EntryType.DIRECTORY), b""))
    archive = forge(tmp_path / "a.tar.zst", members)

    with pytest.raises(DamagedError, match="reserved"):
        _extract(archive, tmp_path / "out")

    assert os.listdir(tmp_path / "out") == []


_DATABASE = b"SQLite format 3\0" + bytes(84)
_HOSTILE = b"x" + b"/etc/passwd" + (11).to_bytes(4, "big") + bytes(4)
_HOSTILE += bytes.fromhex("d9d505f920a163d7")


def test_log_of_a_database_is_not_extracted(tmp_path: Path) -> None:
    """A journal that deletes a file is refused; a file with such a name alone is not."""
    directory = _entry("data", EntryType.DIRECTORY)
    database, journal = _entry("data/x.db"), _entry("data/x.db-journal")
    for name, content, is_refused in (
        ("hostile", _DATABASE, True),
        ("no-database", b"text", False),
    ):
        members = [(directory, b""), (database, content), (journal, _HOSTILE)]
        archive = write(tmp_path / f"{name}.tar.zst", members)
        if is_refused:
            with pytest.raises(DamagedError, match="log of a database"):
                _extract(archive, tmp_path / name)
        else:
            assert _extract(archive, tmp_path / name).files == 2


@pytest.mark.parametrize("kind", [EntryType.FILE, EntryType.DIRECTORY])
def test_file_system_that_ignores_case_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: EntryType
) -> None:
    """Two names that are one there are no fault of the archive, and neither is overwritten."""
    names = ("Note", "note")
    members = [(_entry(name, kind), b"") for name in names]
    archive = write(tmp_path / "a.tar.zst", members)
    seen: set[str] = set()

    def refuse_twins(function: Any) -> Any:
        def call(name: Any, *arguments: Any, **options: Any) -> Any:
            if name in names:
                if name.lower() in seen:
                    raise OSError(errno.EEXIST, "File exists", name)
                seen.add(name.lower())
            return function(name, *arguments, **options)

        return call

    monkeypatch.setattr(os, "open", refuse_twins(os.open))
    monkeypatch.setattr(os, "mkdir", refuse_twins(os.mkdir))

    with pytest.raises(UsageError, match="note: this file system cannot store it next to Note"):
        _extract(archive, tmp_path / "out")


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ])
def test_name_that_a_file_system_cannot_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A colon on exFAT, a long name on eCryptfs, bytes that are not UTF-8 on others."""
    archive = write(tmp_path / "a.tar.zst", [(_entry("note:1"), b"")])
    real = os.open

    def refuse(name: Any, *arguments: Any, **options: Any) -> int:
        if name == "note:1":
            raise OSError(number, os.strerror(number), name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(UsageError, match="note:1: a name that this file system cannot store"):
        _extract(archive, tmp_path / "out")


def test_link_that_a_file_system_cannot_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT has no symbolic links, and answers EPERM."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)

    with pytest.raises(UsageError, match="config/link: a symbolic link"):
        _extract(write(tmp_path / "a.tar.zst", MEMBERS), tmp_path / "out")
