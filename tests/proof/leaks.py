"""Plant secrets in every place, run every command, and search all that comes out of it.

    python tests/proof/leaks.py                    every command, on success and on failure
    python tests/proof/leaks.py --only backup      those whose names begin so
    python tests/proof/leaks.py --other-owner      as root, on the home of another user

Planted are the master key and a project's data key (as they are, as bytes, in hexadecimal), all
that is sealed under them, what Sagewai leaves readable, session and API tokens, a passphrase, an
identity, passwords of a database in a URL and in PGPASSWORD, and the token in a URL to ping.
Searched are the output, errors, every file that a run leaves, in archives what they hold, and while
it runs the command lines of all its processes and the environment of those that it starts.
What the home holds may be where the home has it, there and in copies that were asked for, and
in an archive under the same name; the keys may be in no clear archive at all.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

_HERE = Path(__file__).resolve().parent
for _directory in (_HERE.parent, _HERE.parent.parent / "fixtures"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

from home_builder import BuiltHome, build_home  # noqa: E402 - the path first
from postgres_server import Server, installations  # noqa: E402
from program import COMMAND  # noqa: E402
from proof import beginnings, mutants  # noqa: E402
from proof.beginnings import IDENTITY, Words  # noqa: E402
from proof.cases import CASES, Case  # noqa: E402
from proof.faults import Ended, Fault, Step  # noqa: E402
from proof.worlds import OTHER_USER, World  # noqa: E402
from sagewai_ops.home.paths import DATABASE  # noqa: E402
from sagewai_ops.snapshots.member_paths import SERVER_DIRECTORY  # noqa: E402

PASSPHRASE = "planted passphrase of the operator"
URL_PASSWORD = "planted-url-password"
PG_PASSWORD = "planted-pgpassword"
PING_TOKEN = "planted-ping-token"
_GLANCE_SECONDS = 0.002
_PATIENCE_SECONDS = 120
_FULL_BYTES = 4096  # a file may grow no longer than this where a disk is to be full
_SHOWN = 200
_KEY_PLACE = "home/secrets/master.key"
_LEGACY = re.compile(r"\.legacy-[0-9TZ]+$")
_COPIES = ("copy", "taken", "tree", "back")  # of a home, as the cases ask for them


def _asked(*words: object) -> Case:
    name = " ".join(map(str, words))
    return Case(name, beginnings.with_snapshot, lambda _world: words)


# Options that CASES does not have.
MORE = (
    _asked("verify-perms", "--strict"),
    _asked("config", "show", "--origin"),
    _asked("restore", "latest", "--dry-run"),
    Case(
        "backup under a passphrase",
        beginnings.small,
        lambda world: (
            *("backup", "--key", "sealed", "--passphrase-file", world.out / "passphrase"),
            *("--metrics-file", world.out / "backup.prom"),
        ),
        siblings=("out/backup.prom",),
    ),
)
WAYS = ("plain", "json", "verbose", "full disk", "no home", "broken database", "broken state")


@dataclass(frozen=True, slots=True)
class Secret:
    """Something that must not come out.

    Attributes:
        name: What it is, for a report; never the secret.
        forms: Its spellings.
        is_of_home: It is in the home, and may be in a copy of it.
        is_key: Not even a clear archive may hold it.
    """

    name: str
    forms: tuple[bytes, ...] = field(repr=False)
    is_of_home: bool = True
    is_key: bool = False


class _Bench:
    """Runs what preparations ask for."""

    def run(
        self,
        words: Words,
        world: World,
        fault: Fault | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command in the ordinary way.

        Raises:
            LookupError: It is to go wrong at a step, which only `crash` can do.
        """
        if fault:
            raise LookupError(str(fault))
        command = [*COMMAND, "--home", world.home, *words]
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(variables or {})},
        )
        return Ended(done.returncode, done.stdout, done.stderr, None, 0, "")

    def steps(self) -> list[Step]:
        """Have none: see `run`."""
        raise LookupError("steps are not numbered here")


class Search:
    """Goes through commands; `violations` is what it found.

    Args:
        directory: Of its own.
        owner: The user to whom the worlds belong, if not to the one who runs this.
    """

    def __init__(self, directory: Path, stack: contextlib.ExitStack, owner: int = 0) -> None:
        self._directory = directory
        self._owner = owner
        self._stack = stack
        self._server: Server | None = None
        self._built: list[BuiltHome] = []
        self.runs = 0
        self.searched_bytes = 0
        self.violations: list[str] = []

    def through(self, case: Case, ways: tuple[str, ...] = WAYS) -> None:
        """Run one case in several ways."""
        server = self._started() if case.on_server else None
        world = World(self._directory / "w", server, owner=self._owner)
        prepared = self._directory / "prepared"
        shutil.rmtree(prepared, ignore_errors=True)
        self._built.clear()
        world.make()
        with mock.patch("proof.beginnings.build_home", self._build):
            case.prepare(world, _Bench())
            world.keep_as(prepared)
            for method in ways:
                world.reset(prepared)
                with contextlib.suppress(LookupError):
                    case.begin(world, _Bench())
                self._once(case, world, method)
        world.drop()

    def _build(self, root: Path, **recipe: Any) -> BuiltHome:
        built = build_home(root, **recipe)
        self._built.append(built)
        return built

    def _once(self, case: Case, world: World, method: str) -> None:
        (world.out / "passphrase").write_text(f"{PASSPHRASE}\n")
        (world.out / "identity").write_text(f"{IDENTITY}\n")
        for private in world.out.iterdir():
            private.chmod(0o600)
            os.lchown(private, self._owner, self._owner)
        secrets = self._secrets()
        before = _places(world.directory, secrets)
        if case.name.startswith("import-from-postgres"):
            # The home holds the rows of the server, which is in no file here.
            for secret in secrets:
                if "." in secret.name:
                    before.setdefault(secret.name, set()).add(DATABASE)
        words = [str(word) for word in case.words(world)]
        environment = self._environment(case, world)
        if world.server:
            words = [word for word in words if word != world.url]
        self._spoil(world, method)
        shown = {"json": ["--json"], "verbose": ["-v"]}.get(method, [])
        command = [*COMMAND, "--home", str(world.home), *shown, *words]
        out, seen = _watched(command, environment, full=method == "full disk")
        self.runs += 1
        output = f"{case.name}, {method}"
        self._search(f"{output}: output", out, secrets)
        for where, content in seen.items():
            self._search(f"{output}: {where}", content, secrets)
        if world.owner:
            names = [] if case.is_roots else world.others(case.siblings)
            self.violations += [f"{output}: not the owner's: {name}" for name in names]
        for path, content in _contents(world.directory):
            relative = os.path.relpath(path, world.directory)
            for secret in self._found(content, secrets):
                if not _may(relative, secret, before):
                    self.violations.append(f"{output}: {secret.name} is in {relative}")

    def _search(self, where: str, content: bytes, secrets: tuple[Secret, ...]) -> None:
        self.violations += [
            f"{where} has {secret.name}" for secret in self._found(content, secrets)
        ]

    def _found(self, content: bytes, secrets: tuple[Secret, ...]) -> Iterator[Secret]:
        self.searched_bytes += len(content)
        for secret in secrets:
            if any(form in content for form in secret.forms):
                yield secret

    def _secrets(self) -> tuple[Secret, ...]:
        found = [
            Secret("the passphrase", (PASSPHRASE.encode(),), is_of_home=False),
            Secret("the identity", (IDENTITY.encode(),), is_of_home=False),
            Secret("the password of a URL", (URL_PASSWORD.encode(),), is_of_home=False),
            Secret("the PGPASSWORD", (PG_PASSWORD.encode(),), is_of_home=False),
            Secret("the token of the ping", (PING_TOKEN.encode(),), is_of_home=False),
        ]
        for built in self._built:
            for key in (*built.master_keys, *built.data_keys.values()):
                raw = base64.urlsafe_b64decode(key)
                forms = (key, raw, raw.hex().encode(), base64.b64encode(raw))
                found.append(Secret("a key", forms, is_key=True))
            found += [
                *(
                    Secret(f"what {each.place} seals", (each.plaintext.encode(),))
                    for each in built.sealed
                    if each.plaintext
                ),
                *(
                    Secret(f"a secret of {each.place}", (each.value.encode(),))
                    for each in built.secrets
                ),
                Secret("the session token", (built.session_token.encode(),)),
                Secret("the API token", (built.api_token.encode(),)),
            ]
        return tuple(found)

    def _environment(self, case: Case, world: World) -> dict[str, str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory / "root" if world.owner else world.directory),
            "TMPDIR": str(world.temporary),
            "SAGEWAI_OPS_PING_URL": f"http://127.0.0.1:9/{PING_TOKEN}",
            "PGPASSWORD": PG_PASSWORD,
            **case.variables(world),
        }
        if self._built:
            environment["SAGEWAI_MASTER_KEY"] = self._built[-1].master_keys[0].decode()
        if world.server:
            url = world.url.replace("postgres@", f"postgres:{URL_PASSWORD}@")
            assert URL_PASSWORD in url
            environment["SAGEWAI_DATABASE_URL"] = url
        return environment

    def _spoil(self, world: World, method: str) -> None:
        if method == "no home":
            shutil.rmtree(world.home, ignore_errors=True)
        elif method == "broken database" and (world.home / "db/sagewai.db").exists():
            for path in (world.home / "db").iterdir():
                with path.open("r+b") as file:
                    file.seek(100)
                    file.write(b"\xff" * 4000)
        elif method == "broken state" and (world.home / "config").is_dir():
            for name in ("config/admin-state.json", "config/connections.json"):
                path = world.home / name
                path.write_bytes(path.read_bytes()[:-20])

    def _started(self) -> Server:
        if self._server is None:
            self._server = Server(installations()[0])
            self._stack.callback(self._server.stop)
            self._server.start()
        return self._server


def _watched(
    command: list[str], environment: Mapping[str, str], *, full: bool
) -> tuple[bytes, dict[str, bytes]]:
    """Run a command; return all its output, and what its processes showed while they lived."""

    def limit() -> None:
        if full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FULL_BYTES, _FULL_BYTES))

    seen: dict[str, bytes] = {}
    ended = threading.Event()
    process = subprocess.Popen(
        command,
        # A module's bytecode that is cut at the limit would break every later run.
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=limit,
        start_new_session=True,
    )
    watch = threading.Thread(target=_glance, args=(process.pid, seen, ended))
    watch.start()
    try:
        text, _ = process.communicate(timeout=_PATIENCE_SECONDS)
    finally:
        ended.set()
        watch.join()
    return text, seen


def _glance(first: int, seen: dict[str, bytes], ended: threading.Event) -> None:
    """Read the command line of each process of a session, and the environment of all but one."""
    while not ended.is_set():
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError, ProcessLookupError):
                if os.getsid(int(name)) != first:
                    continue
                line = Path("/proc", name, "cmdline").read_bytes()
                if line:
                    seen[f"command line of {name}"] = line
                if int(name) != first and not _is_fork(first, line):
                    seen[f"environment of {name}"] = Path("/proc", name, "environ").read_bytes()
        time.sleep(_GLANCE_SECONDS)


def _is_fork(first: int, line: bytes) -> bool:
    """Return whether a process has not yet become another program: it still is the first one."""
    with contextlib.suppress(OSError):
        return line == Path("/proc", str(first), "cmdline").read_bytes()
    return False


def _contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Read every file below a directory; of a clear archive each member, as `archive!member`."""
    for above, _directories, files in os.walk(directory):
        for name in files:
            path = os.path.join(above, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            content = Path(path).read_bytes()
            yield path, content
            if name.endswith(".tar.zst"):
                anatomy = mutants.dissect(content)
                yield f"{path}!manifest.json", mutants.encoded(anatomy.document)
                for entry, body in anatomy.members:
                    yield f"{path}!{entry.path}", body


def _places(directory: Path, secrets: tuple[Secret, ...]) -> dict[str, set[str]]:
    """Map each secret to where it is: the path, and the name in the home, if it is there."""
    places: dict[str, set[str]] = {}
    for path, content in _contents(directory):
        relative = os.path.relpath(path, directory)
        for secret in secrets:
            if any(form in content for form in secret.forms):
                names = places.setdefault(secret.name, set())
                names.add(relative)
                names.add(_in_home(relative))
    return places


def _in_home(relative: str) -> str:
    """Return the name within a home, a copy or an archive.

    Sidecars count as their database, and so do its rows from a server, to which it was moved.
    """
    inner = relative.partition("!" if "!" in relative else "/")[2]
    first, _, rest = inner.partition("/")
    if first in _COPIES or first.startswith(".sagewai-ops-before-restore-"):
        inner = rest
    if "!" in relative and inner.startswith(f"{SERVER_DIRECTORY}/"):
        return DATABASE
    for end in ("-wal", "-shm", "-journal"):
        inner = inner.removesuffix(end)
    inner = _LEGACY.sub("", inner)  # an old key that is kept is where the key is
    # Documents are at the root of an older home.
    return inner.removeprefix("config/").removeprefix("secrets/")


def _may(relative: str, secret: Secret, before: Mapping[str, set[str]]) -> bool:
    names = before.get(secret.name, set())
    if relative in names:
        return True
    if secret.is_key and relative == _KEY_PLACE:  # where --key-file puts it
        return True
    if not secret.is_of_home or (secret.is_key and ("!" in relative or ".snapshots" in relative)):
        return False
    return _in_home(relative) in names


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="commands whose names begin so")
    parser.add_argument("--ways", default=",".join(WAYS), help="some of them, with commas")
    parser.add_argument("--other-owner", action="store_true", help="as root, of another user")
    chosen = parser.parse_args()
    if chosen.other_owner and os.geteuid():
        print("only root can act on the home of another user")
        return 0
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ops-leaks-"))
        os.chmod(directory, 0o711)  # noqa: S103 - a server of another user has its socket there
        (Path(directory) / "root").mkdir(mode=0o700)
        search = Search(Path(directory), stack, OTHER_USER if chosen.other_owner else 0)
        for case in (*CASES, *MORE):
            if case.name.startswith(chosen.only):
                search.through(case, tuple(chosen.ways.split(",")))
    print(
        f"{search.runs} runs, {search.searched_bytes / 1e6:,.0f} MB searched in "
        f"{time.monotonic() - begun:.0f} s, {len(search.violations)} violations"
    )
    for violation in sorted(set(search.violations))[:_SHOWN]:
        print(f"VIOLATION {violation}")
    return int(bool(search.violations))


if __name__ == "__main__":
    sys.exit(main())
