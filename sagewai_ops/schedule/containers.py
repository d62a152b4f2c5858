"""Ready-made schedules for `backup` where Sagewai runs in containers: Compose and Kubernetes.

The facts about Sagewai's own image and Compose file: service `backend`, user 1001:1001, home
/home/sagewai/.sagewai; the file of Sagewai 1.0.1 gives that home no volume, so this one does.
"""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from sagewai_ops.schedule.host import NAME, File, Plan

HOME = "/home/sagewai/.sagewai"
SNAPSHOTS = "/snapshots"
USER = "1001:1001"
_SERVICE = "backend"
_SECRETS = "/run/secrets"
_HOME_VOLUME = "sagewai-home"
_SNAPSHOT_VOLUME = "sagewai-snapshots"
_SECRET = "sagewai-ops"  # noqa: S105 - the name of a Kubernetes object
_DAY_SECONDS = 86400
_LONGEST_SECONDS = 6 * 3600
_MEMORY = "512Mi"  # over three times the peak at 100,000 files, README


def image_note(image: str, version: str, user: str) -> list[str]:
    """Say how the image is made, as comments."""
    uid, _, gid = (user or USER).partition(":")
    return [
        f"# The image: docker build -t {image} - << EOF",
        "#   FROM python:3.13-slim",
        f"#   RUN pip install sagewai-ops=={version}",
        # A named volume takes over the owner of what it is first mounted on.
        f"#   RUN install -d -m 0700 -o {uid} -g {gid} {HOME} {SNAPSHOTS}",
        "# EOF",
    ]


def compose(
    plan: Plan, image: str, note: list[str], *, home: str = "", snapshots: str = ""
) -> list[File]:
    """Write a second Compose file, to be used beside Sagewai's own.

    Args:
        note: Comments that it begins with.
        home: The home's directory on the host; "" for a named volume.
        snapshots: The same for the snapshots.
    """
    moment = plan.hour * 3600 + plan.minute * 60
    command = ["sagewai-ops", "--home", HOME, "backup", "--snapshots", SNAPSHOTS,
               *plan.options(lambda name: f"{_SECRETS}/{name}")]  # fmt: skip
    # The seconds to the next HH:MM; a run that fails says so in `docker compose logs` and goes on.
    wait = (
        f"sleep $(( ({_DAY_SECONDS} + {moment} - $(date +%s) % {_DAY_SECONDS}) % {_DAY_SECONDS} ))"
    )
    loop = f"while {wait}; do {shlex.join(command)} || echo exit $?; sleep 1; done"
    volumes = [f"{home or _HOME_VOLUME}:{HOME}"]
    service: dict[str, Any] = {
        "image": image,
        "restart": "unless-stopped",
        "init": True,
        "user": plan.user or USER,
        "entrypoint": ["/bin/sh", "-c"],
        # Compose takes a single $ for a variable of its own.
        "command": [loop.replace("$", "$$")],
        "volumes": [*volumes, f"{snapshots or _SNAPSHOT_VOLUME}:{SNAPSHOTS}"],
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - the container's own
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    if plan.secrets:
        service["secrets"] = list(plan.secrets)
    if "ping-url" not in plan.secrets:
        service["network_mode"] = "none"
    document: dict[str, Any] = {
        "services": {_SERVICE: {"volumes": volumes}, NAME: service},
    }
    named = ([] if home else [_HOME_VOLUME]) + ([] if snapshots else [_SNAPSHOT_VOLUME])
    if named:
        document["volumes"] = {name: {} for name in named}
    if plan.secrets:
        document["secrets"] = {name: {"file": path} for name, path in plan.secrets.items()}
    note = [
        *note,
        f"# docker compose -f docker-compose.yml -f {NAME}.yaml up -d",
        f"# The time is {plan.hour:02}:{plan.minute:02} UTC. Both services see one home: the same",
        "# volume and the same user, on one machine.",
    ]
    return [File(f"{NAME}.yaml", _text(note, document))]


def kubernetes(plan: Plan, image: str, note: list[str]) -> list[File]:
    """Write a CronJob with two volume claims, which must be there.

    Args:
        note: Comments that it begins with.
    """
    command = ["sagewai-ops", "--home", HOME, "backup", "--snapshots", SNAPSHOTS,
               *plan.options(lambda name: f"{_SECRETS}/{name}")]  # fmt: skip
    user, _, group = (plan.user or USER).partition(":")
    mounts = [
        {"name": "home", "mountPath": HOME},
        {"name": "snapshots", "mountPath": SNAPSHOTS},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "home", "persistentVolumeClaim": {"claimName": _HOME_VOLUME}},
        {"name": "snapshots", "persistentVolumeClaim": {"claimName": _SNAPSHOT_VOLUME}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if plan.secrets:
        mounts.append({"name": "secrets", "mountPath": _SECRETS})
        items = [{"key": name, "path": name} for name in plan.secrets]
        volumes.append({"name": "secrets", "secret": {"secretName": _SECRET, "items": items}})
    container = {
        "name": "backup",
        "image": image,
        "command": command,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": _MEMORY},
        },
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(group or user),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # SQLite's locks hold on one machine only.
        "affinity": {
            "podAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "sagewai"}},
                        "topologyKey": "kubernetes.io/hostname",
                    }
                ]
            }
        },
        "containers": [container],
        "volumes": volumes,
    }
    document = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/name": "sagewai-ops"}},
        "spec": {
            "schedule": f"{plan.minute} {plan.hour} * * *",
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 0,
                    "activeDeadlineSeconds": _LONGEST_SECONDS,
                    "template": {"spec": pod},
                }
            },
        },
    }
    note = [
        *note,
        f"# kubectl apply -f {NAME}.yaml",
        f"# The claims {_HOME_VOLUME} and {_SNAPSHOT_VOLUME} must be there, the second owned by",
        f"# {plan.user or USER}. The label of Sagewai's own pod may be another: both pods must be",
        "# on one node. Set no fsGroup, here or there: Kubernetes would give the group rights to",
        "# the master key, and Sagewai would then take it for none and write another over it.",
    ]
    if plan.secrets:
        files = " ".join(f"--from-file={name}=FILE" for name in plan.secrets)
        note.append(f"# The secrets: kubectl create secret generic {_SECRET} {files}")
    return [File(f"{NAME}.yaml", _text(note, document))]


def _text(note: list[str], document: dict[str, Any]) -> str:
    return "\n".join([*note, *_yaml(document)]) + "\n"


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Write YAML's block style; texts as JSON has them, which YAML reads the same."""
    if isinstance(value, dict):
        entries = [(f"{indent}{key}:", below) for key, below in value.items()]
    else:
        entries = [(f"{indent}-", below) for below in value]
    for head, below in entries:
        if not below or not isinstance(below, (dict, list)):
            yield f"{head} {json.dumps(below)}"
        elif head.endswith("-") and isinstance(below, dict):
            first, *rest = _yaml(below, indent + "  ")
            yield f"{head} {first.strip()}"
            yield from rest
        else:
            yield head
            yield from _yaml(below, indent + "  ")
