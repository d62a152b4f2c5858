"""Run the tests wherever users run the program: Pythons, dependencies, users, umasks, wheel.

    .ci/matrix.py [--ci] [--list] [--cell NAME]... [--directory DIR]

Each cell is one environment and one run of pytest in it, on what git holds at HEAD. Environments
are made by uv and kept below `.matrix/`. Prints a table; exit 1 if a cell failed. A Python that
pyproject.toml claims and this machine lacks is asked of uv, but not for CI; a cell that cannot be
run (no such Python, not root) is named in the table and is no failure.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from environments import (
    UNPRIVILEGED,
    BuildError,
    Dependencies,
    Environments,
    Kind,
    Python,
    claimed_pythons,
    find_pythons,
    reaches,
)

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 3600  # of one cell, on a slow machine
PACKAGES = ("sagewai_ops", "commands", "migrations")  # what the wheel replaces
# Tests that meet every command line, every dependency, modes, owners and sqlite-vec.
CORE: tuple[str, ...] = (
    "cli/test_backup",
    "cli/test_command_line",
    "cli/test_completion",
    "cli/test_config_file",
    "cli/test_db",
    "cli/test_export_to_postgres",
    "cli/test_init",
    "cli/test_restore",
    "cli/test_verify_perms",
    "database/test_vectors",
    "docs/test_man_pages",
    "fs/test_atomic",
    "keys/test_escrow",
    "operations/test_init",
    "schema/test_create",
    "schema/test_migrations",
)
# And where sqlite-vec can be loaded, those that then take another path.
OF_VECTORS = (
    "database/test_integrity",
    "export/test_export",
    "export/test_*learnings",
    "export/test_vector_rows",
    "fixtures/test_home_builder",
)
# Those that read the sources, which a wheel does not have.
OF_SOURCES = ("test_promises.py", "test_words.py")
ABSENT = "no such Python here"
SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected|xfailed)")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    Attributes:
        python: None if this machine has no such Python.
        wheel: Installed from the wheel, else from the checkout.
        user: Whose process it is; this one's if empty.
        whole: All tests, else the core.
        ci: Part of what CI takes.
    """

    name: str
    python: Python | None
    dependencies: Dependencies = "highest"
    wheel: bool = False
    user: str = ""
    umask: int = 0o022
    whole: bool = False
    ci: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a cell; `skipped` is the reason why it was not run."""

    cell: Cell
    counts: dict[str, int]
    seconds: float
    failed: bool = False
    skipped: str = ""


def main() -> int:
    """Run the requested cells, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ci", action="store_true", help="only the part that CI takes")
    parser.add_argument("--list", action="store_true", help="print the cells and run none")
    parser.add_argument("--cell", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--directory", type=Path, help="for environments and logs")
    arguments = parser.parse_args()
    os.umask(0o022)  # what is made here is read by another user
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    claimed = claimed_pythons(REPOSITORY / "pyproject.toml")
    if arguments.list:
        cells = _chosen(plan(find_pythons(), claimed), arguments)
        _print_table(
            [Result(cell, {}, 0.0, skipped="not run" if cell.python else ABSENT) for cell in cells]
        )
        return 0
    directory = arguments.directory or _directory()
    directory.mkdir(parents=True, exist_ok=True)
    results = []
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run replaces the copy of HEAD
        workshop = Workshop(directory.resolve())
        if not arguments.ci:
            workshop.install(set(claimed) - {python.version[:2] for python in find_pythons()})
        for cell in _chosen(plan(find_pythons(), claimed), arguments):
            result = workshop.run(cell)
            results.append(result)
            print(f"matrix: {cell.name}: {_outcome(result)}", file=sys.stderr, flush=True)
    _print_table(results)
    return 1 if any(result.failed for result in results) else 0


def _chosen(cells: Sequence[Cell], arguments: argparse.Namespace) -> list[Cell]:
    return [
        cell
        for cell in cells
        if (cell.ci or not arguments.ci) and (cell.name in arguments.cell or not arguments.cell)
    ]


def plan(pythons: Sequence[Python], claimed: Collection[tuple[int, ...]]) -> list[Cell]:
    """Choose the cells: every Python at both ends, and each other difference at least twice.

    Args:
        pythons: From `find_pythons`.
        claimed: Versions that are to work; those that are not here have cells too.
    """
    extending = next((python for python in reversed(pythons) if python.loads), None)
    reachable = next((p for p in reversed(pythons) if reaches(p.path)), None)
    minors = {python.version[:2]: python for python in pythons}
    oldest, *_, newest = [*minors.values()] * 2
    cells: list[Cell] = []
    for minor in sorted({*minors, *claimed}):
        python = minors.get(minor)
        name = ".".join(map(str, minor))
        cells += [
            Cell(f"{name}-lowest", python, "lowest", ci=python in (oldest, None)),
            Cell(
                f"{name}-wheel",
                python,
                wheel=True,
                umask=0o077 if len(cells) % 4 else 0,
                ci=python in (newest, None),  # a missing one takes no time, and is reported
            ),
        ]
    return [
        *cells,
        Cell("newest-whole", newest, whole=True),
        Cell("extending-whole", extending, user=UNPRIVILEGED, umask=0o077, whole=True),
        Cell("extending-lowest", extending, "lowest"),
        Cell("extending-unprivileged", extending, user=UNPRIVILEGED, umask=0, ci=True),
        Cell("unprivileged-wheel", reachable, wheel=True, user=UNPRIVILEGED),
        Cell("with-sagewai", newest, "sagewai", ci=True),
        Cell("oldest-with-sagewai", oldest, "sagewai", umask=0o077),
    ]


class Workshop:
    """The directory that everything is made in: environments, the copy of HEAD, the wheel, logs.

    Args:
        directory: Which exists; another user must be able to enter it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tree = directory / "checkout"
        self._bare = directory / "for-wheel"  # the same without the packages
        _export(self._tree, self._bare)
        self._environments = Environments(directory, self._tree)

    def install(self, versions: Collection[tuple[int, ...]]) -> None:
        """Install these Pythons with uv, where it has them."""
        for version in sorted(versions):
            self._environments.install(".".join(map(str, version)))

    def run(self, cell: Cell) -> Result:
        """Run one cell."""
        skipped = self._why_not(cell)
        if skipped or cell.python is None:
            return Result(cell, {}, 0.0, skipped=skipped)
        started = time.perf_counter()
        log = self._directory / "logs" / f"{cell.name}.log"
        log.parent.mkdir(exist_ok=True)
        try:
            environment = self._environments.make(Kind(cell.python, cell.dependencies, cell.wheel))
        except BuildError as error:
            log.write_text(str(error))
            print(error, file=sys.stderr)
            return Result(cell, {}, time.perf_counter() - started, failed=True)
        started = time.perf_counter()
        with log.open("wb") as output:
            code = self._test(cell, environment, output.fileno())
        seconds = time.perf_counter() - started
        text = log.read_text(errors="replace")
        last = text.rstrip().rpartition("\n")[2]
        counts = {word.rstrip("s"): int(count) for count, word in SUMMARY.findall(last)}
        failed = code != 0 or not counts.get("passed")
        if failed:
            print("\n".join(text.splitlines()[-80:]), file=sys.stderr)
        return Result(cell, counts, seconds, failed=failed)

    def _why_not(self, cell: Cell) -> str:
        if cell.python is None:
            return ABSENT
        if cell.user and os.getuid() == 0 and not reaches(cell.python.path, self._directory):
            return f"{cell.user} cannot reach {cell.python.path} or {self._directory}"
        return ""

    def _test(self, cell: Cell, environment: Path, output: int) -> int:
        """Run pytest in its environment and return its exit code."""
        tree = self._bare if cell.wheel else self._tree
        tests = list(_tests(cell, tree))
        as_root = os.getuid() == 0
        account = pwd.getpwnam(cell.user) if cell.user and as_root else pwd.getpwuid(os.getuid())
        with tempfile.TemporaryDirectory(prefix="ops-", ignore_cleanup_errors=True) as home:
            os.chown(home, account.pw_uid, account.pw_gid)
            variables = {
                **os.environ,
                "HOME": home,
                "USER": account.pw_name,
                "LOGNAME": account.pw_name,
                "PYTEST_DEBUG_TEMPROOT": home,  # another run of this user clears the usual one
                "HYPOTHESIS_STORAGE_DIRECTORY": f"{home}/hypothesis",
                "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            }
            with subprocess.Popen(
                [environment / "bin" / "pytest", "-q", "-n2", "-pno:cacheprovider", *tests],
                cwd=tree,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=cell.umask,
                user=account.pw_uid if as_root else None,
                group=account.pw_gid if as_root else None,
                extra_groups=[] if as_root else None,
            ) as process:
                try:
                    return process.wait(TIMEOUT_SECONDS)
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)


def _tests(cell: Cell, tree: Path) -> Iterator[str]:
    """List the files that a cell runs."""
    patterns = CORE
    if cell.python and cell.python.loads:
        patterns += OF_VECTORS
    if cell.whole:
        patterns = ("**/test_*",)
    for path in sorted({path for name in patterns for path in tree.glob(f"tests/{name}.py")}):
        if "interop" not in path.parts and not (cell.wheel and path.name in OF_SOURCES):
            yield os.fspath(path.relative_to(tree))


def _export(tree: Path, bare: Path) -> None:
    """Write what git holds at HEAD, whole and without the packages."""
    archive = subprocess.run(
        ["git", "-C", REPOSITORY, "archive", "--format=tar", "HEAD"],
        check=True,
        capture_output=True,
    ).stdout
    for place in (tree, bare):
        shutil.rmtree(place, ignore_errors=True)
        with tarfile.open(fileobj=BytesIO(archive)) as members:
            members.extractall(place)  # noqa: S202 - git's own
    for package in PACKAGES:
        shutil.rmtree(bare / package)


def _directory() -> Path:
    """Return the default directory: one that other users can enter."""
    usual = REPOSITORY / ".matrix"
    usual.mkdir(exist_ok=True)
    if reaches(Path("/bin/sh"), usual):
        return usual
    return Path("/var/tmp") / f"sagewai-ops-matrix-{os.getuid()}"  # noqa: S108 - kept between runs


def _outcome(result: Result) -> str:
    if result.skipped:
        return result.skipped
    counts = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    return f"{'FAILED, ' if result.failed else ''}{counts or 'nothing ran'}"


def _print_table(results: Sequence[Result]) -> None:
    print(
        "| cell | Python | extensions | dependencies | from | user | umask | tests | result | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|--:|")
    for result in results:
        cell = result.cell
        here = pwd.getpwuid(os.getuid()).pw_name
        print(
            "| "
            + " | ".join((
                cell.name,
                cell.python.shown if cell.python else "-",
                ("yes" if cell.python.loads else "no") if cell.python else "-",
                "with sagewai" if cell.dependencies == "sagewai" else cell.dependencies,
                "wheel" if cell.wheel else "checkout",
                (cell.user or here) if os.getuid() == 0 else here,
                f"{cell.umask:03o}",
                "all" if cell.whole else "core",
                _outcome(result),
                f"{result.seconds:.0f}",
            ))
            + " |"
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
