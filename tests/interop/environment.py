"""The Python environment in which the real sagewai 1.0.1 runs, made once and used again.

`python_of_sagewai` returns its interpreter and builds the environment first if need be; CPython
and the package registry are all that it needs. Run as a script it does just that and prints the
path, for make. The environment is in `.interop/venv`, or in INTEROP_VENV, and never
shares a package with the environment under test: Sagewai pins versions that ours must not follow.

Sagewai searches learnings through sqlite-vec, which wants a Python that loads SQLite extensions
and SQLite 3.41. Where no interpreter of this machine has both, `pysqlite3-binary` replaces
`sqlite3` inside that environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = "1.0.1"
REQUIREMENTS = (f"sagewai[postgres]=={VERSION}",)
SQLITE_SUBSTITUTE = "pysqlite3-binary"
SUBSTITUTE_PTH = (
    "import sys, pysqlite3, pysqlite3.dbapi2; "
    "sys.modules.update({'sqlite3': pysqlite3, 'sqlite3.dbapi2': pysqlite3.dbapi2})\n"
)
PAUSES_SECONDS = (3.0, 9.0, 27.0)  # before each further attempt; registries falter now and then
RUN_TIMEOUT_SECONDS = 300.0  # importing Sagewai alone takes 5 to 8 s on an idle core

# One line of JSON: [usable, loads extensions, SQLite is 3.41 or newer].
PROBE_OF_INTERPRETER = """
import json, sqlite3, sys
try:
    import ensurepip, venv
except ImportError:
    usable = False
else:
    usable = sys.version_info >= (3, 10)
loads = hasattr(sqlite3.Connection, "enable_load_extension")
print(json.dumps([usable, loads, sqlite3.sqlite_version_info >= (3, 41)]))
"""

# Prints true when this environment stores and finds a vector, as Sagewai does.
PROBE_OF_VECTORS = """
import contextlib, json, sqlite3
try:
    import sqlite_vec
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        connection.execute("CREATE VIRTUAL TABLE probe USING vec0(embedding FLOAT[2])")
        connection.execute("INSERT INTO probe(embedding) VALUES ('[1, 2]')")
        found = connection.execute(
            "SELECT rowid FROM probe WHERE embedding MATCH '[1, 2]' ORDER BY distance LIMIT 1"
        ).fetchall()
except (AttributeError, ImportError, sqlite3.Error):
    found = []
print(json.dumps(len(found) == 1))
"""


class InteropError(RuntimeError):
    """The environment cannot be made, or a script in it ended badly."""


def directory() -> Path:
    """Return the directory of the environment, whether or not it exists.

    Returns:
        INTEROP_VENV, relative to the repository, else `.interop/venv` in the repository.
    """
    return REPOSITORY / os.environ.get("INTEROP_VENV", ".interop/venv")


def python_of_sagewai() -> Path:
    """Return the interpreter that imports sagewai 1.0.1, making its environment if need be.

    Safe to call from several processes at once: one builds, the others wait.

    Raises:
        InteropError: No interpreter of this machine can make it, or the registry does not answer.
    """
    place = directory()
    python = place / "bin" / "python"
    if not _is_ready(place):
        with _building(place):
            if not _is_ready(place):
                _build(place)
    return python


def run_in_sagewai(
    script: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    timeout_seconds: float = RUN_TIMEOUT_SECONDS,
) -> str:
    """Run a script with the real Sagewai importable and return what it printed.

    Args:
        script: A Python file.
        arguments: Its arguments.
        env: Added to `quiet_environment()`; SAGEWAI_HOME belongs here.
        timeout_seconds: After which the script is killed.

    Raises:
        InteropError: The script ended with another code than 0; the message holds its last lines.
    """
    command = [str(python_of_sagewai()), str(script), *arguments]
    done = subprocess.run(
        command,
        env=quiet_environment() | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode != 0:
        raise InteropError(
            f"{script.name}: ended with {done.returncode}\n{_last_lines(done.stdout, done.stderr)}"
        )
    return done.stdout


def quiet_environment() -> dict[str, str]:
    """Return the variables that every Sagewai process here starts with, and no others.

    Returns:
        A new dictionary: UTC, because Sagewai hands sessions back in local time; no look-up of
        model prices on the network; nothing of the caller's SAGEWAI_* or database settings.
    """
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", "/"),
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONUNBUFFERED": "1",
    }


def _is_ready(place: Path) -> bool:
    """Return whether the environment was finished with the requirements asked for here."""
    try:
        made_of = json.loads((place / "ready.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    python = place / "bin" / "python"
    # An upgraded system Python leaves a dangling link behind.
    return made_of == _fingerprint() and python.exists()


def _fingerprint() -> list[str]:
    return [*REQUIREMENTS, SQLITE_SUBSTITUTE, SUBSTITUTE_PTH]


@contextlib.contextmanager
def _building(place: Path) -> Iterator[None]:
    """Yield while no other process builds; the lock dies with its holder."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f"{place.name}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(place: Path) -> None:
    """Make the environment from nothing; the mark that it is ready is written last."""
    shutil.rmtree(place, ignore_errors=True)
    base = _best_interpreter()
    _run_quietly([base, "-m", "venv", str(place)])
    python = str(place / "bin" / "python")
    _install(python, REQUIREMENTS)
    if not _finds_vectors(python):
        _install(python, (SQLITE_SUBSTITUTE,))
        packages = _run_quietly(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]
        )
        pth = Path(packages.strip()) / "sqlite_stand_in.pth"
        pth.write_text(SUBSTITUTE_PTH, encoding="utf-8")
        if not _finds_vectors(python):
            raise InteropError(
                f"{place}: sqlite-vec does not work, not even with {SQLITE_SUBSTITUTE}"
            )
    (place / "ready.json").write_text(json.dumps(_fingerprint()), encoding="utf-8")


def _best_interpreter() -> str:
    """Choose the interpreter with the best SQLite; INTEROP_PYTHON, if set, is the only one tried.

    Raises:
        InteropError: None is a CPython 3.10 or newer with `venv` and `ensurepip`.
    """
    chosen = os.environ.get("INTEROP_PYTHON")
    own = getattr(sys, "_base_executable", sys.executable)
    candidates = [chosen] if chosen else ["/usr/bin/python3", own, shutil.which("python3")]
    best: tuple[bool, bool, bool] = (False, False, False)
    best_path = ""
    for candidate in candidates:
        if not candidate or not os.access(candidate, os.X_OK):
            continue
        done = subprocess.run(
            [candidate, "-c", PROBE_OF_INTERPRETER],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            continue
        usable, loads, recent = json.loads(done.stdout)
        if usable and (usable, loads, recent) > best:
            best, best_path = (usable, loads, recent), candidate
    if not best_path:
        raise InteropError(f"no usable Python 3.10 or newer with venv and ensurepip: {candidates}")
    return best_path


def _finds_vectors(python: str) -> bool:
    return bool(json.loads(_run_quietly([python, "-c", PROBE_OF_VECTORS])))


def _install(python: str, requirements: Sequence[str]) -> None:
    """Install with pip's ordinary client, again after a pause when the registry falters."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--retries", "5", "--prefer-binary", *requirements]
    for pause_seconds in PAUSES_SECONDS:
        with contextlib.suppress(InteropError):
            _run_quietly(command)
            return
        time.sleep(pause_seconds)
    _run_quietly(command)


def _run_quietly(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        shown = " ".join(command[:6])
        raise InteropError(
            f"{shown}: ended with {done.returncode}\n{_last_lines(done.stdout, done.stderr)}"
        )
    return done.stdout


def _last_lines(*texts: str, count: int = 30) -> str:
    lines = [line for text in texts for line in text.splitlines()]
    return "\n".join(lines[-count:])


if __name__ == "__main__":
    print(python_of_sagewai())
