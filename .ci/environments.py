"""The Pythons of this machine, and environments in them, made by uv and kept."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OLDEST = (3, 10)
SAGEWAI = "sagewai[postgres]==1.0.1"
# With every extra that it has; these pin packages that pin others. 3.11 is the newest Python for
# which there are wheels of them all.
SAGEWAI_WHOLE = (
    "sagewai[all,coap,fastapi,grpc,intelligence,intelligence-full,keychain,kubernetes,memory,"
    "modbus,mqtt,multimodal,opcua,postgres,prometheus,sandbox,storage,vault,websocket]==1.0.1"
)
PYTHON_OF_WHOLE = "3.11"
ATTEMPTS = 3  # at what needs the registry, which falters now and then
BRING_SECONDS = 300  # for uv to download a Python
UNPRIVILEGED = "nobody"
PROBE = """
import json, sqlite3, sys
loads = hasattr(sqlite3.Connection, "enable_load_extension")
print(json.dumps([list(sys.version_info[:3]), loads, sqlite3.sqlite_version]))
"""

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
class Kind:
    """What is in an environment; several cells may share one."""

    python: Python
    dependencies: Dependencies
    wheel: bool

    @property
    def name(self) -> str:
        """The name of its directory."""
        extending = "extending" if self.python.loads else "plain"
        source = "wheel" if self.wheel else "checkout"
        return f"{self.python.shown}-{extending}-{self.dependencies}-{source}"


class BuildError(RuntimeError):
    """An environment cannot be made."""


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


def claimed_pythons(project: Path) -> list[tuple[int, ...]]:
    """Return the versions that a project declares to support."""
    found = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project.read_text())
    return [tuple(map(int, version.split("."))) for version in found]


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


def reaches(python: Path, directory: Path | None = None) -> bool:
    """Return whether the unprivileged user can run a Python and enter a directory."""
    if os.getuid():
        return True
    account = pwd.getpwnam(UNPRIVILEGED)
    try:
        subprocess.run(
            [python, "-c", ""],
            cwd=directory or "/",
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


class Environments:
    """The directory of the environments.

    Args:
        directory: Which exists; another user must be able to enter it.
        tree: What is installed, and built into the wheel.
    """

    def __init__(self, directory: Path, tree: Path) -> None:
        self._directory = directory
        self._tree = tree
        self._uv: Path | None = None
        self._wheel: Path | None = None
        self._ready: set[str] = set()

    def make(self, kind: Kind) -> Path:
        """Make an environment, or bring the one that is kept up to HEAD.

        Raises:
            BuildError: It cannot be made.
        """
        place = self._directory / "environments" / kind.name
        python = place / "bin" / "python"
        if kind.name in self._ready:
            return place
        stamp = place / "made-for"
        asked = self._asked(kind)
        if not stamp.is_file() or stamp.read_text() != asked:
            shutil.rmtree(place, ignore_errors=True)
            self._do("venv", "--quiet", "--python", kind.python.path, place)
            self._do("pip", "install", "--python", python, *self._requirements(kind))
        ours: list[object] = [self._built()] if kind.wheel else ["--editable", self._tree]
        self._do("pip", "install", "--python", python, "--no-deps", "--reinstall", *ours)
        stamp.write_text(asked)
        self._ready.add(kind.name)
        return place

    def install(self, version: str) -> None:
        """Install a Python with uv, if uv has it; `find_pythons` finds it then."""
        command: list[str | Path] = [self._tool(), "python", "install", version]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=BRING_SECONDS
            )
            problem = done.stderr.strip() if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"no answer in {BRING_SECONDS} s"
        if problem:
            print(f"matrix: uv cannot bring Python {version}: {problem}", file=sys.stderr)

    def _asked(self, kind: Kind) -> str:
        """Return the requirements of an environment; the highest versions are the current ones."""
        asked = hashlib.sha256((self._tree / "pyproject.toml").read_bytes()).hexdigest()
        day = "" if kind.dependencies == "lowest" else time.strftime("%F")
        return f"{asked} {day}".strip()

    def _requirements(self, kind: Kind) -> list[object]:
        project = self._tree / "pyproject.toml"
        requirements: list[object] = ["--compile-bytecode", "--group", f"{project}:dev"]
        if kind.dependencies == "lowest":
            lowest = self._directory / f"lowest-{kind.python.shown}.txt"
            options = ["--quiet", "--resolution", "lowest-direct", "--python", kind.python.path]
            self._do("pip", "compile", *options, "--output-file", lowest, project)
            return [*requirements, "--requirements", lowest]
        if kind.dependencies == "highest":
            return [*requirements, "--requirements", project]
        self._resolve_beside_all_of_sagewai(project)
        return [*requirements, "--requirements", project, SAGEWAI]

    def _resolve_beside_all_of_sagewai(self, project: Path) -> None:
        """See that some versions suit all; they are gigabytes, and not installed."""
        whole = self._directory / "sagewai.in"
        whole.write_text(f"{SAGEWAI_WHOLE}\n")
        options = ["--quiet", "--python-version", PYTHON_OF_WHOLE, "--only-binary", ":all:"]
        found = self._directory / "sagewai.txt"
        self._do("pip", "compile", *options, "--output-file", found, project, whole)

    def _built(self) -> Path:
        if self._wheel is None:
            directory = self._directory / "wheels"
            shutil.rmtree(directory, ignore_errors=True)
            self._do("build", "--wheel", "--quiet", "--out-dir", directory, self._tree)
            (self._wheel,) = directory.glob("*.whl")
        return self._wheel

    def _do(self, *words: object) -> None:
        """Run uv.

        Raises:
            BuildError: It failed several times; the message has its output.
        """
        command = [os.fspath(word) if isinstance(word, Path) else str(word) for word in words]
        variables = {**os.environ, **_registry(), "UV_CACHE_DIR": f"{self._directory}/cache"}
        variables |= {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
        output = ""
        for attempt in range(ATTEMPTS):
            time.sleep(5 * attempt)
            done = subprocess.run(
                [self._tool(), *command], env=variables, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return
            output = done.stderr
        raise BuildError(f"uv {' '.join(command)}: {output}")

    def _tool(self) -> Path:
        """Find uv, or install it from the registry."""
        if self._uv is None:
            installed = shutil.which("uv")
            if installed is None:
                tools = self._directory / "tools"
                installed = str(tools / "bin" / "uv")
                if not Path(installed).exists():
                    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
                    pip = [f"{tools}/bin/python", "-m", "pip", "install", "--quiet", "uv>=0.7"]
                    subprocess.run(pip, check=True)
            self._uv = Path(installed)
        return self._uv


def _registry() -> dict[str, str]:
    """Return the variables that point uv, which ignores pip's settings, to pip's registry."""
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
    """Leave out the directories that are not there, which pip passes over and uv does not."""
    return " ".join(
        word
        for word in value.split()
        if not word.startswith(("file://", "/")) or Path(word.removeprefix("file://")).exists()
    )
