"""A short random life of a home; `make soak` lives longer ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from proof import faults, soak

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not faults.is_possible(), reason="steps are numbered on Linux, with a C compiler"
    ),
]


def test_a_home_lives_through_kills_as_its_model_does() -> None:
    """Fifteen actions of one seed, some of them killed or refused: nothing is lost or torn."""
    done = subprocess.run(
        [sys.executable, soak.__file__, "--actions", "15", "--seed", "5", "--seconds", "200"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed: 5\nheld: " in done.stdout
    assert " faults " in done.stdout
