"""Build the Containerfile where no registry is reachable, and run the image: make image-test.

The base is made from Debian's packages by mmdebstrap, the wheels come from the package index, and
buildah builds as root. The image runs under bwrap as a container would: a read-only root, uid 1001,
no capability, no network, a process table of its own. Needs Linux, root, and some 2 GB in /var/tmp.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRATCH = Path("/var/tmp/sagewai-ops-image")  # noqa: S108 - root's; make clean removes it
BUILDAH = ("buildah", "--root", f"{SCRATCH}/storage", "--runroot", f"{SCRATCH}/run",
           "--storage-driver", "vfs")  # fmt: skip
BASE, IMAGE = "localhost/sagewai-ops-base", "localhost/sagewai-ops:test"
USER = 1001


def run(*words: str | Path, **options: object) -> str:
    """Run a program that must succeed, and return what it prints."""
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, **options)  # type: ignore[call-overload]
    return str(done.stdout)


def build() -> Path:
    """Build the image, and return the directory of its file system."""
    base, wheels = SCRATCH / "base.tar", SCRATCH / "wheels"
    if not base.exists():
        packages = "--include=python3,python3-venv,ca-certificates"
        partial = base.with_suffix(".partial.tar")
        run("mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", partial)
        partial.rename(base)
    if not run(*BUILDAH, "images", "--quiet", "--filter", f"reference={BASE}").strip():
        container = run(*BUILDAH, "from", "scratch").strip()
        run(*BUILDAH, "add", "--quiet", container, base, "/")
        run(*BUILDAH, "commit", "--quiet", "--rm", container, BASE)
    # Of the Python of the base, which is Debian's.
    python = "/usr/bin/python3"
    script, environment = ROOT / ".ci/image_requirements.py", SCRATCH / "venv"
    run(python, "-m", "venv", environment)
    for number, words in enumerate((("setuptools",), (".", "remote", "notify"))):
        requirements = SCRATCH / f"{number}.txt"
        requirements.write_text(run(environment / "bin/python", script, *words, cwd=ROOT))
        run(environment / "bin/python", "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary=:all:", "--require-hashes", "--dest", wheels,
            "-r", requirements)  # fmt: skip
    arguments = {"BASE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "VERSION": "test"}
    arguments["PIP_INDEX_URL"] = ""
    run(*BUILDAH, "build", "--quiet", "--isolation", "chroot", "--format", "docker",
        "--volume", f"{wheels}:/wheels:ro", "--tag", IMAGE, "--file", ROOT / "Containerfile",
        *(f"--build-arg={name}={value}" for name, value in arguments.items()), ROOT)  # fmt: skip
    return Path(run(*BUILDAH, "mount", run(*BUILDAH, "from", IMAGE).strip()).strip())


def read_configuration() -> dict[str, object]:
    """Return the configuration of the image."""
    found = json.loads(run(*BUILDAH, "inspect", "--type", "image", IMAGE))
    configuration = found["Docker"]["config"]
    assert isinstance(configuration, dict)
    return configuration


def command(root: Path, volumes: dict[str, Path], words: Sequence[str]) -> list[str]:
    """Return the command line that runs the image with volumes, by its configuration."""
    configuration = read_configuration()
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
        *(
            "--cap-drop",
            "ALL",
            *capabilities,
            "setpriv",
            "--reuid",
            str(USER),
            "--regid",
            str(USER),
        ),
        *("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
        *configuration["Entrypoint"],  # type: ignore[misc]
        *words,
    ]


def check(root: Path) -> None:
    """Run what a container runs: each step must end with its exit code."""
    volumes = {}
    for place in ("/home/sagewai/.sagewai", "/snapshots"):
        path = volumes[place] = SCRATCH / "volumes" / Path(place).name
        shutil.rmtree(path, ignore_errors=True)
        found = root.joinpath(place[1:]).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (USER, 0o700), place
        path.mkdir(parents=True, mode=0o700)
        os.chown(path, USER, USER)
    home = volumes["/home/sagewai/.sagewai"]
    health = read_configuration()["Healthcheck"]["Test"][2:]  # type: ignore[index]
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
        _expect(root, volumes, expected, words)
    for path in list(home.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _expect(root, volumes, 0, ["restore", "latest", "--if-empty", "--without-key"])
    assert (home / "db/sagewai.db").is_file()
    assert not (home / "secrets/master.key").exists()  # its custody is `exclude`
    loop = command(root, volumes, ["schedule", "run", "--every", "6h", "--", "backup"])
    with subprocess.Popen(loop) as process:
        time.sleep(3)
        assert process.poll() is None
        process.terminate()
        process.wait(30)


def _expect(root: Path, volumes: dict[str, Path], expected: int, words: Sequence[str]) -> None:
    done = subprocess.run(
        command(root, volumes, words), capture_output=True, text=True, check=False
    )
    print(f"exit {done.returncode}: {' '.join(words)}", flush=True)
    if done.returncode != expected:
        sys.exit(f"expected {expected}\n{done.stdout}{done.stderr}")


def main() -> None:
    """Build, then run."""
    began = time.monotonic()
    SCRATCH.mkdir(mode=0o755, exist_ok=True)
    root = build()
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)
    check(root)
    for container in run(*BUILDAH, "containers", "--quiet").split():
        run(*BUILDAH, "rm", container)
    print(f"passed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
