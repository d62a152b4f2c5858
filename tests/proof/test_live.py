"""Each command of tests/proof/live.py once; `make live` runs each for thirty seconds."""

from pathlib import Path

from postgres_server import Server
from proof.live import COMMANDS, SERVER, Scene, through


def test_every_copy_of_a_home_in_use_is_of_one_moment(tmp_path: Path, postgres: Server) -> None:
    """Whole transactions, whole documents, all that was committed before it began."""
    tallies = through(Scene(tmp_path, postgres), 0)

    assert [tally.name for tally in tallies] == [*COMMANDS, SERVER, "the home itself"]
    assert [tally.violations for tally in tallies] == [[]] * len(tallies)
    assert all(tally.runs for tally in tallies)
