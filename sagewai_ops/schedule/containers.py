"""Schedules where Sagewai runs in containers: Compose and Kubernetes.

The facts about Sagewai's image and Compose file: service `backend`, user 1001:1001, home
/home/sagewai/.sagewai. The file of Sagewai 1.0.1 has no volume for that home; this one has.
"""

import json
import shlex
from collections.abc import Mapping

from sagewai_ops.schedule.plan import NAME, File, Plan
from sagewai_ops.schedule.template import Value, fill_template, flag, refuse_control

HOME = "/home/sagewai/.sagewai"
SNAPSHOTS = "/snapshots"
USER = "1001:1001"
_SECRETS = "/run/secrets"
_HOME_VOLUME = "sagewai-home"
_SNAPSHOT_VOLUME = "sagewai-snapshots"


def compose(
    plan: Plan, image: str, version: str, *, home: str = "", snapshots: str = ""
) -> list[File]:
    """Return a second Compose file, for use together with Sagewai's own.

    Args:
        version: Of sagewai-ops, if the image is to be built; "" for an existing image.
        home: The home's directory on the host; "" for a named volume.
        snapshots: The snapshot directory on the host; "" for a named volume.
    """
    volumes = ([] if home else [_HOME_VOLUME]) + ([] if snapshots else [_SNAPSHOT_VOLUME])
    values: dict[str, Value] = {
        "time": f"{plan.hour:02}:{plan.minute:02}",
        "second_of_day": plan.hour * 3600 + plan.minute * 60,
        # Within the double quotes of the template.
        "command": compose_string(shlex.join(_command(plan)))[1:-1],
        "image": compose_string(image),
        "user": compose_string(plan.user or USER),
        "home_volume": compose_string(f"{home or _HOME_VOLUME}:{HOME}"),
        "snapshot_volume": compose_string(f"{snapshots or _SNAPSHOT_VOLUME}:{SNAPSHOTS}"),
        "any_secret": flag(plan.secrets),
        "secrets": [
            {"name": name, "path": compose_string(path)} for name, path in plan.secrets.items()
        ],
        "offline": flag(not plan.online),
        "any_volume": flag(volumes),
        "volumes": [{"name": name} for name in volumes],
    }
    values |= _image_values(plan, image, version)
    return [File(f"{NAME}.yaml", fill_template("compose.yaml", values))]


def kubernetes(plan: Plan, image: str, version: str) -> list[File]:
    """Return a CronJob with two volume claims, which must exist.

    Args:
        version: Of sagewai-ops, if the image is to be built; "" for an existing image.
    """
    uid, gid = _ids(plan)
    values: dict[str, Value] = {
        "user": plan.user or USER,
        "uid": uid,
        "gid": gid,
        "minute": plan.minute,
        "hour": plan.hour,
        "image": yaml_string(image),
        "command": [{"word": yaml_string(word)} for word in _command(plan)],
        "any_secret": flag(plan.secrets),
        "secrets": [{"name": name} for name in plan.secrets],
        "from_files": "".join(f" --from-file={name}=FILE" for name in plan.secrets),
    }
    values |= _image_values(plan, image, version)
    return [File(f"{NAME}.yaml", fill_template("kubernetes.yaml", values))]


def yaml_string(text: str) -> str:
    """Return a double-quoted scalar of YAML, whose escapes include those of JSON."""
    refuse_control(text, "a YAML file")
    return json.dumps(text)


def compose_string(text: str) -> str:
    """Return a scalar of a Compose file, where a single `$` begins a variable."""
    return yaml_string(text.replace("$", "$$"))


def _command(plan: Plan) -> list[str]:
    options = plan.options(lambda name: f"{_SECRETS}/{name}")
    return ["sagewai-ops", "--home", HOME, "backup", "--snapshots", SNAPSHOTS, *options]


def _image_values(plan: Plan, image: str, version: str) -> Mapping[str, Value]:
    # A named volume gets the owner of the directory on which it is mounted first.
    uid, gid = _ids(plan)
    build: dict[str, Value] = {"name": image, "version": version, "uid": uid, "gid": gid}
    return {"image_built": [build] if version else []}


def _ids(plan: Plan) -> tuple[str, str]:
    uid, _, gid = (plan.user or USER).partition(":")
    return uid, gid or uid
