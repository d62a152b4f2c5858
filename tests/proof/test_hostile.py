"""A few of the hostile archives of tests/proof/hostile.py; `make fuzz` tries them all."""

from pathlib import Path

import archives
from program import call
from proof import mutants
from proof.hostile import MOST_BYTES, Runner, break_in

FAMILIES = (
    *("flipped", "truncated", "rearranged", "spliced", "bombs", "seek table", "edited"),
    *("outside links", "texts"),
)


def test_no_archive_makes_the_program_break_a_promise(tmp_path: Path) -> None:
    """Refused with an error and a hint, nothing left, nothing outside; some of each family."""
    runner = Runner()

    tried = break_in(tmp_path, 12, 3, FAMILIES, runner)

    assert [family.name for family in tried] == list(FAMILIES)
    assert [family.violations for family in tried] == [[]] * len(FAMILIES)
    assert all(family.refused for family in tried)
    assert 0 < runner.peak_bytes <= MOST_BYTES


def test_a_path_with_a_lone_surrogate_is_printed_in_ascii(tmp_path: Path) -> None:
    """JSON can contain what no encoding of text can; the error is shown anyway."""
    sound = mutants.dissect(archives.small(tmp_path / "sound.tar.zst").read_bytes())
    first, second, *rest = sound.document["entries"]
    document = {**sound.document, "entries": [first, {**second, "path": "\ud800"}, *rest]}
    path = tmp_path / "a.tar.zst"
    path.write_bytes(mutants.build(sound.members, mutants.encoded(document), sound.own))

    answer = call("snapshots", "verify", path)

    assert answer.code == 16
    assert f"{path}: manifest.json: entry \\ud800: not allowed" in answer.err
