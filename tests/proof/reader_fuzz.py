"""Run a coverage-guided fuzzer (atheris, libFuzzer) on the reader.

    python tests/proof/reader_fuzz.py -max_total_time=60 DIRECTORY

Other arguments are libFuzzer's; DIRECTORY keeps what it found new. The first byte of an input
chooses what the rest is: an archive as it is; the bytes of both documents; the entries of a
manifest and the stream, with every sum right, so that chance gets past the checksums. Anything but
a refusal by its own error, and anything outside of the directory that was asked for, ends the run
with the input.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent), str(_HERE.parent.parent / "fixtures")]

with atheris.instrument_imports(include=["sagewai_ops.archive", "sagewai_ops.restore.extractor"]):
    from sagewai_ops.archive.open import open_archive
    from sagewai_ops.restore.extractor import extract_members

import archives  # noqa: E402 - the path first
from memory_directory import in_memory  # noqa: E402
from proof import mutants  # noqa: E402
from sagewai_ops.errors import DamagedError, KeyMissingError, SchemaAheadError  # noqa: E402

_CUT = b"\x1d\x1e"  # between the parts of an input
_MOST_LEFT = 2  # entries of the scratch directory: the archive and the target


def main() -> None:
    """Prepare a place and seeds, then fuzz until libFuzzer ends."""
    with tempfile.TemporaryDirectory(prefix="ops-fuzz-", dir=in_memory()) as directory:
        scratch = Path(directory) / "scratch"
        scratch.mkdir()
        seeds = Path(directory) / "seeds"
        seeds.mkdir()
        sound = archives.small(Path(directory) / "sound.tar.zst").read_bytes()
        anatomy = mutants.dissect(sound)
        text = mutants.encoded(anatomy.document)
        header = anatomy.members[0][1]
        (seeds / "archive").write_bytes(b"\0" + sound)
        (seeds / "documents").write_bytes(b"\1" + header + _CUT + text)
        entries = text[text.index(b"[\n") + 2 : text.rindex(b"\n]}")]
        (seeds / "entries").write_bytes(b"\2" + entries + _CUT + b"content")

        def fuzz_input(data: bytes) -> None:
            content = _archive_of(data, anatomy)
            if content is not None:
                _try(scratch, content)

        atheris.Setup([*sys.argv, str(seeds)], fuzz_input)
        with contextlib.suppress(SystemExit):
            atheris.Fuzz()


def _archive_of(data: bytes, anatomy: mutants.Anatomy) -> bytes | None:
    kind, rest = data[:1], data[1:]
    first, _, second = rest.partition(_CUT)
    if kind == b"\1":
        entry = anatomy.members[0][0]
        renewed = mutants.retold(entry, first)
        return mutants.build([(renewed, first), *anatomy.members[1:]], second, anatomy.own)
    if kind == b"\2":
        head = mutants.encoded({**anatomy.document, "entries": []}).removesuffix(b"\n\n]}\n")
        output = b",\n".join((mutants.line_of(anatomy.members[0][0]), first))
        return mutants.build_from_text(head + b"\n" + output + b"\n]}\n", second, anatomy)
    return rest if kind == b"\0" else None


def _try(scratch: Path, content: bytes) -> None:
    path, target = scratch / "a.tar.zst", scratch / "target"
    path.write_bytes(content)
    target.mkdir(mode=0o700)
    try:
        with (
            contextlib.suppress(DamagedError, SchemaAheadError, KeyMissingError),
            open_archive(path) as reader,
        ):
            extract_members(reader, target, lambda entry: entry.path, root=target)
        if len(os.listdir(scratch)) != _MOST_LEFT:
            raise AssertionError(f"{os.listdir(scratch)}: written outside of the target")
    finally:
        shutil.rmtree(target)


if __name__ == "__main__":
    main()
