"""Core dumps are off in every run."""

from __future__ import annotations

import subprocess
import sys

# Prints the limit and the flag that the program has at its end, after `main` has run a command.
SCRIPT = """
import ctypes, resource, sys
from sagewai_ops.cli.main import main
try:
    main(["config", "--json"])
except SystemExit:
    pass
limit = resource.getrlimit(resource.RLIMIT_CORE)
print(limit, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), len(open("/proc/self/status").read()) > 0,
      file=sys.stderr)
"""


def test_no_run_dumps_its_memory() -> None:
    """It has keys in it; the run itself still reads its own entries of /proc."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )

    assert done.stderr.splitlines()[-1] == "(0, 0) 0 True"
