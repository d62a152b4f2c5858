"""Schedules where Sagewai runs in containers: Compose and Kubernetes.

Three parts use the same home: a backup each night, a drill each week, and a restore to an empty
volume before Sagewai starts. They have one fixed host name: an engine chooses another for each
container, and the host name identifies a home without an administrator. The facts about Sagewai's
image and Compose file: service `backend`, user 1001:1001, home /home/sagewai/.sagewai. The file of
Sagewai 1.0.1 has no volume for that home; this one has.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path

from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.schedule.plan import NAME, File, Plan, parse_options
from sagewai_ops.schedule.template import Value, fill_template, flag, refuse_control

HOME = "/home/sagewai/.sagewai"
SNAPSHOTS = "/snapshots"
STATE = "/state"  # the user's state directory, which a restart of a container must not remove
HOST = "sagewai-ops"
USER = "1001:1001"
DRILL, RESTORE = "sagewai-ops-drill", "sagewai-ops-restore"
# Scheme of a place -> the variable that names its file of credentials.
CREDENTIALS = {
    "s3": "AWS_SHARED_CREDENTIALS_FILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_KEY_FILE",
}
# Kubernetes mounts the token of a pod's account below /run/secrets.
_SECRETS, _SECRETS_IN_POD = "/run/secrets", "/run/sagewai-ops"
_HOME_VOLUME = "sagewai-home"
_SNAPSHOT_VOLUME = "sagewai-snapshots"
_STATE_VOLUME = "sagewai-ops-state"
_JITTER = "15m"
_DRILL_HOURS = 2  # after the time of the backup, on Sundays
_RECIPIENTS = ("--recipient", "--recipients-file")
_SHARED = ("--notify-file", "--notify-on", "--metrics-file", "--log-file")  # by backup and drill
_UNMOUNTED = {
    "--engine": "schedule systemd",
    "--repository": "schedule systemd",
    "--init-repository": "schedule systemd",
    "--recipients-file": "--recipient KEY",
    "--passphrase-command": "--passphrase-file FILE",
}
_WRITTEN = ("--metrics-file", "--log-file", "--work-dir")
_OPENS, _TARGET = ("--passphrase-file",), ("--url-file",)
_RECOVERY = ("--notify-on", "recovery")


@dataclass(frozen=True, slots=True)
class Image:
    """An image, and the secrets that a restore needs besides those of `backup`.

    Attributes:
        version: Of sagewai-ops, if the image is to be built; "" for an existing image.
        place: The URL of a remote place; "" for a volume.
        scheme: Of the place, or of the first one of `--also`; "" for none.
        identity, install_key, scratch_url, credentials: Files; "" for none.
        mounted: The directory of the secrets in the container.
    """

    name: str
    version: str = ""
    place: str = ""
    scheme: str = ""
    identity: str = field(default="", repr=False)
    install_key: str = field(default="", repr=False)
    scratch_url: str = field(default="", repr=False)
    credentials: str = field(default="", repr=False)
    mounted: str = _SECRETS

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets besides those of `backup`: file by name."""
        files = {
            "identity": self.identity,
            "master-key": self.install_key,
            "scratch-url": self.scratch_url,
            "credentials": self.credentials,
        }
        return {name: path for name, path in files.items() if path}


def can_decrypt(plan: Plan, image: Image) -> bool:
    """Return whether a drill and a restore can read the snapshots."""
    return bool(image.identity) or not any(
        option in _RECIPIENTS for option, _value in parse_options(plan.words)
    )


def compose(plan: Plan, image: Image, *, home: str = "", snapshots: str = "") -> list[File]:
    """Return a second Compose file, for use together with Sagewai's own.

    Args:
        home: The home's directory on the host; "" for a named volume.
        snapshots: The snapshot directory on the host; "" for a named volume.
    """
    is_local = not image.place
    volumes = [_STATE_VOLUME] if home else [_HOME_VOLUME, _STATE_VOLUME]
    if is_local and not snapshots:
        volumes.append(_SNAPSHOT_VOLUME)
    loop = ["schedule", "run", "--every"]
    backup = [*loop, f"day@{_time(plan)}", "--jitter", _JITTER, "--", *_backup(plan, image)]
    services = [_service(plan, image, NAME, backup, literal_string, has_state=True)]
    if can_decrypt(plan, image):
        drill = [*loop, f"sunday@{_time(plan, _DRILL_HOURS)}", "--", *_drill(plan, image)]
        restore = _restore(plan, image)
        for name, words in ((DRILL, drill), (RESTORE, restore)):
            services.append(_service(plan, image, name, words, literal_string, has_state=True))
    secrets = {**plan.secrets, **image.secrets}
    values: dict[str, Value] = {
        "image": literal_string(image.name),
        "user": literal_string(plan.user or USER),
        "user_name": plan.user or USER,
        "home_volume": _mount(home, _HOME_VOLUME, HOME),
        "snapshot_volume": _mount(snapshots, _SNAPSHOT_VOLUME, SNAPSHOTS),
        "state_volume": _mount("", _STATE_VOLUME, STATE),
        "host": HOST,
        "local": flag(is_local),
        "services": services,
        "restores": flag(len(services) > 1),
        "any_secret": flag(secrets),
        "all_secrets": [
            {"name": name, "path": literal_string(path)} for name, path in secrets.items()
        ],
        "offline": flag(not plan.online),
        "any_volume": flag(volumes),
        "volumes": [{"name": name} for name in volumes],
    }
    return [File(f"{NAME}.yaml", fill_template("compose.yaml", {**values, **_built(image)}))]


def kubernetes(plan: Plan, image: Image) -> list[File]:
    """Return CronJobs with two volume claims, which must exist, and a patch for Sagewai's pod."""
    image = replace(image, mounted=_SECRETS_IN_POD)
    uid, _, gid = (plan.user or USER).partition(":")
    has_state = _RECOVERY in parse_options(plan.words)

    def job(name: str, words: list[str]) -> dict[str, Value]:
        return _service(plan, image, name, words, literal_string, has_state=has_state)

    backup = job(NAME, _backup(plan, image))
    jobs = [{**backup, "week_day": "*", "hour": plan.hour, "separator": []}]
    if can_decrypt(plan, image):
        drill = job(DRILL, _drill(plan, image))
        hour = (plan.hour + _DRILL_HOURS) % 24
        jobs.append({**drill, "week_day": "0", "hour": hour, "separator": [{}]})
    secrets = {**plan.secrets, **image.secrets}
    values: dict[str, Value] = {
        "user": plan.user or USER,
        "uid": uid,
        "gid": gid or uid,
        "minute": plan.minute,
        "image": yaml_string(image.name),
        "jobs": jobs,
        "local": flag(not image.place),
        "has_state": flag(has_state),
        "host": HOST,
        "any_secret": flag(secrets),
        "mounted": image.mounted,
        "from_files": "".join(f" --from-file={name}=FILE" for name in secrets),
        **_built(image),
    }
    files = [File(f"{NAME}.yaml", fill_template("kubernetes.yaml", values))]
    if len(jobs) > 1:
        restore = _service(plan, image, RESTORE, _restore(plan, image), literal_string)
        text = fill_template("kubernetes-restore.yaml", {**values, **restore})
        files.append(File(f"{RESTORE}.yaml", text))
    return files


def yaml_string(text: str) -> str:
    """Return a double-quoted scalar of YAML, whose escapes include those of JSON."""
    refuse_control(text, "a YAML file")
    return json.dumps(text, ensure_ascii=False)


def literal_string(text: str) -> str:
    """Return a scalar in which no `$` begins a variable: `$$` is `$` for Compose and Kubernetes.

    For Kubernetes in arguments and variables alone, where `$(NAME)` is a variable.
    """
    return yaml_string(text.replace("$", "$$"))


def can_drill(plan: Plan, image: Image) -> bool:
    """Return whether a drill, if it is printed, has a server for the database."""
    has_server = any(option in _TARGET for option, _value in parse_options(plan.words))
    return not has_server or bool(image.scratch_url) or not can_decrypt(plan, image)


def has_key(plan: Plan, image: Image) -> bool:
    """Return whether a restore to an empty volume gets a master key, if it is printed."""
    is_sealed = ("--key", "sealed") in parse_options(plan.words)
    return is_sealed or bool(image.install_key) or not can_decrypt(plan, image)


def refuse_unmounted(plan: Plan, image: Image) -> None:
    """Refuse options of `backup` that need what no container has.

    Raises:
        UsageError: Such an option; the hint names what containers have instead.
    """
    if image.scratch_url and not any(option in _TARGET for option, _ in parse_options(plan.words)):
        raise UsageError(
            "--scratch-url-file: for the drill of a database on a server, and none is backed up",
            hint="add -- --url-file FILE, the URL of the database",
        )
    writable = (HOME, *([] if image.place else [SNAPSHOTS]), "/tmp")  # noqa: S108 - the container's
    for option, value in parse_options(plan.words):
        if hint := _UNMOUNTED.get(option):
            raise UsageError(f"{option}: not possible in a container", hint=hint)
        if option in _WRITTEN and not any(map(Path(value or "").is_relative_to, writable)):
            raise UsageError(
                f"{option} {value}: not writable in the container",
                hint=f"{option} {writable[-2]}/NAME",
            )


def _mount(directory: str, volume: str, place: str) -> str:
    """Return a volume of a service; the long form for a directory, which can contain a colon."""
    if not directory:
        return literal_string(f"{volume}:{place}")
    return f"{{type: bind, source: {literal_string(directory)}, target: {place}}}"


def _service(
    plan: Plan,
    image: Image,
    name: str,
    words: list[str],
    scalar: Callable[[str], str],
    *,
    has_state: bool = False,
) -> dict[str, Value]:
    """Return the values of one container: its words, its variables and the secrets it uses."""
    variables = {
        "HOME": "/tmp",  # noqa: S108 - of the container alone
        "SAGEWAI_HOME": HOME,
        "SAGEWAI_OPS_SNAPSHOTS": image.place or SNAPSHOTS,
    }
    if has_state:
        variables["XDG_STATE_HOME"] = STATE
    paths = " ".join(words)
    if image.credentials:
        variables[CREDENTIALS[image.scheme]] = f"{image.mounted}/credentials"
        paths += f" {image.mounted}/credentials"
    used = [
        secret
        for secret in (*plan.secrets, *image.secrets)
        if f"{image.mounted}/{secret}" in paths.split()
    ]
    return {
        "name": name,
        "words": [{"word": scalar(word)} for word in words],
        "environment": [{"name": key, "value": scalar(value)} for key, value in variables.items()],
        "secrets": [{"name": secret} for secret in used],
        "any_secret": flag(used),
        "is_loop": flag(name != RESTORE),
        "is_init": flag(name == RESTORE),
        "unhealthy": flag(name != NAME),
    }


def _backup(plan: Plan, image: Image) -> list[str]:
    return ["backup", *plan.options(lambda name: f"{image.mounted}/{name}")]


def _drill(plan: Plan, image: Image) -> list[str]:
    server = ["--scratch-url-file", f"{image.mounted}/scratch-url"] if image.scratch_url else []
    selected = _selected(plan, image, (*_OPENS, *_SHARED))
    return ["drill", "latest", *selected, *_identity(image), *server]


def _restore(plan: Plan, image: Image) -> list[str]:
    key = ["--install-key", f"{image.mounted}/master-key"] if image.install_key else []
    opening = [*_selected(plan, image, (*_OPENS, *_TARGET)), *_identity(image)]
    return ["restore", "latest", "--if-empty", *opening, *key]


def _identity(image: Image) -> list[str]:
    return ["--identity", f"{image.mounted}/identity"] if image.identity else []


def _selected(plan: Plan, image: Image, names: tuple[str, ...]) -> list[str]:
    """Return those of the options of `backup` that another command has too."""
    words = plan.options(lambda name: f"{image.mounted}/{name}")
    return [
        word
        for option, value in parse_options(words)
        if option in names
        for word in (option, value)
        if word is not None
    ]


def _time(plan: Plan, later_hours: int = 0) -> str:
    return f"{(plan.hour + later_hours) % 24:02}:{plan.minute:02}"


def _built(image: Image) -> Mapping[str, Value]:
    return {"image_built": [{"version": image.version}] if image.version else []}
