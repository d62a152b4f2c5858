"""The archive as a container: contents are read as written, and every change is refused."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import archives
from sagewai_ops.archive import manifest as manifest_module
from sagewai_ops.archive.age import Decryption, Encryption, encrypting, temporary_identity
from sagewai_ops.archive.digest import MemberDigest
from sagewai_ops.archive.manifest import (
    FORMAT_VERSION,
    Entry,
    EntryType,
    Header,
    decode_manifest,
    encode_header,
)
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.packed_list import PackedList
from sagewai_ops.archive.reader import EntryChecks
from sagewai_ops.archive.tar import member_header
from sagewai_ops.archive.writer import ArchiveWriter
from sagewai_ops.archive.zstd_frames import FRAME_BYTES, FrameWriter
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
def test_tarfile_reads_headers_as_their_entries(entry: Entry) -> None:
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
def test_contents_are_read_as_written(tmp_path: Path, contents: list[bytes]) -> None:
    """Every content is read back as it was written."""
    members = [
        (Entry(f"f{number}", EntryType.FILE, 0o600, archives.MOMENT_NS), content)
        for number, content in enumerate(contents)
    ]

    path = archives.write(tmp_path / "a.tar.zst", members)

    found = contents_of(path)
    assert [found[f"f{number}"] for number in range(len(contents))] == contents


def test_content_may_span_frames(tmp_path: Path) -> None:
    """A file longer than a frame is complete, also when it is read alone."""
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
    """Archives with a passphrase, which this program encrypts itself."""

    def test_archive_is_read_with_the_passphrase(self, tmp_path: Path) -> None:
        """The passphrase decrypts the archive."""
        path = archives.small(tmp_path / "a.age", Encryption(passphrase="correct horse"))

        assert "config/admin-state.json" in contents_of(
            path, Decryption(passphrase="correct horse")
        )

    def test_another_passphrase_is_a_missing_key(self, tmp_path: Path) -> None:
        """A wrong passphrase is not reported as damage."""
        path = archives.small(tmp_path / "a.age", Encryption(passphrase="correct horse"))

        with pytest.raises(KeyMissingError, match="wrong passphrase"):
            contents_of(path, Decryption(passphrase="battery staple"))

    def test_missing_passphrase_is_a_missing_key(self, tmp_path: Path) -> None:
        """Without a passphrase the hint names the option."""
        path = archives.small(tmp_path / "a.age", Encryption(passphrase="correct horse"))

        with pytest.raises(KeyMissingError) as caught:
            contents_of(path)
        assert "--passphrase-file" in caught.value.hint

    @pytest.mark.parametrize("size_bytes", [0, 1, 65535, 65536, 65537, 200_000])
    def test_pyrage_decrypts_it(self, size_bytes: int) -> None:
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

    def test_a_stream_that_cannot_go_back_is_decrypted(self) -> None:
        """That of a remote place has no seek."""
        import io

        from sagewai_ops.archive import age_passphrase

        class Forward(io.BytesIO):
            def seek(self, *_arguments: int) -> int:
                raise io.UnsupportedOperation

        out = io.BytesIO()
        sink = age_passphrase.PassphraseSink(out, "p", work_factor_log2=2)
        sink.write(b"learned" * 20_000)
        sink.close()

        pieces = age_passphrase.decrypt_stream(Forward(out.getvalue()), "p", "x")

        assert b"".join(pieces) == b"learned" * 20_000

    def test_stream_decrypts_to_its_content(self) -> None:
        """A stream decrypts to its content, and each flipped bit is refused."""
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


def test_work_factor_is_bounded() -> None:
    """A header cannot demand gigabytes before anything is authentic, unless that is allowed."""
    import io

    from sagewai_ops.archive import age_passphrase

    stanza = b"-> scrypt " + b"A" * 22 + b" %d\n" + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n"
    header = b"age-encryption.org/v1\n" + stanza + bytes(80)
    for factor, error in ((21, UsageError), (22, UsageError), (23, DamagedError)):
        with pytest.raises(error):
            next(age_passphrase.decrypt_stream(io.BytesIO(header % factor), "p", "x"))


def test_another_identity_does_not_open_it(tmp_path: Path) -> None:
    """An identity of another recipient is a missing key, not damage."""
    recipient, _identity = temporary_identity()
    _other, stranger = temporary_identity()
    path = archives.small(tmp_path / "a.age", Encryption(recipients=(recipient,)))

    with pytest.raises(KeyMissingError):
        contents_of(path, Decryption(identities=(stranger,)))
    with pytest.raises(KeyMissingError):
        contents_of(path)


def test_invalid_recipient_is_refused() -> None:
    """A typing error in a public key is found before any work."""
    from sagewai_ops.archive.age import check_recipients

    with pytest.raises(UsageError, match="age1nonsense"):
        check_recipients(["age1nonsense"])


def file(path: str, **fields: object) -> Entry:
    """Return the entry of a file, allowed or not."""
    return Entry(path, EntryType.FILE, 0o600, archives.MOMENT_NS, **fields)  # type: ignore[arg-type]


def link(path: str, target: str) -> Entry:
    """Return the entry of a link, allowed or not."""
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
    """An archive with a forbidden path is refused before any member is read."""
    path = archives.forge(tmp_path / "a.tar.zst", members)

    with pytest.raises(DamagedError):
        contents_of(path)


def test_manifest_that_contradicts_the_stream_is_refused(tmp_path: Path) -> None:
    """Another size, hash, mode, type or name than the stream's is refused."""
    honest = file("x", size_bytes=3, sha256=hashlib.sha256(b"abc").digest())
    false_entries = [
        file("y", size_bytes=3, sha256=honest.sha256),
        file("x", size_bytes=3, sha256=hashlib.sha256(b"abd").digest()),
        file("x", size_bytes=4, sha256=honest.sha256),
        Entry("x", EntryType.FILE, 0o644, archives.MOMENT_NS, 0, 0, 3, honest.sha256),
        Entry("x", EntryType.FILE, 0o600, archives.MOMENT_NS, 1, 0, 3, honest.sha256),
    ]

    for number, entry in enumerate(false_entries):
        path = archives.forge(tmp_path / f"{number}", [(file("x"), b"abc")], listed=[entry])
        with pytest.raises(DamagedError):
            contents_of(path)


def test_unknown_entry_type_is_refused(tmp_path: Path) -> None:
    """A manifest with an unknown type of entry is refused."""
    path = archives.forge(
        tmp_path / "a",
        [(file("x"), b"abc")],
        manifest=lambda body: body.replace(
            b'"path": "x", "type": "file"', b'"path": "x", "type": "device"'
        ),
    )

    with pytest.raises(DamagedError):
        contents_of(path)


def test_bomb_is_not_expanded(tmp_path: Path) -> None:
    """A manifest of zeros that would fill memory is refused by its size."""
    path = archives.forge(
        tmp_path / "a", [(file("x"), b"abc")], manifest=lambda body: body + bytes(64 << 20)
    )

    assert path.stat().st_size < 64_000
    with pytest.raises(DamagedError, match="too long"):
        contents_of(path)


def test_newer_format_is_not_damage(tmp_path: Path) -> None:
    """A format that this program does not know asks for a newer program."""
    newer = encode_header(Header("later", format_version=FORMAT_VERSION + 1))
    path = archives.forge(tmp_path / "a", [(file("x"), b"abc")], header=newer)

    with pytest.raises(SchemaAheadError, match=f"format {FORMAT_VERSION + 1}") as caught:
        contents_of(path)
    assert caught.value.exit_code == 18


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("rest", [b"", b"of a container of an unknown kind" * 9])
def test_newer_format_is_detected_from_its_first_frame(
    tmp_path: Path, rest: bytes, *, encrypted: bool
) -> None:
    """All else may differ in a newer one, which is not reported as damaged."""
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


def test_first_frame_with_a_huge_window_is_damage(tmp_path: Path) -> None:
    """A frame's header may claim a window of 128 MiB, which a reader would allocate at once."""
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
def test_damaged_first_frame_has_no_version(tmp_path: Path, position: int) -> None:
    """Neither does one of this format whose end is damaged."""
    version = 2 if position in range(61) else 1
    header = encode_header(Header("later", format_version=version))
    path = archives.forge(tmp_path / "a", [(file("x"), b"abc")], header=header)
    content = bytearray(path.read_bytes()[:-20] if version == 2 else path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedError):
        contents_of(path)


def test_files_that_are_not_archives_are_refused(tmp_path: Path) -> None:
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


def test_shrinking_file_is_padded_and_read_again(tmp_path: Path) -> None:
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
        added = writer.add_file(file("artifact"), stream)
        assert added
        writer.finish({})

    assert added.is_stable
    with open_archive(path) as reader:
        types = [entry.type.value for entry in reader.manifest.entries]
        assert types == ["file", "superseded", "file"]
        last = [b"".join(map(bytes, content)) for _entry, content in reader.members()][-1]
    assert last == b"x" * (FRAME_BYTES + 50)
    with tarfile.open(fileobj=archives.tar_stream(path)) as tar:
        assert tar.getmember("artifact").size == FRAME_BYTES + 50


@pytest.mark.skipif(not shutil.which("zstd") or not shutil.which("tar"), reason="no zstd or tar")
@pytest.mark.parametrize(
    "alter",
    [
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:-1],
        lambda content: content + b"x",
    ],
    ids=["first", "last", "shorter", "longer"],
)
def test_frame_that_a_compressor_altered_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, alter: Callable[[bytes], bytes]
) -> None:
    """Each frame is decompressed again and compared before it is written or sent."""
    real = zstandard.ZstdCompressor

    class Altering:
        def __init__(self, **options: Any) -> None:
            self._compressor = real(**options)

        def compress(self, content: memoryview) -> bytes:
            return self._compressor.compress(alter(bytes(content)))

    content = random.Random(1).randbytes(1 << 20)
    for count in (FRAME_BYTES, 700_000):
        sent = io.BytesIO()
        writer = FrameWriter(sent)
        writer.write((content * 4)[:count])
        writer.finish(0)
        assert sent.getvalue()

    monkeypatch.setattr(zstandard, "ZstdCompressor", Altering)
    for count in (FRAME_BYTES, 700_000):
        sent = io.BytesIO()
        writer = FrameWriter(sent)
        writer.write((content * 4)[:count])
        with pytest.raises(DamagedError, match="differs from its content"):
            writer.finish(0)
        writer.close()
        assert not sent.getvalue()


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_an_archive_is_compared_with_what_was_written(
    tmp_path: Path, *, is_encrypted: bool
) -> None:
    """All of its bytes, and the list of its members with their hashes."""
    recipient, identity = temporary_identity()
    encryption = Encryption(recipients=(recipient,)) if is_encrypted else None
    decryption = Decryption(identities=(identity,)) if is_encrypted else None
    path = tmp_path / "a.tar.zst"
    seen: list[int] = []
    with open(path, "wb") as stream, encrypting(stream, encryption) as sink:
        writer = ArchiveWriter(sink, Header("test"), mtime_ns=archives.MOMENT_NS)
        with contextlib.closing(writer):
            writer.add_bytes(file("small"), b"content")
            with open(os.devnull, "rb", 0) as empty:
                writer.add_copy(file("empty"), empty, path)
            writer.finish({"id": "test"})

    with open_archive(path, decryption) as reader:
        reader.verify_written(writer.written, on_bytes=seen.append)
        assert sum(seen) == reader.archive_bytes > 0
        reader.verify()
        for changed, match in (
            (dataclasses.replace(writer.written, archive=bytes(32)), "differs from what was"),
            (dataclasses.replace(writer.written, members=bytes(32)), "differs from the members"),
        ):
            with pytest.raises(DamagedError, match=match):
                reader.verify_written(changed)


def test_every_flipped_bit_differs_from_what_was_written(tmp_path: Path) -> None:
    """In frames, trailer and seek table, of which each byte counts."""
    path = tmp_path / "a.tar.zst"
    with open(path, "wb") as stream:
        writer = ArchiveWriter(stream, Header("test"), mtime_ns=archives.MOMENT_NS)
        writer.add_bytes(file("name"), b"content" * 20)
        writer.finish({"id": "test"})
    whole = path.read_bytes()

    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises((DamagedError, SchemaAheadError)), open_archive(path) as reader:
            reader.verify_written(writer.written)


def test_members_that_the_list_lacks_or_alters_are_noticed(tmp_path: Path) -> None:
    """Header or hash: the digest of members depends on each of them and on their order."""
    entries = [file("a"), dataclasses.replace(file("b"), sha256=bytes(32))]
    variants = [
        entries,
        entries[::-1],
        entries[:1],
        [entries[0], dataclasses.replace(entries[1], sha256=bytes(31) + b"x")],
        [entries[0], dataclasses.replace(entries[1], mode=0o640)],
    ]
    digests = set()
    for variant in variants:
        members = MemberDigest()
        for entry in variant:
            members.add_header(entry)
            members.add_content(entry)
        digests.add(members.digest())

    assert len(digests) == len(variants)


def test_zstd_and_tar_open_an_archive(tmp_path: Path) -> None:
    """The commands of docs/format.md extract the same files."""
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
def test_age_opens_an_archive(tmp_path: Path) -> None:
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


def test_entries_are_packed_without_loss() -> None:
    """Whatever the fields; an index reads the same as an iteration."""
    entries = (
        Entry("snapshot.json", EntryType.FILE, 0o600, 1, 2, 3, 4, b"\1" * 32, is_sparse=True),
        Entry("data", EntryType.DIRECTORY, 0o7777, -(2**63), 2**63 - 1, 0),
        Entry("data/\udcff\udcc3\udca9", EntryType.LINK, 0o777, 0, target="é/\udc80"),
        Entry("data/out", EntryType.LINK, 0o777, 0, target="/x", is_outside=True),
        Entry("data/home", EntryType.LINK, 0o777, 0, target="..", is_absolute=True),
    )
    packed = PackedList(manifest_module._pack, manifest_module._unpack)
    for _ in range(1000):
        for entry in entries:
            packed.append(entry)

    assert tuple(packed) == entries * 1000
    assert (len(packed), packed[4999], packed[:2]) == (5000, entries[4], entries[:2])


def test_manifest_of_many_directories_needs_little_memory() -> None:
    """Ten thousand entries take less than 5 MB, most of it for a moment."""
    count = 10_000
    first = {"path": "snapshot.json", "type": "file", "size": 1, "sha256": "00" * 32}
    common = {"mode": "0755", "uid": 0, "gid": 0, "mtime_ns": 1}
    head = json.dumps({"format": 1, "id": "x"}, indent=1).removesuffix("\n}") + ',\n "entries": ['

    def pieces() -> Iterator[bytes]:
        yield f"{head}\n{json.dumps({**first, **common})}".encode()
        for number in range(count):
            entry = {"path": f"d{number}", "type": "folder", **common}
            yield b",\n" + json.dumps(entry).encode()
        yield b"\n]}\n"

    checks = EntryChecks("archive")
    tracemalloc.start()
    try:
        manifest = decode_manifest(pieces(), checks.add)
        checks.finish(manifest, Header("x"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(manifest.entries) == count + 1
    assert peak < 5_000_000
