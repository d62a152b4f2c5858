"""The archive as a container: what goes in comes out, and whatever was touched is refused."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pyrage
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import archives
from sagewai_ops.archive.age import Decryption, Encryption, temporary_identity
from sagewai_ops.archive.manifest import (
    FORMAT_VERSION,
    Entry,
    EntryType,
    Header,
    encode_header,
)
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.tar import member_header
from sagewai_ops.archive.writer import ArchiveWriter
from sagewai_ops.archive.zstd_frames import FRAME_BYTES
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    NotFoundError,
    OpsError,
    SchemaAheadError,
    UsageError,
)

NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=80
).filter(lambda name: name not in (".", ".."))
ENTRIES = st.builds(
    Entry,
    path=st.lists(NAMES, min_size=1, max_size=4).map("/".join),
    type=st.just(EntryType.FILE),
    mode=st.integers(0, 0o7777),
    mtime_ns=st.integers(0, 8**11 * 1_000_000_000 - 1),
    uid=st.integers(0, 8**7 - 1),
    gid=st.integers(0, 8**7 - 1),
    size_bytes=st.integers(0, 2**45),
    sha256=st.just(bytes(32)),
)


def contents_of(path: Path, decryption: Decryption | None = None) -> dict[str, bytes]:
    """Read every member through the reader."""
    with open_archive(path, decryption) as reader:
        return {
            entry.path: b"".join(bytes(piece) for piece in content)
            for entry, content in reader.members()
        }


@given(ENTRIES)
def test_a_header_says_to_tarfile_what_the_entry_says(entry: Entry) -> None:
    """Python's tarfile reads path, mode, owner, size and time as they were."""
    import io

    with tarfile.open(fileobj=io.BytesIO(member_header(entry)), mode="r") as tar:
        info = tar.next()

    assert info is not None
    assert (info.name, info.mode, info.size) == (entry.path, entry.mode, entry.size_bytes)
    assert (info.uid, info.gid) == (entry.uid, entry.gid)
    assert info.mtime == entry.mtime_ns // 1_000_000_000


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_what_goes_in_comes_out(tmp_path: Path, contents: list[bytes]) -> None:
    """Every content is read back as it was written."""
    members = [
        (Entry(f"f{number}", EntryType.FILE, 0o600, archives.MOMENT_NS), content)
        for number, content in enumerate(contents)
    ]

    path = archives.write(tmp_path / "a.tar.zst", members)

    found = contents_of(path)
    assert [found[f"f{number}"] for number in range(len(contents))] == contents


def test_a_content_may_span_frames(tmp_path: Path) -> None:
    """A file longer than a frame is whole, and reading it alone gives the same."""
    content = hashlib.sha256(b"x").digest() * (FRAME_BYTES // 32 * 2 + 5)
    big = Entry("big", EntryType.FILE, 0o600, archives.MOMENT_NS)
    path = archives.write(
        tmp_path / "a.tar.zst", [(archives.DIRECTORY, b""), (archives.STATE, b"{}"), (big, content)]
    )

    assert contents_of(path)["big"] == content
    with open_archive(path) as reader:
        alone = {
            entry.path: b"".join(bytes(piece) for piece in pieces)
            for entry, pieces in reader.members(lambda entry: entry.path == "big")
        }
    assert alone == {"big": content}


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    """Not one bit of an archive can change unnoticed, not even those that zstd ignores."""
    path = archives.small(tmp_path / "a.tar.zst")
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.tar.zst"

    for position in range(len(whole)):
        for bit in (1 << (position % 8), 0x10):
            flipped = bytearray(whole)
            flipped[position] ^= bit
            damaged.write_bytes(flipped)
            with pytest.raises((DamagedError, SchemaAheadError)):
                contents_of(damaged)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """An archive that ends early is refused, wherever it ends; so is one that goes on."""
    path = archives.small(tmp_path / "a.tar.zst")
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.tar.zst"

    for length in range(len(whole)):
        damaged.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            contents_of(damaged)
    damaged.write_bytes(whole + b"\0")
    with pytest.raises(DamagedError):
        contents_of(damaged)


@pytest.mark.parametrize("stride", [7])
def test_a_flipped_byte_under_encryption_is_refused(tmp_path: Path, stride: int) -> None:
    """A changed age stream is refused, in its header, its key and its payload."""
    recipient, identity = temporary_identity()
    path = archives.small(tmp_path / "a.tar.zst.age", Encryption(recipients=(recipient,)))
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.age"

    for position in range(0, len(whole), stride):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        damaged.write_bytes(flipped)
        with pytest.raises((DamagedError, KeyMissingError)):
            contents_of(damaged, Decryption(identities=(identity,)))


class TestPassphrase:
    """Archives under a passphrase, which we stream ourselves."""

    def test_it_comes_back_with_the_passphrase(self, tmp_path: Path) -> None:
        """The right passphrase opens what it closed."""
        path = archives.small(tmp_path / "a.age", Encryption(passphrase="correct horse"))

        assert "config/admin-state.json" in contents_of(
            path, Decryption(passphrase="correct horse")
        )

    def test_another_passphrase_is_a_missing_key(self, tmp_path: Path) -> None:
        """A wrong passphrase is told apart from damage."""
        path = archives.small(tmp_path / "a.age", Encryption(passphrase="correct horse"))

        with pytest.raises(KeyMissingError, match="wrong passphrase"):
            contents_of(path, Decryption(passphrase="battery staple"))

    def test_none_is_a_missing_key(self, tmp_path: Path) -> None:
        """Without a passphrase the message says what to use."""
        path = archives.small(tmp_path / "a.age", Encryption(passphrase="correct horse"))

        with pytest.raises(KeyMissingError) as caught:
            contents_of(path)
        assert "--passphrase-file" in caught.value.hint

    @pytest.mark.parametrize("size_bytes", [0, 1, 65535, 65536, 65537, 200_000])
    def test_pyrage_opens_it(self, size_bytes: int) -> None:
        """Another implementation of age reads every length, chunk borders among them."""
        import io

        from sagewai_ops.archive.age_passphrase import PassphraseSink

        content = bytes(range(256)) * (size_bytes // 256 + 1)
        out = io.BytesIO()
        sink = PassphraseSink(out, "correct horse", work_factor_log2=4)
        for start in range(0, size_bytes, 50_000):
            sink.write(content[start : min(start + 50_000, size_bytes)])
        sink.close()

        assert pyrage.passphrase.decrypt(out.getvalue(), "correct horse") == content[:size_bytes]

    def test_we_open_what_we_write(self) -> None:
        """A stream decrypts to what went in, and each flipped bit is refused."""
        import io

        from sagewai_ops.archive import age_passphrase

        content = b"learned" * 20_000
        out = io.BytesIO()
        sink = age_passphrase.PassphraseSink(out, "p", work_factor_log2=2)
        sink.write(content)
        sink.close()
        sealed = out.getvalue()

        assert b"".join(age_passphrase.decrypt_stream(io.BytesIO(sealed), "p", "x")) == content
        for position in [*range(22, 200), *range(200, len(sealed), 997)]:
            flipped = bytearray(sealed)
            flipped[position] ^= 1
            with pytest.raises((DamagedError, KeyMissingError)):
                list(age_passphrase.decrypt_stream(io.BytesIO(flipped), "p", "x"))


def test_another_identity_does_not_open_it(tmp_path: Path) -> None:
    """An identity that is none of the recipients' is a missing key, not damage."""
    recipient, _identity = temporary_identity()
    _other, stranger = temporary_identity()
    path = archives.small(tmp_path / "a.age", Encryption(recipients=(recipient,)))

    with pytest.raises(KeyMissingError):
        contents_of(path, Decryption(identities=(stranger,)))
    with pytest.raises(KeyMissingError):
        contents_of(path)


def test_a_recipient_that_is_none_is_refused() -> None:
    """A typing error in a public key is found before any work."""
    from sagewai_ops.archive.age import check_recipients

    with pytest.raises(UsageError, match="age1nonsense"):
        check_recipients(["age1nonsense"])


def file(path: str, **fields: object) -> Entry:
    """Make an entry of a file that need not be allowed."""
    return Entry(path, EntryType.FILE, 0o600, archives.MOMENT_NS, **fields)  # type: ignore[arg-type]


def link(path: str, target: str) -> Entry:
    """Make an entry of a link that need not be allowed."""
    return Entry(path, EntryType.LINK, 0o777, archives.MOMENT_NS, target=target)


HOSTILE = {
    "absolute path": [(file("/etc/cron.d/x"), b"x")],
    "parent directory": [(file("../x"), b"x")],
    "parent directory inside": [(archives.DIRECTORY, b""), (file("config/../../x"), b"x")],
    "dot": [(file("./x"), b"x")],
    "empty part": [(archives.DIRECTORY, b""), (file("config//x"), b"x")],
    "NUL in a name": [(file("a\0b"), b"x")],
    "absolute link": [(link("l", "/etc/passwd"), b"")],
    "link that climbs out": [(link("l", "../x"), b"")],
    "link that climbs out later": [(link("l", "a/../../x"), b"")],
    "below a link": [(link("l", "config"), b""), (archives.DIRECTORY, b""), (file("l/x"), b"x")],
    "below a file": [(file("f"), b"x"), (file("f/x"), b"x")],
    "no directory above": [(file("nowhere/x"), b"x")],
    "the same path twice": [(file("x"), b"1"), (file("x"), b"2")],
    "a second manifest": [(file("manifest.json"), b"{}")],
    "a second header": [(file("snapshot.json"), b"{}")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_member_is_refused(tmp_path: Path, members: list[tuple[Entry, bytes]]) -> None:
    """An archive that names a place it must not is refused before anything is read from it."""
    path = archives.forge(tmp_path / "a.tar.zst", members)

    with pytest.raises(DamagedError):
        contents_of(path)


def test_a_manifest_that_lies_is_refused(tmp_path: Path) -> None:
    """Another size, hash, mode, type or name than the stream's is refused."""
    honest = file("x", size_bytes=3, sha256=hashlib.sha256(b"abc").digest())
    lies = [
        file("y", size_bytes=3, sha256=honest.sha256),
        file("x", size_bytes=3, sha256=hashlib.sha256(b"abd").digest()),
        file("x", size_bytes=4, sha256=honest.sha256),
        Entry("x", EntryType.FILE, 0o644, archives.MOMENT_NS, 0, 0, 3, honest.sha256),
        Entry("x", EntryType.FILE, 0o600, archives.MOMENT_NS, 1, 0, 3, honest.sha256),
    ]

    for number, lie in enumerate(lies):
        path = archives.forge(tmp_path / f"{number}", [(file("x"), b"abc")], listed=[lie])
        with pytest.raises(DamagedError):
            contents_of(path)


def test_a_device_cannot_even_be_said(tmp_path: Path) -> None:
    """A manifest with a type that is none of ours is refused."""
    path = archives.forge(
        tmp_path / "a",
        [(file("x"), b"abc")],
        manifest=lambda body: body.replace(
            b'"path": "x", "type": "file"', b'"path": "x", "type": "device"'
        ),
    )

    with pytest.raises(DamagedError):
        contents_of(path)


def test_a_bomb_stays_packed(tmp_path: Path) -> None:
    """A manifest of zeros that would fill memory is refused by its size."""
    path = archives.forge(
        tmp_path / "a", [(file("x"), b"abc")], manifest=lambda body: body + bytes(64 << 20)
    )

    assert path.stat().st_size < 64_000
    with pytest.raises(DamagedError, match="too long"):
        contents_of(path)


def test_a_newer_format_is_told_apart_from_damage(tmp_path: Path) -> None:
    """A format that this program does not know asks for a newer program."""
    newer = encode_header(Header("later", format_version=FORMAT_VERSION + 1))
    path = archives.forge(tmp_path / "a", [(file("x"), b"abc")], header=newer)

    with pytest.raises(SchemaAheadError, match=f"format {FORMAT_VERSION + 1}") as caught:
        contents_of(path)
    assert caught.value.exit_code == 18


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("rest", [b"", b"of a container that nobody knows" * 9])
def test_a_newer_format_is_known_by_its_front_alone(
    tmp_path: Path, rest: bytes, *, encrypted: bool
) -> None:
    """All else may be another in a newer one; such a snapshot is not called damaged."""
    newer = encode_header(Header("later", format_version=FORMAT_VERSION + 1))
    path = archives.forge(tmp_path / "a", [(file("x"), b"abc")], header=newer)
    identity = pyrage.x25519.Identity.generate()
    archive = path.read_bytes()[:-9] + rest
    path.write_bytes(pyrage.encrypt(archive, [identity.to_public()]) if encrypted else archive)

    with (
        pytest.raises(SchemaAheadError, match=f"format {FORMAT_VERSION + 1}"),
        open_archive(path, Decryption(identities=(str(identity),))),
    ):
        pass


def test_a_front_that_asks_for_much_memory_is_damage(tmp_path: Path) -> None:
    """A frame's header may claim a window of 128 MiB, which a reader would set aside at once."""
    newer = encode_header(Header("later", format_version=FORMAT_VERSION + 1))
    first = archives.forge(tmp_path / "a", [], header=newer).read_bytes()
    content = zstandard.ZstdDecompressor().decompressobj().decompress(first)
    wide = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    path = tmp_path / "wide"
    path.write_bytes(compressor.compress(content) + compressor.flush())

    with pytest.raises(DamagedError):
        contents_of(path)


@pytest.mark.parametrize("position", [0, 30, 60, -9, -1])
def test_a_damaged_front_says_nothing_of_a_version(tmp_path: Path, position: int) -> None:
    """Neither does one of this format whose end is damaged."""
    version = 2 if position in range(61) else 1
    header = encode_header(Header("later", format_version=version))
    path = archives.forge(tmp_path / "a", [(file("x"), b"abc")], header=header)
    content = bytearray(path.read_bytes()[:-20] if version == 2 else path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedError):
        contents_of(path)


def test_no_archive_at_all(tmp_path: Path) -> None:
    """A missing file, a directory, an empty file and another file are errors that name the path."""
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not a snapshot\n" * 100)

    for name, error in {
        "missing": NotFoundError,
        ".": NotFoundError,
        "empty": DamagedError,
        "text": DamagedError,
    }.items():
        with pytest.raises(error) as caught:
            contents_of(tmp_path / name)
        assert isinstance(caught.value, OpsError)
        assert str(tmp_path) in caught.value.message


def test_a_file_that_shrinks_is_filled_and_read_again(tmp_path: Path) -> None:
    """A long file cut while it is read stays one member, superseded, and follows once more."""
    source = tmp_path / "artifact"
    source.write_bytes(b"x" * (FRAME_BYTES * 2 + 100))
    path = tmp_path / "a.tar.zst"
    cuts = [FRAME_BYTES + 50]

    class Cut:
        """Cuts the source once, when the writer has read past the first frame."""

        def __call__(self, count: int) -> None:
            if count and cuts and count >= FRAME_BYTES - 1024:
                with open(source, "r+b") as stream:
                    stream.truncate(cuts.pop())

    with open(path, "wb") as out, open(source, "rb", buffering=0) as stream:
        writer = ArchiveWriter(out, Header("test"), mtime_ns=archives.MOMENT_NS, on_bytes=Cut())
        carried = writer.add_file(file("artifact"), stream)
        assert carried
        writer.finish({})

    assert carried.is_stable
    with open_archive(path) as reader:
        types = [entry.type.value for entry in reader.manifest.entries]
        assert types == ["file", "superseded", "file"]
        last = [b"".join(map(bytes, content)) for _entry, content in reader.members()][-1]
    assert last == b"x" * (FRAME_BYTES + 50)
    with tarfile.open(fileobj=archives.tar_stream(path)) as tar:
        assert tar.getmember("artifact").size == FRAME_BYTES + 50


@pytest.mark.skipif(not shutil.which("zstd") or not shutil.which("tar"), reason="no zstd or tar")
def test_zstd_and_tar_open_it_without_us(tmp_path: Path) -> None:
    """The way that docs/format.md documents gives the same files."""
    names = ["plain", "ü 🚀", "n" * 255, "line\nbreak", "\udcff\udcfe"]
    members = [(file(name), name.encode("utf-8", "surrogateescape")) for name in names]
    path = archives.write(tmp_path / "a.tar.zst", members)
    target = tmp_path / "out"
    target.mkdir()

    subprocess.run(
        f"zstd -dc '{path}' | tar -x -C '{target}'", shell=True, check=True, capture_output=True
    )

    for name in names:
        assert (target / name).read_bytes() == name.encode("utf-8", "surrogateescape")


@pytest.mark.skipif(not shutil.which("age") or not shutil.which("zstd"), reason="no age or zstd")
def test_age_opens_it_without_us(tmp_path: Path) -> None:
    """The age program decrypts what was encrypted to a recipient."""
    recipient, identity = temporary_identity()
    path = archives.small(tmp_path / "a.tar.zst.age", Encryption(recipients=(recipient,)))
    (tmp_path / "identity").write_text(identity + "\n")

    listing = subprocess.run(
        f"age -d -i '{tmp_path}/identity' '{path}' | zstd -dc | tar -t",
        shell=True,
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert listing.split() == [
        "snapshot.json",
        "config/",
        "config/admin-state.json",
        "config/link",
        "manifest.json",
    ]
