"""Run the tests wherever users run the program: Pythons, dependencies, users, umasks, wheel.

    .ci/matrix.py [--ci] [--list] [--cell NAME]... [--folder DIR]

Each cell is one environment and one run of pytest in it, on what git holds at HEAD. Environments
are made by uv and kept below `.matrix/`. Prints a table; exit 1 if a cell failed. A cell that this
machine cannot run (no such Python, not root) is named in the table and is no failure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[1]
SAGEWAI = "sagewai[postgres]==1.0.1"
OLDEST = (3, 10)
TIMEOUT_SECONDS = 3600  # of one cell, on a slow machine
ATTEMPTS = 3  # at what needs the registry, which falters now and then
UNPRIVILEGED = "nobody"
PACKAGES = ("sagewai_ops", "commands", "migrations")  # what the wheel stands for
# Tests that meet every command line, every dependency, modes, owners and sqlite-vec.
CORE: tuple[str, ...] = (
    "test_atomic",
    "test_cli_backup",
    "test_cli_db",
    "test_cli_export_to_postgres",
    "test_cli_init",
    "test_cli_restore",
    "test_cli_verify_perms",
    "test_completion",
    "test_database_vectors",
    "test_init",
    "test_keys_escrow",
    "test_man_pages",
    "test_migrations",
    "test_schema_create",
)
# And where sqlite-vec can be loaded, those that then take another way.
OF_VECTORS = (
    "test_database_integrity",
    "test_home_builder",
    "test_transfer_learn*",
    "test_transfer_move",
)
OF_SOURCES = ("test_promises",)  # read the sources, which are not there beside a wheel
PROBE = """
import json, sqlite3, sys
loads = hasattr(sqlite3.Connection, "enable_load_extension")
print(json.dumps([list(sys.version_info[:3]), loads, sqlite3.sqlite_version]))
"""
SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected|xfailed)")

Dependencies = Literal["lowest", "highest", "sagewai"]


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter of this machine."""

    path: Path
    version: tuple[int, ...]
    loads: bool
    sqlite: str

    @property
    def shown(self) -> str:
        """Its version."""
        return ".".join(map(str, self.version))


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

    @property
    def environment(self) -> str:
        """Name the environment, which several cells may share."""
        assert self.python
        kind = "extending" if self.python.loads else "plain"
        source = "wheel" if self.wheel else "checkout"
        return f"{self.python.shown}-{kind}-{self.dependencies}-{source}"


@dataclass(frozen=True, slots=True)
class Result:
    """How a cell ended; `skipped` says why it was not run."""

    cell: Cell
    counts: dict[str, int]
    seconds: float
    failed: bool = False
    skipped: str = ""


class BuildError(RuntimeError):
    """An environment cannot be made."""


def main() -> int:
    """Run the cells that are asked for, print the table and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ci", action="store_true", help="only the part that CI takes")
    parser.add_argument("--list", action="store_true", help="print the cells and run none")
    parser.add_argument("--cell", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--folder", type=Path, help="for environments and logs")
    arguments = parser.parse_args()
    os.umask(0o022)  # what is made here is read by another user
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    cells = [
        cell
        for cell in plan(find_pythons())
        if (cell.ci or not arguments.ci) and (cell.name in arguments.cell or not arguments.cell)
    ]
    if arguments.list:
        _print_table([Result(cell, {}, 0.0, skipped="not run") for cell in cells])
        return 0
    folder = arguments.folder or _folder()
    folder.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(folder.resolve())
    results = []
    for cell in cells:
        result = workshop.run(cell)
        results.append(result)
        print(f"matrix: {cell.name}: {_outcome(result)}", file=sys.stderr, flush=True)
    _print_table(results)
    return 1 if any(result.failed for result in results) else 0


def plan(pythons: Sequence[Python]) -> list[Cell]:
    """Choose the cells: every Python at both ends, and each other difference at least twice.

    Args:
        pythons: From `find_pythons`.
    """
    extending = next((python for python in reversed(pythons) if python.loads), None)
    reachable = next((p for p in reversed(pythons) if _reaches(p.path)), None)
    minors = {python.version[:2]: python for python in pythons}
    oldest, *_, newest = [*minors.values()] * 2
    cells: list[Cell] = []
    for minor, python in minors.items():
        name = ".".join(map(str, minor))
        cells += [
            Cell(f"{name}-lowest", python, "lowest", ci=python is oldest),
            Cell(
                f"{name}-wheel",
                python,
                wheel=True,
                umask=0o077 if len(cells) % 4 else 0,
                ci=python is newest,
            ),
        ]
    return [
        *cells,
        Cell("newest-whole", newest, whole=True),
        Cell("extending-whole", extending, user=UNPRIVILEGED, umask=0o077, whole=True),
        Cell("extending-lowest", extending, "lowest"),
        Cell("extending-unprivileged", extending, user=UNPRIVILEGED, umask=0, ci=True),
        Cell("unprivileged-wheel", reachable, wheel=True, user=UNPRIVILEGED),
        Cell("beside-sagewai", newest, "sagewai", ci=True),
        Cell("oldest-beside-sagewai", oldest, "sagewai", umask=0o077),
    ]


def find_pythons() -> list[Python]:
    """Find the interpreters of this machine, by version; of two alike the first found."""
    roots = [Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"]
    roots += [Path("~/.local/share/uv/python").expanduser()]
    found: dict[tuple[tuple[int, ...], bool], Python] = {}
    places = [Path(place) for place in os.get_exec_path()]
    places += [Path("/usr/bin"), Path("/usr/local/bin")]
    places += [version / "bin" for root in roots for version in sorted(root.glob("*"))]
    for place in places:
        for path in sorted(place.glob("python3*")):
            if re.fullmatch(r"python3(\.\d+)?", path.name):
                python = _probe(path)
                if python:
                    found.setdefault((python.version, python.loads), python)
    return sorted(found.values(), key=lambda python: (python.version, python.loads))


def _probe(path: Path) -> Python | None:
    try:
        done = subprocess.run(
            [path, "-I", "-c", PROBE], capture_output=True, check=True, timeout=60
        )
        version, loads, sqlite = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None  # a shim of pyenv, or no sqlite3
    if tuple(version) < OLDEST:
        return None
    return Python(path, tuple(version), loads, sqlite)


class Workshop:
    """The folder that everything is made in: environments, the copy of HEAD, the wheel, logs.

    Args:
        folder: Which exists; another user must be able to enter it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uv: Path | None = None
        self._wheel: Path | None = None
        self._tree = folder / "checkout"
        self._bare = folder / "beside-wheel"  # the same without the packages
        self._ready: set[str] = set()
        _export(self._tree, self._bare)

    def run(self, cell: Cell) -> Result:
        """Run one cell."""
        skipped = self._why_not(cell)
        if skipped:
            return Result(cell, {}, 0.0, skipped=skipped)
        started = time.perf_counter()
        log = self._folder / "logs" / f"{cell.name}.log"
        log.parent.mkdir(exist_ok=True)
        try:
            environment = self._environment(cell)
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
            return "no such Python here"
        if cell.user and os.getuid() == 0 and not _reaches(cell.python.path, self._folder):
            return f"{cell.user} cannot reach {cell.python.path} or {self._folder}"
        return ""

    def _test(self, cell: Cell, environment: Path, output: int) -> int:
        """Run pytest in its environment and give its exit code."""
        tree = self._bare if cell.wheel else self._tree
        tests = list(_tests(cell, tree))
        as_root = os.getuid() == 0
        account = pwd.getpwnam(cell.user) if cell.user and as_root else pwd.getpwuid(os.getuid())
        with tempfile.TemporaryDirectory(prefix="sagewai-ops-matrix-") as home:
            os.chown(home, account.pw_uid, account.pw_gid)
            variables = {
                **os.environ,
                "HOME": home,
                "USER": account.pw_name,
                "LOGNAME": account.pw_name,
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

    def _environment(self, cell: Cell) -> Path:
        """Make the environment of a cell, or bring the one that is kept up to HEAD."""
        assert cell.python
        place = self._folder / "environments" / cell.environment
        python = place / "bin" / "python"
        if cell.environment in self._ready:
            return place
        stamp = place / "made-for"
        asked = self._asked(cell)
        if not stamp.is_file() or stamp.read_text() != asked:
            shutil.rmtree(place, ignore_errors=True)
            self._do("venv", "--quiet", "--python", cell.python.path, place)
            self._do("pip", "install", "--python", python, *self._requirements(cell))
        ours: list[object] = [self._built()] if cell.wheel else ["--editable", self._tree]
        self._do("pip", "install", "--python", python, "--no-deps", "--reinstall", *ours)
        stamp.write_text(asked)
        self._ready.add(cell.environment)
        return place

    def _asked(self, cell: Cell) -> str:
        """Spell what an environment depends on; the highest are those of the day."""
        asked = hashlib.sha256((self._tree / "pyproject.toml").read_bytes()).hexdigest()
        day = "" if cell.dependencies == "lowest" else time.strftime("%F")
        return f"{asked} {day}".strip()

    def _requirements(self, cell: Cell) -> list[object]:
        project = self._tree / "pyproject.toml"
        requirements: list[object] = ["--compile-bytecode", "--group", f"{project}:dev"]
        if cell.dependencies == "lowest":
            assert cell.python
            lowest = self._folder / f"lowest-{cell.python.shown}.txt"
            options = ["--quiet", "--resolution", "lowest-direct", "--python", cell.python.path]
            self._do("pip", "compile", *options, "--output-file", lowest, project)
            return [*requirements, "--requirements", lowest]
        also = [SAGEWAI] if cell.dependencies == "sagewai" else []
        return [*requirements, "--requirements", project, *also]

    def _built(self) -> Path:
        if self._wheel is None:
            folder = self._folder / "wheels"
            shutil.rmtree(folder, ignore_errors=True)
            self._do("build", "--wheel", "--quiet", "--out-dir", folder, self._tree)
            (self._wheel,) = folder.glob("*.whl")
        return self._wheel

    def _do(self, *words: object) -> None:
        """Run uv.

        Raises:
            BuildError: With what it said, after several attempts.
        """
        command = [os.fspath(word) if isinstance(word, Path) else str(word) for word in words]
        variables = {**os.environ, **_registry(), "UV_CACHE_DIR": f"{self._folder}/cache"}
        variables |= {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
        said = ""
        for attempt in range(ATTEMPTS):
            time.sleep(5 * attempt)
            done = subprocess.run(
                [self._tool(), *command], env=variables, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return
            said = done.stderr
        raise BuildError(f"uv {' '.join(command)}: {said}")

    def _tool(self) -> Path:
        """Find uv, or install it from the registry."""
        if self._uv is None:
            installed = shutil.which("uv")
            if installed is None:
                tools = self._folder / "tools"
                installed = str(tools / "bin" / "uv")
                if not Path(installed).exists():
                    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
                    pip = [f"{tools}/bin/python", "-m", "pip", "install", "--quiet", "uv>=0.7"]
                    subprocess.run(pip, check=True)
            self._uv = Path(installed)
        return self._uv


def _tests(cell: Cell, tree: Path) -> Iterator[str]:
    """List the files that a cell runs."""
    patterns = CORE
    if cell.python and cell.python.loads:
        patterns += OF_VECTORS
    if cell.whole:
        patterns = ("test_*",)
    for path in sorted({path for name in patterns for path in tree.glob(f"tests/{name}.py")}):
        if not (cell.wheel and path.stem in OF_SOURCES):
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


def _registry() -> dict[str, str]:
    """Tell uv, which reads no settings of pip, where pip would look."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "cert": "SSL_CERT_FILE",
    }
    there = {names[name]: _present(value) for name, value in settings.items() if name in names}
    found = {name: value for name, value in there.items() if value and name not in os.environ}
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", **found}


def _present(value: str) -> str:
    """Leave out the folders that are not there, which pip passes over and uv does not."""
    return " ".join(
        word
        for word in value.split()
        if not word.startswith(("file://", "/")) or Path(word.removeprefix("file://")).exists()
    )


def _reaches(python: Path, folder: Path | None = None) -> bool:
    """Tell whether the unprivileged user can run a Python, and enter a folder."""
    if os.getuid():
        return True
    account = pwd.getpwnam(UNPRIVILEGED)
    try:
        subprocess.run(
            [python, "-c", ""],
            cwd=folder or "/",
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _folder() -> Path:
    """Name the folder that is used unless another is given: one that others can enter."""
    usual = REPOSITORY / ".matrix"
    usual.mkdir(exist_ok=True)
    if _reaches(Path("/bin/sh"), usual):
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
                "beside sagewai" if cell.dependencies == "sagewai" else cell.dependencies,
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
