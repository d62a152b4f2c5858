"""A few of the hostile archives of tests/proof/hostile.py; `make fuzz` tries them all."""

from pathlib import Path

from proof.hostile import MOST_BYTES, Runner, break_in

FAMILIES = (
    *("flipped", "truncated", "rearranged", "spliced", "bombs", "seek table", "edited", "texts"),
)


def test_no_archive_makes_the_program_break_a_promise(tmp_path: Path) -> None:
    """Refused with an error and a hint, nothing left, nothing outside; some of each family."""
    runner = Runner()
    try:
        tried = break_in(tmp_path, 12, 3, FAMILIES, runner)
    finally:
        runner.close()

    assert [family.name for family in tried] == list(FAMILIES)
    assert [family.violations for family in tried] == [[]] * len(FAMILIES)
    assert all(family.refused for family in tried)
    assert 0 < runner.peak_bytes <= MOST_BYTES
