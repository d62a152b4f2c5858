"""Compare a built wheel with the files that git tracks: nothing missing, nothing foreign.

The manual pages count: they install into share/man/man1, where man(1) of an environment looks.
"""

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

# Directory in git -> package in the wheel; the directory mapping of pyproject.toml.
_PACKAGES = {
    "sagewai_ops": "sagewai_ops",
    "commands": "sagewai_ops/commands",
    "migrations": "sagewai_ops/migrations",
}


_PAGES = ".data/data/share/man/man1/"


def expected() -> set[str]:
    """List the paths that the wheel must hold for the files that git tracks."""
    tracked = subprocess.run(
        ["git", "ls-files", *_PACKAGES, "man/*.1"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    paths = set()
    for name in tracked:
        top, _, rest = name.partition("/")
        if top == "man":
            paths.add(rest)
        elif PurePosixPath(name).suffix != ".md":
            paths.add(f"{_PACKAGES[top]}/{rest}")
    return paths


def main() -> int:
    """Print the differences and return the exit code."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    built = {
        name.rpartition(_PAGES)[2]
        for name in zipfile.ZipFile(wheel).namelist()
        if ".dist-info/" not in name
    }
    missing, foreign = sorted(expected() - built), sorted(built - expected())
    for name in missing:
        print(f"{wheel.name}: lacks {name}")
    for name in foreign:
        print(f"{wheel.name}: holds {name}, which git does not track")
    return 1 if missing or foreign else 0


if __name__ == "__main__":
    sys.exit(main())
