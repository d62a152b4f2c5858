"""The origin of a snapshot: authentic, not authenticated or forged, in every command."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import archives
from home_builder import BuiltHome
from program import Answer, call, taken
from sagewai_ops.archive.authentication import derive_key
from sagewai_ops.archive.manifest import Header
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.writer import ArchiveWriter
from sagewai_ops.snapshots.authenticity import read_origin
from small_homes import small

GOLDEN = Path(__file__).parents[2] / "fixtures/snapshots"
KEY = b"A" * 43 + b"="
OTHER_KEY = b"B" * 43 + b"="
FINGERPRINT = "f" * 16  # of KEY, as the headers here have it


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltHome:
    """A home, only read."""
    return small(tmp_path_factory.mktemp("origin") / "home")


@pytest.fixture(scope="module")
def archive(built: BuiltHome) -> Path:
    """A clear snapshot of it, only read."""
    return taken(call("--home", built.root, "backup", "--json"))


def _write(path: Path, *, key: bytes | None, fingerprint: str = FINGERPRINT) -> Path:
    """Write an archive of format 2."""
    header = Header("test", 2, {"sequence": 7, "home_id": "h", "key_fingerprint": fingerprint})
    with open(path, "wb") as stream:
        writer = ArchiveWriter(
            stream,
            header,
            mtime_ns=archives.MOMENT_NS,
            key=derive_key(fingerprint, key) if key else None,
        )
        writer.finish({"id": "test"})
    return path


@pytest.mark.parametrize(
    ("key", "named", "known", "expected"),
    [
        (KEY, FINGERPRINT, (KEY,), "authentic"),
        (KEY, FINGERPRINT, (), "not authenticated, no master key available"),
        (KEY, FINGERPRINT, (OTHER_KEY,), "forged"),  # OTHER_KEY, by the name of KEY
        (None, FINGERPRINT, (KEY,), "forged"),
        (None, "", (KEY,), "not authenticated, created without a key"),
        (OTHER_KEY, "e" * 16, (KEY,), f"not authenticated, another key: {'e' * 16}"),
    ],
)
def test_origin_is_decided_by_the_key_that_is_named(
    tmp_path: Path, key: bytes | None, named: str, known: tuple[bytes, ...], expected: str
) -> None:
    """The key named in the header is available: authentic or forged; else it is unknown."""
    path = _write(tmp_path / "a.tar.zst", key=key, fingerprint=named)

    with open_archive(path) as reader:
        origin = read_origin(reader, path, [derive_key(FINGERPRINT, value) for value in known])

    assert origin.words.startswith(expected)


def test_archive_and_mirror_of_a_home_are_authentic(built: BuiltHome, archive: Path) -> None:
    """With the home's key; with no key or another one, it is unknown who wrote them."""
    mirror = call("--home", built.root, "backup", "--format", "directory", "--json").result[
        "archive"
    ]

    for path in (archive, mirror):
        answer = call("--home", built.root, "snapshots", "verify", path, "--json")
        assert answer.result["authenticity"] == "authentic"
        lost = call("--home", built.root / "lost", "snapshots", "verify", path, "--json")
        assert lost.result["authenticity"] == "not authenticated"
        strict = call(
            "--home", built.root / "lost", "snapshots", "verify", path, "--require-authentic"
        )
        assert strict.code == 16
    extra = call(
        "--home", built.root / "lost", "snapshots", "verify", archive, "--require-authentic",
        "--extra-key", built.root / "secrets/master.key",
    )  # fmt: skip
    assert extra.code == 0, extra.err


def test_changed_mac_of_a_mirror_is_forged(built: BuiltHome, tmp_path: Path) -> None:
    """Or a missing one, which is damage."""
    place = tmp_path / "backups"
    call("--home", built.root, "backup", "--format", "directory", "--snapshots", place)
    mac = place / "tree/.sagewai-ops-manifest.hmac"
    mac.write_text("1" * 64 + "\n")

    forged = call("--home", built.root, "restore", place / "tree", "--to", tmp_path / "new")
    mac.unlink()
    damaged = call("--home", built.root, "snapshots", "verify", place / "tree")

    assert (forged.code, damaged.code) == (16, 16)
    assert "forged" in forged.err
    assert not (tmp_path / "new").exists()


def _restore(home: Path, archive: Path, target: Path) -> Answer:
    return call("--home", home, "restore", archive, "--to", target)


def _drill(home: Path, archive: Path, _target: Path) -> Answer:
    return call("--home", home, "drill", archive)


def _extract(home: Path, archive: Path, target: Path) -> Answer:
    return call("--home", home, "snapshots", "extract", archive, "--to", target)


def _verify(home: Path, archive: Path, _target: Path) -> Answer:
    return call("--home", home, "snapshots", "verify", archive)


def _show(home: Path, archive: Path, _target: Path) -> Answer:
    return call("--home", home, "snapshots", "show", archive)


def _diff(home: Path, archive: Path, _target: Path) -> Answer:
    return call("--home", home, "snapshots", "diff", archive, archive)


COMMANDS = [_restore, _drill, _extract, _verify, _show, _diff]


@pytest.mark.parametrize("command", COMMANDS)
def test_archive_under_another_name_is_refused(
    built: BuiltHome, archive: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    """An old snapshot that was renamed to look like the newest: 16, and nothing is written."""
    renamed = tmp_path / "sagewai-20270101T000000Z-ffffff.tar.zst"
    shutil.copy(archive, renamed)

    answer = command(built.root, renamed, tmp_path / "new")

    assert answer.code == 16
    assert "forged, its content is snapshot" in answer.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_archive_that_contradicts_its_metadata_file_is_refused(
    built: BuiltHome, archive: Path, tmp_path: Path, command: Callable[..., Answer]
) -> None:
    """The hint writes the metadata file again."""
    copy = Path(shutil.copy(archive, tmp_path))
    card = archive.with_name(archive.name + ".json").read_text()
    (tmp_path / (copy.name + ".json")).write_text(
        card.replace('"sequence": 1,', '"sequence": 999,')
    )

    answer = command(built.root, copy, tmp_path / "new")

    assert answer.code == 16
    assert "metadata file 999" in answer.err
    assert "snapshots list --rebuild" in answer.err


def test_snapshots_of_the_first_format_are_not_authenticated(tmp_path: Path) -> None:
    """They are restored, unless only authentic ones are wanted."""
    archive = shutil.copy(GOLDEN / "version-1.tar.zst", tmp_path)
    words = ("restore", archive, "--without-key", "--to")

    restored = call(*words, tmp_path / "new", "--json")
    refused = call(*words, tmp_path / "other", "--require-authentic")

    assert restored.result["authenticity"] == "not authenticated"
    assert restored.result["authenticity_reason"] == "format 1 has no authentication"
    assert refused.code == 16
    assert not os.path.lexists(tmp_path / "other")


def test_sealed_key_is_no_proof_of_its_archive(tmp_path: Path) -> None:
    """The writer of an archive can choose the key in it."""
    archive = shutil.copy(GOLDEN / "version-1.tar.zst.age", tmp_path)
    identity = shutil.copy(GOLDEN / "identity.txt", tmp_path)
    os.chmod(identity, 0o600)

    answer = call(
        "--home", tmp_path / "lost", "restore", archive, "--to", tmp_path / "new",
        "--identity", identity, "--require-authentic",
    )  # fmt: skip

    assert answer.code == 16
