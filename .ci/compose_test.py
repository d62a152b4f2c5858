"""Run the Compose file that the image prints, in rootless podman: a part of make image-test.

A user of its own is created and removed. The services run as printed, without a network; another
service replaces Sagewai. What a real engine does is what is tested: other host names, owners
of volumes, services that wait for others, secrets that are mounted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

USER = "sagewai-ops-image"  # a system account of the test, with subordinate ids
BACKUP, DRILL, RESTORE = "sagewai-ops-backup", "sagewai-ops-drill", "sagewai-ops-restore"
FILE = "sagewai-ops-backup.yaml"
_WAIT_SECONDS = 600.0
# crun needs the hierarchy of version 2 alone; a private mount namespace has it.
_UNIFIED = 'umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
# Without systemd, nothing delegates a control group to a user: limits are in the configuration of a
# container, and are not enforced.
_CONTAINERS_CONF = """[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# Of Sagewai's file, what matters: a service without a volume.
_SAGEWAI = """services:
  backend:
    image: {image}
    entrypoint: ["sagewai-ops"]
    command: ["keys", "check"]
    network_mode: none
"""
_ADMIN = """
import json, os, pathlib
path = pathlib.Path(os.environ["SAGEWAI_HOME"], "config/admin-state.json")
path.write_text(json.dumps({"admin": {"id": "admin-1"}, "setup_at": "2026-01-01T00:00:00Z"}))
path.chmod(0o600)
"""
_CONFINED = """
import errno, os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert {os.getuid(), os.getgid(), *os.getgroups()} == {1001}, (os.getuid(), os.getgroups())
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status
assert int(status["NoNewPrivs"]) == 1
assert socket.gethostname() == "sagewai-ops", socket.gethostname()
assert [name for _, name in socket.if_nameindex()] == ["lo"]
for path in ("/x", "/opt/x", "/home/sagewai/x", "/run/secrets/passphrase"):
    try:
        open(path, "w")
    except OSError as error:
        assert error.errno in (errno.EROFS, errno.EACCES), (path, error)
    else:
        raise AssertionError(path)
"""


@dataclass(frozen=True)
class Engine:
    """Podman and podman-compose of the test's user.

    Attributes:
        image: The name of the image.
        directory: The user's, with the project.
        compose: The program.
        prefix: Of every command: it becomes the user.
    """

    image: str
    directory: Path
    compose: Path
    prefix: tuple[str, ...]

    @property
    def project(self) -> Path:
        """The directory with the Compose files."""
        return self.directory / "project"

    def run(self, *words: str | Path, expected: int | None = 0) -> str:
        """Run a command as the user; return what it prints.

        Args:
            expected: Its exit code; None for any.
        """
        done = subprocess.run(
            [*self.prefix, *words],
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if expected is not None and done.returncode != expected:
            raise SystemExit(
                f"exit {done.returncode}, not {expected}: {words}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def service(self, name: str, *words: str, expected: int = 0, entrypoint: str = "") -> str:
        """Run a command in a new container of a service."""
        other = ("--entrypoint", entrypoint) if entrypoint else ()
        output = self.run(
            self.compose, "run", "-T", "--rm", *other, name, *words, expected=expected
        )
        shown = entrypoint or " ".join(words)
        print(f"exit {expected}: {name}: {shown}", flush=True)
        return output

    def container(self, name: str) -> dict[str, Any]:
        """Return the state and configuration of the container of a service."""
        (found,) = json.loads(self.run("podman", "inspect", f"project_{name}_1"))
        assert isinstance(found, dict)
        return found

    def up(self) -> None:
        """Start everything; wait until the services that end have ended well."""
        self.run(self.compose, "up", "--detach")
        for name in (RESTORE, "backend"):
            until = time.monotonic() + _WAIT_SECONDS
            # The second name is that of one that ended, and that podman has not cleaned up yet.
            while (state := self.container(name)["State"])["Status"] not in ("exited", "stopped"):
                assert time.monotonic() < until, (name, state)
                time.sleep(0.5)
            assert state["ExitCode"] == 0, (name, self.run("podman", "logs", f"project_{name}_1"))
        for name in (BACKUP, DRILL):
            assert self.container(name)["State"]["Running"], name


def find_obstacle(engine: Engine, *words: str) -> str:
    """Return why rootless podman cannot run a command here; "" if it can.

    Args:
        words: The command (default: one that needs user namespaces alone).
    """
    done = subprocess.run(
        [*engine.prefix, "podman", *(words or ("unshare", "true"))],
        cwd=engine.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else (done.stderr.strip() or "unknown").splitlines()[-1]


@contextmanager
def engine_of(image: str, directory: Path) -> Iterator[Engine]:
    """Create the user, and yield its engine; everything of it is removed at the end."""
    remove_user()
    home, compose = directory / "user", directory / "compose/bin/podman-compose"
    subprocess.run(["useradd", "--create-home", "--home-dir", home, USER], check=True)
    status = home.stat()
    runtime, project = home / "run", home / "project"
    for path in (runtime, project, project / "secrets"):
        path.mkdir(mode=0o700)
    (home / "containers.conf").write_text(_CONTAINERS_CONF)
    for path in home.rglob("*"):
        os.lchown(path, status.st_uid, status.st_gid)
    is_unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    alone = ("unshare", "--mount", "--propagation", "slave")
    prefix: tuple[str, ...] = () if is_unified else (*alone, "sh", "-c", _UNIFIED, "sh")
    variables = {
        "HOME": home,
        "XDG_RUNTIME_DIR": runtime,
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "CONTAINERS_CONF": home / "containers.conf",
        "COMPOSE_FILE": f"docker-compose.yml:{FILE}",
    }
    prefix += ("runuser", "-u", USER, "--", "env", "-i")
    prefix += tuple(f"{name}={value}" for name, value in variables.items())
    overlay = Engine(image, home, compose, (*prefix, "STORAGE_DRIVER=overlay"))
    copies = Engine(image, home, compose, (*prefix, "STORAGE_DRIVER=vfs"))
    # Overlay copies nothing; not every kernel and file system has it for a user.
    engine = copies if find_obstacle(overlay, "info") else overlay
    try:
        yield engine
    finally:
        for words in (("system", "reset", "--force"), ("system", "migrate")):
            engine.run("podman", *words, expected=None)
        remove_user()
        shutil.rmtree(home, ignore_errors=True)


def remove_user() -> None:
    """Remove the user of the test, if a run that was killed has left it."""
    subprocess.run(["userdel", USER], capture_output=True, check=False)


def check(engine: Engine, archive: Path) -> None:
    """Run the way of docs/containers.md, with a volume of snapshots instead of a remote place.

    Args:
        archive: The image.
    """
    project = engine.project
    engine.run("podman", "load", "--quiet", "--input", archive)
    passphrase = project / "secrets/passphrase"
    passphrase.write_text("a passphrase of the test\n")
    passphrase.chmod(0o600)
    shutil.chown(passphrase, USER, USER)
    engine.run("podman", "unshare", "chown", "--recursive", "1001:1001", "secrets")
    options = ("--key", "sealed", "--passphrase-file")
    image = ("podman", "run", "--rm", "--network", "none", engine.image)
    printed = engine.run(
        *image, "schedule", "compose", "--image", engine.image, "--",
        *options, passphrase, "--keep-last", "1",
    )  # fmt: skip
    (project / FILE).write_text(printed)
    (project / "docker-compose.yml").write_text(_SAGEWAI.format(image=engine.image))
    words = yaml.safe_load(printed)["services"][BACKUP]["command"]
    backup = words[words.index("--") + 1 :]

    def loop(runs: int) -> tuple[str, ...]:
        return ("schedule", "run", "--every", "1s", "--runs", str(runs), "--", *backup)

    drill = ("drill", "latest", "--passphrase-file", "/run/secrets/passphrase")

    engine.service(BACKUP, *backup, expected=10)  # an empty volume
    engine.service(RESTORE, "restore", "latest", "--if-empty", expected=10)
    engine.service(BACKUP, "init")
    engine.service(BACKUP, "-c", _CONFINED, entrypoint="python3")
    engine.service(BACKUP, *loop(1))
    engine.service(DRILL, *drill)
    engine.up()
    # What another container wrote is this home's.
    name = f"project_{BACKUP}_1"
    engine.run(engine.compose, "exec", "-T", BACKUP, "sagewai-ops", "status", "--max-age", "26h")
    engine.run("podman", "healthcheck", "run", name)
    limits = engine.container(BACKUP)["HostConfig"]
    assert (limits["Memory"], limits["PidsLimit"]) == (512 << 20, 64), limits
    assert limits["ReadonlyRootfs"], limits
    # The set-up of Sagewai creates an administrator: the home gets another id.
    engine.service(BACKUP, "-c", _ADMIN, entrypoint="python3")
    engine.service(BACKUP, *loop(2))
    listed = json.loads(engine.service(BACKUP, "snapshots", "list", "--json"))["result"]
    # The second is removed, as it is of the same home; the first is the last that was drilled.
    assert [item["sequence"] for item in listed["snapshots"]] == [1, 3], listed
    engine.run(engine.compose, "down")
    print("exit 0: up, status, the health check, down", flush=True)

    engine.run("podman", "volume", "rm", "project_sagewai-home")
    engine.up()
    restored = engine.run("podman", "logs", f"project_{RESTORE}_1")
    assert "restored to " in restored, restored
    place = "/home/sagewai/.sagewai/config/admin-state.json"
    assert "admin-1" in engine.run(
        "podman", "exec", name, "python3", "-c", f"print(open('{place}').read())"
    )
    engine.run(engine.compose, "exec", "-T", BACKUP, "sagewai-ops", "keys", "check")
    engine.run(engine.compose, "down", "--volumes")
    print("exit 0: up on a lost volume, keys check, down", flush=True)
