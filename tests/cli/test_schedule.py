"""Schedules: each is valid for its system and runs the intended command."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import program
from json_schemas import problems
from program import Answer, call
from sagewai_ops.home.server_record import PLACE
from sagewai_ops.schedule.containers import DRILL, RESTORE, Image, compose
from sagewai_ops.schedule.plan import NAME, Plan
from small_homes import small

schedule = importlib.import_module("sagewai_ops.commands.schedule")
CHECK_FILES = schedule._check_files
SCHEMAS = Path(__file__).parents[2] / "fixtures" / "schemas"
RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
KINDS = ("systemd", "cron", "compose", "kubernetes")
ODD_NAMES = ("a b", "a:b", "100%", "$HOME", "it's", 'a "x"', "back\\slash", "ünï", "-x", "#c;d&e")
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd")


@pytest.fixture(autouse=True, scope="module")
def _without_files() -> Iterator[None]:
    """The texts of units are tested with the names of files that do not exist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "_check_files", lambda *_: None)
        yield


def _files(kind: str, *words: object) -> dict[str, str]:
    """Print a schedule and return its files."""
    result = call("schedule", kind, "--json", *words).result
    assert problems(f"schedule-{kind}", result) == []
    return {file["name"]: file["text"] for file in result["files"]}


def _documents(kind: str, *words: object) -> list[dict[str, Any]]:
    """Return the documents of a schedule for containers, valid by their schema."""
    text = _files(kind, *words)[f"{NAME}.yaml"]
    name = "compose" if kind == "compose" else "kubernetes-cronjob"
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        jsonschema.Draft7Validator(schema).validate(document)
    return documents


def _document(kind: str, *words: object) -> dict[str, Any]:
    """Return the first of them."""
    return _documents(kind, *words)[0]


def _line(text: str) -> str:
    """Return the command of a crontab, as cron passes it to the shell."""
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    return line.split(" ", 5)[5].replace("\\%", "%")


def _fake(directory: Path, name: str, script: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@needs_systemd
@pytest.mark.parametrize("name", ["home", *ODD_NAMES])
def test_units_are_valid(tmp_path: Path, name: str) -> None:
    """No complaint about any line, whatever the home is called; the exposure is low."""
    home = tmp_path / name
    call("--home", home, "schedule", "systemd", "--into", tmp_path, "--user", "daemon",
         "--", "--keep-daily", "7", "--ping-url-file", "/etc/ping")  # fmt: skip
    units = [tmp_path / f"{NAME}.service", tmp_path / f"{NAME}.timer"]

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, check=False
    )

    assert (verified.returncode, verified.stderr.decode()) == (0, "")


@needs_systemd
def test_units_are_hardened(tmp_path: Path) -> None:
    """By systemd's own measure, where 10 is the worst."""
    call("schedule", "systemd", "--into", tmp_path, "--user", "daemon")

    analysis = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", tmp_path / f"{NAME}.service"],
        capture_output=True,
        check=False,
    ).stdout.decode()

    exposure = re.search(r"exposure level for \S+: ([\d.]+)", analysis)
    assert exposure, analysis
    assert float(exposure[1]) < 3


@pytest.mark.parametrize("name", ODD_NAMES)
def test_units_run_the_intended_words(tmp_path: Path, name: str) -> None:
    """Unquoted by systemd.service(5): `%%`, `$$`, quotes, and credentials by variable."""
    home = tmp_path / name

    text = _files("systemd", "--home", home, "--", "--ping-url-file", "/p", "--exclude", name
                  if not name.startswith("-") else "x")[f"{NAME}.service"]  # fmt: skip

    command = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    words = shlex.split(command.partition("=")[2].replace("%%", "%").replace("$$", "$"))
    assert words[1:6] == ["--home", str(home), "backup", "--snapshots", f"{home}.snapshots"]
    assert words[6:8] == ["--ping-url-file", "${CREDENTIALS_DIRECTORY}/ping-url"]
    assert "LoadCredential=ping-url:/p" in text.splitlines()


def test_units_make_only_output_directories_writable(tmp_path: Path) -> None:
    """The home, the snapshots, and the directories of the metrics and the log."""
    text = _files("systemd", "--home", "/h", "--to", "/s", "--", "--metrics-file", "/m/x.prom",
                  "--log-file", "/l/x.log")[f"{NAME}.service"]  # fmt: skip

    assert "ReadWritePaths=/h /s /m /l" in text.splitlines()
    assert "ProtectSystem=strict" in text


@pytest.mark.parametrize(
    ("user", "capabilities"),
    [
        (["--root"], "CAP_DAC_READ_SEARCH CAP_KILL CAP_SETGID CAP_SETUID"),
        (["--user", "root"], "CAP_DAC_READ_SEARCH CAP_KILL CAP_SETGID CAP_SETUID"),
        (["--user", "x"], ""),
    ],
)
def test_units_keep_the_capabilities_that_root_needs(user: list[str], capabilities: str) -> None:
    """Root becomes the owner of the home; it changes no owner and no mode of others."""
    text = _files("systemd", *user)[f"{NAME}.service"]

    (line,) = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    assert line.partition("=")[2] == capabilities
    assert ("User=" in text) is (user[-1] == "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of a directory")
def test_unit_runs_as_the_owner_of_the_home(tmp_path: Path) -> None:
    """By name, by number without one, and by the parent of a home that does not exist."""
    import pwd

    home = tmp_path / "home"
    home.mkdir()
    lines = []
    for uid in (pwd.getpwnam("daemon").pw_uid, 40123):
        os.chown(home, uid, uid)
        lines += [
            line
            for path in (home, home / "missing")
            for line in _files("systemd", "--home", path)[f"{NAME}.service"].splitlines()
            if line.startswith("User=")
        ]

    assert lines == ["User=daemon", "User=daemon", "User=40123", "User=40123"]


def test_unit_without_a_ping_has_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ping URL, on the line or in the configuration, a database on a server and a vault do."""
    denied = "IPAddressDeny=any"
    (tmp_path / "c.toml").write_text('[backup]\nping-url-file = "/etc/ping"\n')

    alone = _files("systemd")[f"{NAME}.service"].splitlines()
    with_ping = _files("systemd", "--", "--ping-url-file", "/p")[f"{NAME}.service"]
    configured = _files("systemd", "--config", tmp_path / "c.toml")[f"{NAME}.service"]
    vault = ("--passphrase-command", "vault kv get -field=p secret/b")
    with_vault = _files("systemd", "--", *vault)[f"{NAME}.service"]
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", "postgresql://h/d")
    on_server = _files("systemd")[f"{NAME}.service"]

    assert denied in alone
    assert "RestrictAddressFamilies=AF_UNIX" in alone
    assert "ProtectProc=invisible" in alone
    assert denied not in with_ping + configured + on_server + with_vault
    assert '--passphrase-command "vault kv get -field=p secret/b"' in with_vault


@pytest.mark.parametrize("user", ["-x", "--", "a:b", "a b", "", "a%", "1x", "\u0661:\u0661"])
@pytest.mark.parametrize("kind", KINDS)
def test_user_that_is_no_name_is_refused(kind: str, user: str) -> None:
    """It would be an option of `install`, a column of the crontab or a key of YAML."""
    answer = call("schedule", kind, f"--user={user}")

    assert answer.code == 2
    assert "--user" in answer.err


SEPARATORS = "\n\r\v\f\x1b\x1c\x1d\x1e\x85\u2028\u2029\u202e\u2066\x07"


@given(
    before=st.text(max_size=5),
    separator=st.sampled_from(SEPARATORS),
    after=st.text(max_size=20),
    kind=st.sampled_from(KINDS),
)
@settings(max_examples=12)
def test_no_text_ends_a_line(before: str, separator: str, after: str, kind: str) -> None:
    """A path or an option with any separator is refused, and the error is one printable line."""
    bad = f"/x{before}{separator}{after}".replace("\0", "")
    for words in ((f"--home={bad}",), ("--", f"--exclude={bad}")):
        answer = call("schedule", kind, *words)

        assert (answer.code, answer.out) == (2, "")
        assert all(line.replace("\t", "").isprintable() for line in answer.err.split("\n"))
        assert all(line.startswith("sagewai-ops: ") for line in answer.err[:-1].split("\n"))


def test_timer_has_time_and_jitter() -> None:
    """And catches up after a night in which the machine was off."""
    text = _files("systemd", "--time", "4:05")[f"{NAME}.timer"]

    assert "OnCalendar=*-*-* 04:05:00" in text
    assert "RandomizedDelaySec=15min" in text
    assert "Persistent=true" in text


@pytest.mark.parametrize("name", ODD_NAMES)
def test_cron_runs_the_intended_words(tmp_path: Path, name: str) -> None:
    """Through cron's percent signs and the shell's quotes."""
    fake = _fake(tmp_path, "fake", 'for word; do printf "%s\\0" "$word"; done')

    (text,) = _files("cron", "--program", fake, "--home", tmp_path / name,
                     "--", "--keep-last", "3").values()  # fmt: skip
    printed = subprocess.run(["/bin/sh", "-c", _line(text)], capture_output=True, check=True).stdout

    home = str(tmp_path / name)
    assert printed.decode().split("\0")[:-1] == [
        "--home", home, "backup", "--snapshots", f"{home}.snapshots", "--keep-last", "3",
    ]  # fmt: skip


def test_cron_line_takes_a_snapshot_in_an_empty_environment(tmp_path: Path) -> None:
    """As cron runs it: an empty environment, no terminal, and nothing to mail."""
    home = small(tmp_path / "home").root
    (text,) = _files("cron", "--home", home).values()

    done = subprocess.run(
        ["/bin/sh", "-c", _line(text)], env={}, cwd="/", capture_output=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.glob("home.snapshots/*.tar.zst"))


def test_cron_with_a_user_is_for_cron_d() -> None:
    """The sixth column is the name of the user."""
    (text,) = _files("cron", "--user", "sagewai", "--time", "23:59").values()

    line = text.splitlines()[-1].split()
    assert line[:6] == ["59", "23", "*", "*", "*", "sagewai"]


def test_compose_is_valid_with_sagewais_own_file() -> None:
    """The home has a volume that all services use; none has other access; Sagewai waits."""
    document = _document("compose", "--", "--keep-daily", "7")

    services = document["services"]
    (home,) = services["backend"]["volumes"]
    assert services["backend"]["depends_on"] == {
        RESTORE: {"condition": "service_completed_successfully"}
    }
    assert set(services) == {"backend", NAME, DRILL, RESTORE}
    assert set(document["volumes"]) == {"sagewai-home", "sagewai-snapshots", "sagewai-ops-state"}
    for name in (NAME, DRILL, RESTORE):
        service = services[name]
        assert service["volumes"] == [
            home,
            "sagewai-snapshots:/snapshots",
            "sagewai-ops-state:/state",
        ]
        # An engine would choose another for each container, and the home would have another id.
        assert service["hostname"] == "sagewai-ops"
        assert service["environment"]["XDG_STATE_HOME"] == "/state"
        assert (service["network_mode"], service["read_only"]) == ("none", True)
        assert (service["cap_drop"], service["user"]) == (["ALL"], "1001:1001")
        assert service["mem_limit"]
    assert services[NAME]["command"][-3:] == ["backup", "--keep-daily", "7"]
    assert services[RESTORE]["restart"] == "no"


@pytest.mark.parametrize("name", [NAME, DRILL, RESTORE])
@pytest.mark.parametrize(
    "words",
    [
        ["--time", "23:05", "--", "--keep-last", "3", "--exclude", "$HOME"],
        ["--identity", "/i", "--install-key", "/k", "--", "--recipient", RECIPIENT],
        ["--to", "s3://b/p", "--credentials", "/c", "--", "--passphrase-file", "/p",
         "--notify-file", "/n", "--metrics-file", "/tmp/m.prom"],
        ["--scratch-url-file", "/s", "--", "--url-file", "/u", "--also", "gs://b/p"],
    ],
)  # fmt: skip
def test_commands_of_containers_are_lines_that_the_program_takes(
    name: str, words: list[str]
) -> None:
    """Each parses; each secret that a command names is mounted for it, and no other."""
    document = _document("compose", *words)
    service = document["services"][name]
    command = [word.replace("$$", "$") for word in service["command"]]

    parsed = (
        call(
            "--home",
            "/none",
            *command[: command.index("--")],
            "--dry-run",
            *command[command.index("--") :],
        )
        if "--" in command
        else call("--home", "/none", *command, "--help")
    )

    assert parsed.code == 0, parsed.err
    variables = service["environment"].values()
    named = {word for word in (*command, *variables) if word.startswith("/run/secrets/")}
    assert {f"/run/secrets/{secret}" for secret in service.get("secrets", [])} == named
    assert set(service.get("secrets", [])) <= set(document.get("secrets", {}))


def test_compose_with_directories_and_secrets() -> None:
    """Directories of the host instead of volumes; the watchdog needs a network."""
    document = _document(
        "compose", "--home", "/h", "--to", "/s", "--", "--ping-url-file", "/etc/ping"
    )

    sidecar = document["services"][NAME]
    assert sidecar["volumes"] == [
        {"type": "bind", "source": "/h", "target": "/home/sagewai/.sagewai"},
        {"type": "bind", "source": "/s", "target": "/snapshots"},
        "sagewai-ops-state:/state",
    ]
    assert sidecar["stop_grace_period"] == "90s"  # longer than the loop waits, and reports
    assert document["volumes"] == {"sagewai-ops-state": {}}
    assert "network_mode" not in sidecar
    assert document["secrets"] == {"ping-url": {"file": "/etc/ping"}}
    assert sidecar["command"][-2:] == ["--ping-url-file", "/run/secrets/ping-url"]


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("s3://bucket/sagewai", "AWS_SHARED_CREDENTIALS_FILE"),
        ("gs://bucket/sagewai", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://account/container", "AZURE_STORAGE_ACCOUNT_KEY_FILE"),
    ],
)
@pytest.mark.parametrize("is_target", [True, False])
def test_a_remote_place_has_its_credentials_from_a_secret(
    kind: str, url: str, variable: str, *, is_target: bool
) -> None:
    """As the target or of a copy, in each container; as the target without another volume."""
    option = ["--to", url] if is_target else []
    also = ["--", "--also", url] if not is_target else []

    text = "\n".join(_files(kind, *option, "--credentials", "/c", *also).values())

    count = {"compose": 3, "kubernetes": 3}[kind]
    assert text.count(variable) == count
    secrets = {"compose": "/run/secrets", "kubernetes": "/run/sagewai-ops"}[kind]
    assert text.count(f"{secrets}/credentials") == count
    assert ("claimName: sagewai-snapshots" in text or "sagewai-snapshots:/snapshots" in text) is (
        not is_target
    )
    assert "network_mode" not in text


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "sftp://host/path"], "neither ssh nor the configuration"),
        (["--", "--also", "offsite:x"], "neither ssh nor the configuration"),
        (["--credentials", "/c"], "no remote place uses them"),
    ],
)
def test_places_that_no_container_reaches_are_refused(
    kind: str, words: list[str], message: str
) -> None:
    """They would fail each night."""
    answer = call("schedule", kind, *words)

    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "restic", "--repository", "/r"], "--engine: not possible in a container"),
        (["--repository", "restic:/r"], "--repository: not possible in a container"),
        (["--also", "/mnt/usb"], "--also /mnt/usb: not mounted"),
        (["--recipients-file", "/f"], "--recipients-file: not possible in a container"),
        (["--passphrase-command", "pass x"], "--passphrase-command: not possible"),
        (["--log-file", "/var/log/x"], "--log-file /var/log/x: not writable"),
    ],
)
def test_options_that_need_more_than_the_containers_have_are_refused(
    kind: str, words: list[str], message: str
) -> None:
    """The hint names what they have instead."""
    answer = call("schedule", kind, "--", *words)

    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert "hint: " in answer.err


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_a_restore_without_the_master_key_is_warned_of(kind: str) -> None:
    """Of a home with secrets; a key on the host or in the snapshot is enough."""
    without = call("schedule", kind)
    installed = call("schedule", kind, "--install-key", "/k")
    sealed = call("schedule", kind, "--", "--key", "sealed", "--passphrase-file", "/p")

    assert "add --install-key FILE" in without.err
    assert (without.code, installed.err, sealed.err) == (0, "", "")


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_without_an_identity_there_is_no_drill_that_would_fail(kind: str) -> None:
    """A warning names the option."""
    without = call("schedule", kind, "--", "--recipient", RECIPIENT)
    files = ("--identity", "/i", "--install-key", "/k")
    complete = call("schedule", kind, *files, "--", "--recipient", RECIPIENT)

    assert (without.code, DRILL in without.out, RESTORE in without.out) == (0, False, False)
    assert "add --identity FILE" in without.err
    assert DRILL in complete.out
    assert RESTORE in complete.out
    assert complete.err == ""


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_the_drill_of_a_database_on_a_server_has_a_server_or_warns(kind: str) -> None:
    """The URL is a secret of the drill alone; without a database on a server it is refused."""
    words = ("--", "--url-file", "/u", "--key", "sealed", "--passphrase-file", "/p")
    without = call("schedule", kind, *words)
    complete = call("schedule", kind, "--scratch-url-file", "/s", *words)
    useless = call("schedule", kind, "--scratch-url-file", "/s")

    assert "add --scratch-url-file FILE" in without.err
    assert (without.code, complete.code, complete.err) == (0, 0, "")
    # The words of the drill, and for Compose the service and the secret, for Kubernetes both.
    assert complete.out.count("--scratch-url-file") == 1
    assert "network_mode" not in complete.out
    assert useless.code == 2
    assert "--scratch-url-file: for the drill of a database on a server" in useless.err


def test_kubernetes_expands_nothing_in_an_option() -> None:
    """In arguments and variables, `$(NAME)` is a variable of the container, and `$$` is `$`."""
    document = _document("kubernetes", "--to", "s3://b/$(HOME)", "--", "--exclude", "$(HOME)/$$x")

    template = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    assert container["args"][-1] == "$$(HOME)/$$$$x"
    places = [each["value"] for each in container["env"] if each["name"].endswith("SNAPSHOTS")]
    assert places == ["s3://b/$$(HOME)"]


def test_kubernetes_keeps_what_a_recovery_needs() -> None:
    """Each run is another pod, whose /tmp ends with it: a claim has the state."""
    words = ("--", "--notify-file", "/n", "--notify-on", "recovery")
    for document in _documents("kubernetes", *words):
        pod = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name": "XDG_STATE_HOME", "value": "/state"} in container["env"]
        assert {"name": "state", "mountPath": "/state"} in container["volumeMounts"]
        claim = {"claimName": "sagewai-ops-state"}
        assert {"name": "state", "persistentVolumeClaim": claim} in pod["volumes"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_compose_escapes_paths_and_words(name: str) -> None:
    """Through YAML and Compose's variables."""
    words = ("--exclude", name) if not name.startswith("-") else ()
    plan = Plan(Path("/p"), Path("/h"), Path("/s"), words)

    (file,) = compose(plan, Image("image"), home=f"/{name}", snapshots=f"/s/{name}")

    service = yaml.safe_load(file.text)["services"][NAME]
    assert service["volumes"] == [
        {
            "type": "bind",
            "source": f"{place}{name}".replace("$", "$$"),
            "target": target,
        }
        for place, target in (("/", "/home/sagewai/.sagewai"), ("/s/", "/snapshots"))
    ] + ["sagewai-ops-state:/state"]
    assert service["command"][8:] == [word.replace("$", "$$") for word in words]


def test_kubernetes_is_valid_and_careful() -> None:
    """One job at a time, no rights, no token, on Sagewai's node; and never an fsGroup."""
    words = ("--", "--keep-last", "3", "--passphrase-file", "/p")
    backup, drill = _documents("kubernetes", *words)

    assert [each["metadata"]["name"] for each in (backup, drill)] == [NAME, DRILL]
    assert (backup["spec"]["schedule"], drill["spec"]["schedule"]) == ("30 3 * * *", "30 5 * * 0")
    for document in (backup, drill):
        spec = document["spec"]
        pod = spec["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert spec["concurrencyPolicy"] == "Forbid"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["hostname"] == "sagewai-ops"
        assert "XDG_STATE_HOME" not in json.dumps(document)
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        # It would make the master key accessible to the group, and Sagewai then replaces the key.
        assert "fsGroup" not in json.dumps(document)
        assert container["args"][-2:] == ["--passphrase-file", "/run/sagewai-ops/passphrase"]


@pytest.mark.parametrize(
    "words", [[], ["--install-key", "/k", "--to", "s3://b", "--credentials", "/c"]]
)
def test_the_patch_of_sagewais_pod_is_valid(words: list[str]) -> None:
    """Its parts have the types of a pod, and its mounts their volumes."""
    document = _document("kubernetes", *words)
    patch = yaml.safe_load(_files("kubernetes", *words)[f"{RESTORE}.yaml"])

    added = patch["spec"]["template"]["spec"]
    pod = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    pod["initContainers"] = added["initContainers"]
    pod["volumes"] += added["volumes"]
    schema = json.loads((SCHEMAS / "kubernetes-cronjob.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(document)
    (container,) = added["initContainers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    # There the token of the pod's account is mounted, which the jobs do not have.
    assert not any(
        mount["mountPath"].startswith(("/run/secrets", "/var/run"))
        for mount in container["volumeMounts"]
    )
    assert mounted == {volume["name"] for volume in added["volumes"]}
    assert container["args"][:3] == ["restore", "latest", "--if-empty"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_schemas_refuse_unknown_fields() -> None:
    """A misspelt field is an error."""
    for name, place in (("compose", "services"), ("kubernetes-cronjob", "spec")):
        kind = name.partition("-")[0]
        document = _document(kind)
        document[place]["concurrencyPolici"] = "Forbid"
        schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))

        assert not jsonschema.Draft7Validator(schema).is_valid(document)


@pytest.mark.parametrize("kind", KINDS)
def test_printed_text_is_the_file(kind: str) -> None:
    """Redirected output is what --json and --into have."""
    texts = list(_files(kind).values())

    out = call("schedule", kind).out

    assert all(text in out for text in texts)
    if len(texts) == 1:
        assert yaml.safe_load(out.partition("\n")[2]) == yaml.safe_load(texts[0])


@pytest.mark.parametrize("kind", ["systemd", "kubernetes"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--levle", "3"], "no such option: --levle"),
        (["--level", "99"], ""),
        (["stray"], "unexpected extra argument"),
        (["--ping-url", "https://h/hunter2"], "--ping-url: is a secret"),
        (["--ping-url=https://h/hunter2"], "--ping-url: is a secret"),
        (["--to", "/x"], "--to: belongs before --"),
        (["--home=/x"], "--home: belongs before --"),
        (["--output", "-"], "--output: not possible"),
        (["--dry-run"], "--dry-run: not possible"),
        (["--passphrase-file", "-"], "--passphrase-file: not possible"),
    ],
)
def test_options_that_would_fail_at_night_are_refused(
    kind: str, words: list[str], message: str
) -> None:
    """Options of backup are parsed before the schedule is printed."""
    answer = call("schedule", kind, "--", *words)
    as_json = call("schedule", kind, "--json", "--", *words)

    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert "hunter2" not in answer.err
    assert as_json.document["error"]["code"] == "usage"


@pytest.mark.parametrize("time", ["", "3", "24:00", "03:60", "3.30", "03:30:00", "-1:00"])
def test_invalid_time_is_refused(time: str) -> None:
    """Midnight is 00:00."""
    assert call("schedule", "cron", f"--time={time}").code == 2


@pytest.mark.parametrize(
    ("kind", "user"),
    [("cron", "a b"), ("systemd", "a\nb"), ("cron", ""), ("compose", "root"), ("compose", "0:0"),
     ("kubernetes", "1001"), ("kubernetes", "a:b")],
)  # fmt: skip
def test_invalid_user_is_refused(kind: str, user: str) -> None:
    """A name for the system, numbers for containers, where names mean nothing."""
    assert call("schedule", kind, "--user", user).code == 2


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cron and systemd start in other directories."""
    monkeypatch.chdir(tmp_path)

    (text,) = _files("cron", "--", "--recipients-file", "team.txt", "--exclude", "a/b").values()

    assert f"--recipients-file {tmp_path}/team.txt --exclude a/b" in text


def test_options_after_the_dashes_are_not_applied(tmp_path: Path) -> None:
    """A configuration after -- is for backup, and need not exist on this machine."""
    (text,) = _files("cron", "--", "--config", tmp_path / "night.toml").values()
    loud = call("schedule", "cron", "--", "--levle", "--json")

    assert text.rstrip().endswith(f"--config {tmp_path}/night.toml")
    assert (loud.code, loud.out) == (2, "")


def test_into_keeps_existing_files(tmp_path: Path) -> None:
    """Silent the first time and the second; a file with other content stays."""

    def written() -> Answer:
        return call("schedule", "systemd", "--into", tmp_path)

    assert (written().code, written().out) == (0, "")
    timer = tmp_path / f"{NAME}.timer"
    assert stat.S_IMODE(timer.stat().st_mode) == 0o644
    timer.write_text("mine")

    answer = written()

    assert (answer.code, timer.read_text()) == (15, "mine")
    assert "exists with other content" in answer.err


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    """It is not created."""
    assert call("schedule", "cron", "--into", tmp_path / "missing").code == 10


def test_credential_that_joins_lines_is_refused() -> None:
    """A backslash at the end of a line of a unit continues it."""
    assert call("schedule", "systemd", "--", "--ping-url-file", "/p\\").code == 2


def test_program_has_an_absolute_path() -> None:
    """A crontab has another PATH."""
    (text,) = _files("cron").values()

    assert f" {program.COMMAND[0]} --home " in text


@pytest.mark.parametrize("kind", KINDS)
def test_url_of_the_database_is_passed_by_file(kind: str, tmp_path: Path) -> None:
    """As a credential or a mounted secret; the network is open, the URL in no file."""
    file = tmp_path / "url"
    file.write_text("postgresql://u:s3cr3t@db/x")
    file.chmod(0o600)
    texts = "".join(_files(kind, "--home", "/h", "--", "--url-file", file).values())

    assert "s3cr3t" not in texts
    assert "--url-file" in texts
    assert {
        "systemd": f"LoadCredential=database-url:{file}",
        "cron": f"--url-file {file}",
        "compose": "/run/secrets/database-url",
        "kubernetes": "--from-file=database-url=FILE",
    }[kind] in texts
    assert "IPAddressDeny=any" not in texts


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_without_the_url_of_a_moved_home_is_warned_of(kind: str, tmp_path: Path) -> None:
    """The schedule has none of the shell's variables: its backup would stop."""
    home = small(tmp_path / "home").root
    (home / PLACE).write_text(
        '{"version": 1, "host": "db", "port": "1", "database": "x", "recorded_at": ""}'
    )

    without = call("schedule", kind, "--home", home)
    named = call("schedule", kind, "--home", home, "--", "--url-file", "/url")

    assert (without.code, named.code, "not name it" in named.err) == (0, 0, False)
    assert "postgresql://db:1/x: the schedule does not name it" in without.err


def test_files_that_do_not_exist_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer whose backup fails every night is not installed."""
    monkeypatch.setattr(schedule, "_check_files", CHECK_FILES)
    home = small(tmp_path / "home").root
    url = tmp_path / "url"

    no_home = call("--home", tmp_path / "none", "schedule", "cron")
    no_url = call("--home", home, "schedule", "systemd", "--", "--ping-url-file", url)
    no_log = call("--home", home, "schedule", "cron", "--", "--log-file", tmp_path / "logs/x.log")
    url.write_text("https://h/x")
    complete = call("--home", home, "schedule", "cron", "--", "--ping-url-file", url)

    assert (no_home.code, no_url.code, no_log.code, complete.code) == (10, 10, 10, 0)
    assert f"{url}: not found" in no_url.err
    assert f"{tmp_path}/logs: not found" in no_log.err
