"""Print the part of constraints.txt that an image needs, with the hashes: see Containerfile.

    python .ci/image_requirements.py setuptools        # these packages alone
    python .ci/image_requirements.py . remote notify   # what this project and its extras need

pip selects the packages of a project for its own Python, at the versions of constraints.txt.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_CONSTRAINTS = Path("constraints.txt")


def read_pins(text: str) -> list[tuple[str, str]]:
    """Return the name and the lines of each requirement."""
    joined = re.findall(
        r"^(?:[A-Za-z0-9].*\\\n(?: +.*\\\n)* +.*|[A-Za-z0-9].*)$", text, re.MULTILINE
    )
    return [(_name(lines), lines) for lines in joined]


def _name(line: str) -> str:
    """Return the normalised name of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", line)
    assert found, line
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _resolve(extras: list[str], pins: list[tuple[str, str]]) -> set[str]:
    """Return the names of what the project in this directory needs, as pip resolves it."""
    tomllib: Any = importlib.import_module("tomllib")  # the oldest Python of the project has none
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    with tempfile.TemporaryDirectory() as directory:
        report, constraints = Path(directory, "report"), Path(directory, "constraints")
        constraints.write_text("\n".join(lines.partition(" \\")[0] for _name, lines in pins))
        words = ["install", "--dry-run", "--quiet", "--ignore-installed", "--report", report]
        command = [sys.executable, "-m", "pip", *words, "--constraint", constraints, *wanted]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text())
    return {_name(item["metadata"]["name"]) for item in found["install"]}


def main(words: list[str]) -> None:
    """Print the requirements."""
    pins = read_pins(_CONSTRAINTS.read_text())
    names = _resolve(words[1:], pins) if words[0] == "." else set(map(_name, words))
    missing = names - {name for name, _lines in pins}
    if missing:
        sys.exit(f"image_requirements: not in constraints.txt: {', '.join(sorted(missing))}")
    print("\n".join(lines for name, lines in pins if name in names))


if __name__ == "__main__":
    main(sys.argv[1:])
