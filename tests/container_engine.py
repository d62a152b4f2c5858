"""`docker` in miniature: it runs the services of Compose files as processes of this machine.

What a container has at /home/sagewai/.sagewai, /snapshots and /run/secrets is in directories of the
project here, so these paths are replaced in words and variables. Everything else is real: the
entrypoints, the words and variables of the services, volumes that `down --volumes` removes, and
services that others wait for. It is started by the test of docs/containers.md.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HOME, SNAPSHOTS, SECRETS = "/home/sagewai/.sagewai", "/snapshots", "/run/secrets/"
VOLUMES, LOGS, RUNNING = Path("volumes"), Path("logs"), Path("running")


def main(words: list[str]) -> int:
    """Run one command line."""
    if words[0] == "run":  # docker run --rm IMAGE ...
        assert words[1] == "--rm"
        assert words[2].startswith("sagewai-ops:")
        image = {"SAGEWAI_HOME": HOME, "SAGEWAI_OPS_SNAPSHOTS": SNAPSHOTS}
        return subprocess.run(
            ["sagewai-ops", *words[3:]], env={**os.environ, **image}, check=False
        ).returncode
    assert words[0] == "compose"
    project = _project()
    command, *rest = words[1:]
    variables: dict[str, str] = {}
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag == "--env":
            name, _, value = rest.pop(0).partition("=")
            variables[name] = value
    if command == "run":
        name, *given = rest
        return _start(project, name, given, variables).wait()
    if command == "exec":
        name, *given = rest
        assert (RUNNING / name).exists(), "not running"
        return _start(project, name, given[1:], {}).wait()
    if command == "logs":
        sys.stdout.write((LOGS / rest[0]).read_text())
        return 0
    if command == "up":
        return _up(project)
    assert command == "down"
    for path in RUNNING.glob("*"):
        os.kill(int(path.read_text()), signal.SIGTERM)
        path.unlink()
    if "--volumes" in words:
        for name in project["volumes"]:
            shutil.rmtree(VOLUMES / name, ignore_errors=True)
    return 0


def _project() -> dict[str, Any]:
    """Read the files of COMPOSE_FILE, merged."""
    merged: dict[str, Any] = {"services": {}, "volumes": {}, "secrets": {}}
    for file in os.environ["COMPOSE_FILE"].split(":"):
        for part, entries in (yaml.safe_load(Path(file).read_text()) or {}).items():
            for name, entry in entries.items():
                merged[part][name] = {**merged[part].get(name, {}), **(entry or {})}
    return merged


def _start(
    project: dict[str, Any],
    name: str,
    words: list[str] | None,
    variables: dict[str, str],
    *,
    log: Any = None,
) -> subprocess.Popen[bytes]:
    service = project["services"][name]
    paths = {}
    for volume in service["volumes"]:
        source, _, place = volume.partition(":")
        paths[place] = VOLUMES.absolute() / source
        paths[place].mkdir(parents=True, mode=0o700, exist_ok=True)
    for secret in service.get("secrets", []):
        paths[SECRETS + secret] = Path(project["secrets"][secret]["file"])

    def local(text: str) -> str:
        assert not text.startswith(SECRETS) or text in paths, f"{text}: not mounted in {name}"
        return str(paths.get(text, text))

    environment = {**service["environment"], **variables}
    command = service["command"] if words is None else words
    return subprocess.Popen(
        [*service["entrypoint"], *(local(word.replace("$$", "$")) for word in command)],
        env={"PATH": os.environ["PATH"], **{key: local(text) for key, text in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=log is not None,
    )


def _up(project: dict[str, Any]) -> int:
    """Start the services; those that others wait for must end well first."""
    for directory in (LOGS, RUNNING):
        directory.mkdir(exist_ok=True)
    waited = {
        name for service in project["services"].values() for name in service.get("depends_on", {})
    }
    for name in sorted(project["services"], key=lambda name: name not in waited):
        if "entrypoint" not in project["services"][name]:
            continue  # Sagewai's own
        with (LOGS / name).open("ab") as log:
            process = _start(project, name, None, {}, log=log)
        if name not in waited:
            (RUNNING / name).write_text(str(process.pid))
        elif code := process.wait():
            sys.stderr.write((LOGS / name).read_text())
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
