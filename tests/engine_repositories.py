"""Repositories of restic and borg for tests, each with the real program."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

ENGINES = ("restic", "borg")
PASSWORD = "planted-passphrase"
_PASSWORDS = {"restic": ("RESTIC_PASSWORD",), "borg": ("BORG_PASSPHRASE",)}


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that does not exist yet; its password is in the environment."""

    engine: str
    path: Path

    @property
    def words(self) -> tuple[object, ...]:
        """The options that name it."""
        return ("--engine", self.engine, "--repository", self.path)

    @property
    def place(self) -> str:
        """Its address."""
        return f"{self.engine}:{self.path}"

    @property
    def password_variables(self) -> tuple[str, ...]:
        """The variables of the engine with the password."""
        return _PASSWORDS[self.engine]

    def set_password(self, text: str, patch: pytest.MonkeyPatch) -> None:
        """Change the password in the environment."""
        for name in self.password_variables:
            patch.setenv(name, text)

    def stored(self) -> list[str]:
        """Return the ids of everything that the engine has."""
        listed = self.run("snapshots" if self.engine == "restic" else "list", "--json")
        found = json.loads(listed)
        items = found if self.engine == "restic" else found["archives"]
        return [item["id"] for item in items]

    def size_bytes(self) -> int:
        """Return the size of its files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def run(self, *words: object) -> str:
        """Run the engine itself."""
        done = subprocess.run(
            [self.engine, *map(str, words)],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def store(self, name: str, content: bytes, labels: Sequence[str]) -> None:
        """Store a file with any labels, as another client does."""
        if self.engine == "restic":
            tags = [word for tag in ("sagewai-ops", *labels) for word in ("--tag", tag)]
            words = ["backup", "--stdin", "--stdin-filename", name, *tags]
        else:
            archive = f"::{name}~{datetime.now(timezone.utc):%Y%m%d%H%M%S%f}"
            comment = " ".join(("sagewai-ops", *labels))
            words = ["create", "--stdin-name", name, "--comment", comment, archive, "-"]
        environment = self._environment
        subprocess.run(
            [self.engine, *words], env=environment, input=content, capture_output=True, check=True
        )

    def wrap(self, directory: Path, patch: pytest.MonkeyPatch) -> Path:
        """Record arguments and environment of each run from here on; return the file."""
        record = directory / "record"
        self._script(
            directory, patch, f'{{ echo "ARGUMENTS $*"; env; }} >> "{record}"\nexec "$REAL" "$@"'
        )
        return record

    def alter(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        """Change a byte of every manifest that the engine restores."""
        self._script(
            directory,
            patch,
            '"$REAL" "$@" || exit $?\n'
            'for word in restore extract; do case " $* " in *" $word "*)\n'
            "  [ ! -f tree/manifest.json ] || printf x >> tree/manifest.json;; esac; done",
        )

    def hang(self, directory: Path, patch: pytest.MonkeyPatch, word: str, started: Path) -> None:
        """Hang in each run with a word among its arguments; write the id of the process."""
        self._script(
            directory,
            patch,
            f'case " $* " in *" {word} "*) echo $$ > "{started}.new"; '
            f'mv "{started}.new" "{started}"; sleep 600;; esac\nexec "$REAL" "$@"',
        )

    def note(self, directory: Path, patch: pytest.MonkeyPatch, word: str, started: Path) -> None:
        """Write the id of the process of each run with a word among its arguments."""
        self._script(
            directory,
            patch,
            f'case " $* " in *" {word} "*) echo $$ > "{started}";; esac\nexec "$REAL" "$@"',
        )

    def skip(self, directory: Path, patch: pytest.MonkeyPatch, word: str) -> None:
        """Do nothing, with success, in each run with a word among its arguments."""
        self._script(
            directory, patch, f'case " $* " in *" {word} "*) exit 0;; esac; exec "$REAL" "$@"'
        )

    def fail(self, directory: Path, patch: pytest.MonkeyPatch, word: str, messages: Path) -> None:
        """Fail with these messages in each run with a word among its arguments."""
        self._script(
            directory,
            patch,
            f'case " $* " in *" {word} "*) cat "{messages}" >&2; exit 2;; esac; exec "$REAL" "$@"',
        )

    def kill_parent(
        self, directory: Path, patch: pytest.MonkeyPatch, number: int, moment: str
    ) -> None:
        """Kill the program that starts the engine, before or after a run of it by its number."""
        count = directory / "count"
        kill = "kill -9 $PPID; exit 1" if moment == "before" else "kill -9 $PPID"
        at = f'if [ "$n" = {number} ]; then {kill}; fi\n'
        # Two runs can start at the same time.
        counted = f'n=1; while ! mkdir "{count}$n" 2>/dev/null; do n=$((n + 1)); done\n'
        real = '"$REAL" "$@"; code=$?\n'
        text = counted + (at + real if moment == "before" else real + at) + "exit $code"
        self._script(directory, patch, text)

    def weaken(self) -> None:
        """Derive the key of restic with little work: it spends half a second in each run.

        Source: restic's design.rst: scrypt, then AES-256-CTR and Poly1305-AES.
        """
        if self.engine != "restic":
            return
        (file,) = (self.path / "keys").iterdir()
        key = json.loads(file.read_text())
        nonce, master = _open_key(key)
        key |= {"N": 2, "r": 1, "p": 1}
        weak = _derive(base64.b64decode(key["salt"]), 2, 1, 1)
        sealed = _seal(weak[:32], weak[32:48], weak[48:], nonce, master)
        key["data"] = base64.b64encode(sealed).decode()
        content = json.dumps(key).encode()
        file.with_name(hashlib.sha256(content).hexdigest()).write_bytes(content)
        file.unlink()

    @property
    def unlock_command(self) -> str:
        """What removes the lock of a run that has ended."""
        return {
            "restic": f"restic -r {self.path} unlock",
            "borg": f"borg break-lock {self.path}",
        }[self.engine]

    def is_locked_by(self, started: Path) -> bool:
        """Return whether it has a complete lock since a run that `note` writes the id of."""
        if not started.exists() or not started.read_text().strip():
            return False
        newest = started.stat().st_mtime_ns
        pattern = "locks/" + "?" * 64 if self.engine == "restic" else "lock.exclusive"
        found = self.path.glob(pattern)  # a temporary name of a lock of restic is longer
        with contextlib.suppress(FileNotFoundError):  # removed just now
            return any(lock.stat().st_mtime_ns >= newest for lock in found)
        return False

    def unlock(self) -> None:
        """Remove the locks of runs that have ended."""
        self.run({"restic": "unlock", "borg": "break-lock"}[self.engine])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock it for the block, as another run of the engine does."""
        words = {"restic": ["check", "--no-cache"], "borg": ["with-lock", "::", "sleep", "60"]}
        if self.engine == "restic":
            files = self.path / "locks"
            while not [*files.glob("?" * 64)]:  # its temporary name is longer
                with self._started(*words["restic"]) as process:
                    while process.poll() is None and not [*files.glob("?" * 64)]:
                        time.sleep(0.001)
                    process.kill()
            yield
            self.unlock()
            return
        with self._started(*words["borg"]) as process:
            while not (self.path / "lock.exclusive").exists():
                assert process.poll() is None
                time.sleep(0.01)
            try:
                yield
            finally:
                process.terminate()
        self.unlock()

    @contextlib.contextmanager
    def _started(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(
            [self.engine, *words],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            yield process

    @property
    def _environment(self) -> dict[str, str]:
        names = {"restic": "RESTIC_REPOSITORY", "borg": "BORG_REPO"}
        return {**os.environ, names[self.engine]: str(self.path)}

    def _script(self, directory: Path, patch: pytest.MonkeyPatch, text: str) -> None:
        real = shutil.which(self.engine)
        directory.mkdir()
        program = directory / self.engine
        program.write_text(f'#!/bin/sh\nREAL="{real}"\n{text}\n')
        program.chmod(0o755)
        patch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def forge_snapshot(repository: Repository, content: bytes) -> None:
    """Store any bytes as a snapshot of restic, which everyone with the password can.

    Source: restic's design.rst, as for `Repository.weaken`.
    """
    (file,) = (repository.path / "keys").iterdir()
    _nonce, master = _open_key(json.loads(file.read_text()))
    keys = json.loads(master)
    words = (keys["encrypt"], keys["mac"]["k"], keys["mac"]["r"])
    encrypting, first, second = map(base64.b64decode, words)
    sealed = _seal(encrypting, first, second, os.urandom(16), content)
    (repository.path / "snapshots" / hashlib.sha256(sealed).hexdigest()).write_bytes(sealed)


def _open_key(key: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the nonce and the keys of the repository in a key file of restic."""
    salt, data = (base64.b64decode(key[name]) for name in ("salt", "data"))
    derived = _derive(salt, key["N"], key["r"], key["p"])
    return data[:16], _encrypt(derived[:32], data[:16], data[16:-16])


def _seal(encrypting: bytes, first: bytes, second: bytes, nonce: bytes, content: bytes) -> bytes:
    """Encrypt with AES-256-CTR, authenticate with Poly1305-AES."""
    text = _encrypt(encrypting, nonce, content)
    pad = _encrypt(first, nonce, bytes(16))
    return nonce + text + Poly1305.generate_tag(second + pad, text)


def _derive(salt: bytes, n: int, r: int, p: int) -> bytes:
    most = 128 * r * (n + p + 2)  # bytes
    return hashlib.scrypt(PASSWORD.encode(), salt=salt, n=n, r=r, p=p, maxmem=most, dklen=64)


def _encrypt(key: bytes, nonce: bytes, text: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor().update(text)


@pytest.fixture(params=ENGINES)
def repository(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Repository:
    """A repository of each engine; skipped where that is not installed."""
    engine: str = request.param
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    found = Repository(engine, tmp_path / "repository")
    found.set_password(PASSWORD, monkeypatch)
    return found
