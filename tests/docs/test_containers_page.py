"""docs/containers.md: each of its commands runs, from nothing to a volume that comes back."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import container_engine
from postgres_server import Server
from program import COMMAND
from remote_servers import KEY, SECRET, S3Server
from sagewai_ops import __version__
from sagewai_ops.schema.revision_graph import HEAD
from watchdog import watchdog

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "containers.md"
# Sagewai's own file, as far as it matters: a service without a volume.
OWN = "services:\n  backend:\n    image: sagewai\n"


def _script() -> str:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return "".join(blocks)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(stat.S_IRWXU)


def test_the_commands_of_the_page_run(
    tmp_path: Path, seaweedfs: S3Server, postgres: Server
) -> None:
    """With a store, a server and a receiver of messages on this machine, and Docker in miniature.

    The image itself is built and run by `make image-test`.
    """
    bucket = seaweedfs.bucket()
    endpoint = bucket.remote["endpoint"]
    programs, project = tmp_path / "bin", tmp_path / "project"
    programs.mkdir()
    project.mkdir()
    (project / "docker-compose.yml").write_text(OWN)
    (programs / "sagewai-ops").symlink_to(COMMAND[0])
    engine = f'exec {sys.executable} {container_engine.__file__} "$@"'
    _program(programs / "docker", f"#!/bin/sh\n{engine}\n")
    for name in ("make", "chown"):  # the image is not built here, and another user need not exist
        _program(programs / name, f'#!/bin/sh\necho "$*" >> {tmp_path}/{name}\n')
    database, role = postgres.at(HEAD), f"drill_{os.getpid()}"
    postgres.run("postgres", f"CREATE ROLE {role} LOGIN CREATEDB")
    with watchdog() as receiver:
        script = _script()
        for example, real in {
            "s3://backups/": f"{bucket.url}/",
            "https://hooks.example.org/sagewai": receiver.url,
            "postgresql://sagewai:PASSWORD@db.example.org/sagewai": postgres.url(database),
            "postgresql://drill:PASSWORD@db.example.org/postgres": postgres.url(
                "postgres", user=role
            ),
            "= KEY\n": f"= {KEY}\n",
            "= SECRET\n": f"= {SECRET}\n",
            "region = eu-central-1": f"region = us-east-1\nendpoint_url = {endpoint}",
        }.items():
            assert example in script
            script = script.replace(example, real)
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script],
            cwd=project,
            env={
                "HOME": str(tmp_path),
                "PATH": f"{programs}:{os.environ['PATH']}",
                "NO_PROXY": "*",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    postgres.run("postgres", f"DROP ROLE {role}")
    postgres.drop(database)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "make").read_text() == "image\n"
    first, failure = (json.loads(body) for _path, body in receiver.output)
    assert (first["command"], first["exit_code"]) == ("notify test", 0)
    assert (failure["command"], failure["exit_code"]) == ("backup", 10)
    restored = (project / "logs/sagewai-ops-restore").read_text()
    assert "exists, unchanged; nothing is restored" in restored
    assert "restored to " in restored
    volume = project / "volumes/sagewai-home"
    assert (volume / "secrets/master.key").exists()
    assert f"sagewai-ops:{__version__} " in _script()
    listed = json.loads(
        subprocess.run(
            [*COMMAND, "--json", "--home", volume, "snapshots", "list"],
            env={
                "PATH": os.environ["PATH"],
                "AWS_SHARED_CREDENTIALS_FILE": str(project / "secrets/credentials"),
                "SAGEWAI_OPS_SNAPSHOTS": f"{bucket.url}/sagewai",
                "NO_PROXY": "*",
            },
            capture_output=True,
            check=True,
        ).stdout
    )["result"]["snapshots"]
    assert [item["engine"] for item in listed] == ["sqlite", "postgresql"]
    assert all(item["proved_restorable_at"] for item in listed), listed
    texts = (project / "sagewai-ops-backup.yaml").read_text() + done.stdout
    assert receiver.url not in texts
    assert SECRET not in texts
