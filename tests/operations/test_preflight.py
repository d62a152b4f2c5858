"""A preflight lists what is in order and how to repair what is not, and changes nothing."""

import base64
import contextlib
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyrage
import pytest

import home_writer
import real_homes
from json_schemas import problems
from postgres_server import Server
from program import Answer, call
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import locate
from sagewai_ops.operations import preflight
from sagewai_ops.operations.preflight import Check, PreflightOptions, PreflightReport, Verdict
from sagewai_ops.permissions import scan
from sagewai_ops.permissions.entry_kinds import EntryKind
from sagewai_ops.swap import pending
from sagewai_ops.swap.pending import Pending
from small_homes import everything_of

pytestmark = pytest.mark.in_memory  # others cannot put another home there

NAMES = [
    "use", "layout", "permissions", "keys", "database", "space", "snapshot", "drill", "upgrade",
]  # fmt: skip


class Usage(NamedTuple):
    """What `shutil.disk_usage` answers."""

    total: int
    used: int
    free: int


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that Sagewai wrote, private."""
    root = real_homes.unpack("real-small", tmp_path)
    assert call("--home", root, "verify-perms", "--fix", "-q").code in (0, 4)
    for path in root.glob(".sagewai-ops-permissions-*"):
        path.unlink()
    return root


@pytest.fixture(autouse=True)
def no_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the directories above the tests' own: they are whose the machine is."""
    evaluate = scan._Scanner.evaluate

    def without_parents(self: Any, facts: Any, *arguments: Any) -> None:
        if facts.kind is not EntryKind.PARENT:
            evaluate(self, facts, *arguments)

    monkeypatch.setattr(scan._Scanner, "evaluate", without_parents)


def fly(home: Path, *words: object) -> tuple[Answer, dict[str, dict[str, Any]]]:
    """Run it and return the answer, and its lines by name.

    Its shape is the documented one, and no line fails without a command that continues.
    """
    answer = call("--home", home, "preflight", *words, "--json")
    assert problems("envelope", answer.document) == []
    assert problems("preflight", answer.result) == []
    lines = {line["check"]: line for line in answer.result["checks"]}
    assert list(lines) == NAMES
    assert all(line["mend"] for line in lines.values() if line["exit_code"])
    return answer, lines


def verdicts(lines: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return what is not in order, by name."""
    return {name: line["verdict"] for name, line in lines.items() if line["verdict"] != "ok"}


def change(home: Path, *statements: str) -> None:
    """Run statements on a home's database."""
    with contextlib.closing(sqlite3.connect(home / "db/sagewai.db")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_home_in_order_is_ready_and_only_gets_a_snapshot(home: Path, tmp_path: Path) -> None:
    """Taken, proved and written down; nothing else of the home or next to it changes."""
    before = everything_of(home)

    answer, lines = fly(home)

    assert verdicts(lines) == {}
    assert (answer.code, answer.result["ready"]) == (0, True)
    assert answer.result["proved_restorable_at"]
    assert everything_of(home) == before
    archive = Path(answer.result["archive"])
    assert sorted(os.listdir(tmp_path)) == [home.name, f"{home.name}.snapshots"]
    assert sorted(os.listdir(archive.parent)) == [archive.name, f"{archive.name}.json"]


def test_write_plan_writes_a_script_that_restores_the_snapshot(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It restores the snapshot, and names the Sagewai that wrote it; another file is kept."""
    monkeypatch.setattr("sagewai_ops.home.application.find_version", lambda *_: "1.0.1")
    script, other = tmp_path / "go-back.sh", tmp_path / "other"
    other.write_text("mine")
    at_home = ("--home", home, "preflight", "--write-plan")

    first = call(*at_home, script, "--json")
    second = call(*at_home, script, "--json")
    lines = script.read_text().splitlines()

    assert (first.code, second.code) == (0, 0), second.out
    assert lines[0] == "#!/bin/sh"
    assert lines[3:] == ["set -eu", *second.result["go_back"], "# start Sagewai"]
    assert "# install Sagewai 1.0.1" in lines
    (home / "data/after").write_text("x")
    ran = subprocess.run(
        [script],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert ran.returncode == 0
    assert not (home / "data/after").exists()
    assert call(*at_home, other).code == 15
    assert other.read_text() == "mine"
    assert call(*at_home, script, "--no-snapshot").code == 2


def test_the_plan_is_a_script_of_sh_whatever_the_names(home: Path, tmp_path: Path) -> None:
    """A name with a control character and a command is one word, and nothing of it runs."""
    home = home.rename(tmp_path / "a\x01$(touch injected)';touch injected;'")
    script, secret = tmp_path / "go-back.sh", tmp_path / "passphrase"
    secret.write_text("correct horse")
    secret.chmod(0o600)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sagewai-ops").write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    (programs / "sagewai-ops").chmod(0o755)
    words = ("preflight", "--passphrase-file", secret, "--write-plan", script, "--json")

    result = call("--home", home, *words).result
    ran = subprocess.run(
        ["/bin/sh", script], cwd=tmp_path, env={"PATH": f"{programs}:/usr/bin:/bin"},
        capture_output=True, check=True,
    )  # fmt: skip

    assert [os.fsdecode(word) for word in ran.stdout.split(b"\0")[:-1]] == [
        "--home", str(home), "restore", result["snapshot"], "--replace",
        "--snapshots", str(Path(result["archive"]).parent), "--passphrase-file", str(secret),
    ]  # fmt: skip
    assert not (tmp_path / "injected").exists()


def test_the_plan_names_what_it_lacks(home: Path, tmp_path: Path) -> None:
    """A snapshot that only a private key decrypts, which no option names."""
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"

    result = call("--home", home, "preflight", "--recipient", recipient, "--json").result

    assert "# add --identity FILE, the snapshot is encrypted" in result["go_back"]


def test_the_file_of_the_plan_is_checked_first(home: Path, tmp_path: Path) -> None:
    """No snapshot is created for nothing; a plan that cannot be replaced is marked."""
    other, script = tmp_path / "other", tmp_path / "go-back.sh"
    other.write_text("mine")
    at_home = ("--home", home, "preflight", "--write-plan")

    codes = [call(*at_home, path).code for path in (other, tmp_path / "none" / "plan")]
    taken = list(tmp_path.glob("*.snapshots/*"))
    first = call(*at_home, script, "--json")
    before = script.read_text().splitlines()
    (home / "db" / "sagewai.db").write_bytes(b"x" * 8192)
    second, third = (call(*at_home, script, "--json") for _ in range(2))

    assert (codes, taken) == ([15, 10], [])
    assert first.code == 0
    assert second.result["go_back"] == []
    assert any("earlier preflight" in warning for warning in third.document["warnings"])
    assert script.read_text().splitlines() == [
        *before[:2], "# From an earlier preflight: the last one created no snapshot.", *before[2:],
    ]  # fmt: skip


def test_without_a_snapshot_nothing_changes_at_all(home: Path, tmp_path: Path) -> None:
    """Not even the snapshot directory comes to be."""
    before = everything_of(tmp_path)

    answer, lines = fly(home, "--no-snapshot")

    assert verdicts(lines) == {"snapshot": "skipped", "drill": "skipped"}
    assert answer.code == 0
    assert answer.result["snapshot"] is None
    assert everything_of(tmp_path) == before


def test_people_see_a_table_and_a_verdict(home: Path) -> None:
    """And what to do about what is not in order."""
    (home / "db/sagewai.db").chmod(0o644)

    answer = call("--home", home, "preflight", "--no-snapshot")

    assert answer.code == 4
    assert [line.split()[0] for line in answer.out.splitlines()[1 : 1 + len(NAMES)]] == NAMES
    assert f"fix  sagewai-ops --home {home} verify-perms --fix" in answer.out
    assert answer.out.splitlines()[-1] == f"home {home}: not ready, 1 check failed"
    assert answer.err == ""


def _open_secret(home: Path) -> None:
    (home / "db/sagewai.db").chmod(0o644)


def _flat(home: Path) -> None:
    (home / "config/connections.json").rename(home / "connections.json")


def _root_database(home: Path) -> None:
    (home / "sagewai.db").touch(0o600)


def _refused_key(home: Path) -> None:
    (home / "secrets/master.key").chmod(0o640)


def _dangling(home: Path) -> None:
    change(home, "DELETE FROM user_account")


@pytest.mark.parametrize(
    ("spoil", "expected", "command"),
    [
        (_open_secret, {"permissions": "finding"}, "verify-perms --fix"),
        (_flat, {"layout": "finding", "permissions": "warning"}, "migrate-layout"),
        (_root_database, {"layout": "finding"}, "ls -l "),
        (_refused_key, {"permissions": "finding", "keys": "finding"}, "verify-perms --fix"),
        (_dangling, {"database": "finding", "snapshot": "finding", "drill": "finding"}, "db check"),
    ],
)
def test_what_can_be_repaired_is_a_finding(
    home: Path, spoil: Callable[[Path], None], expected: dict[str, str], command: str
) -> None:
    """Exit 4, and each line that failed contains the command."""
    spoil(home)

    answer, lines = fly(home, *([] if "drill" in expected else ["--no-snapshot"]))

    assert {name: verdict for name, verdict in verdicts(lines).items() if verdict != "skipped"} == (
        expected
    )
    assert answer.code == 4
    for name, verdict in expected.items():
        if verdict == "finding":
            assert lines[name]["mend"]
            assert lines[name]["details"]
            assert lines[name]["exit_code"] == 4
    assert any(command in line for each in lines.values() for line in each["mend"])


def test_the_commands_that_it_names_repair_it(home: Path) -> None:
    """Pasted one after the other, and the home is ready."""
    _open_secret(home)
    _flat(home)
    answer, _lines = fly(home, "--no-snapshot")
    assert answer.code == 4

    commands = {line for each in answer.result["checks"] for line in each["mend"]}
    for line in sorted(commands):
        assert call(*shlex.split(line)[1:], "-q").code in (0, 4)
    for path in home.glob(".sagewai-ops-permissions-*"):
        path.unlink()

    assert fly(home, "--no-snapshot")[0].result["ready"]


def _short_key(home: Path) -> None:
    (home / "secrets/master.key").write_bytes(b"x")


def _open_key_behind_a_link(home: Path) -> None:
    key = home / "secrets/master.key"
    key.chmod(0o640)
    key.rename(home / "data/key")
    key.symlink_to("../data/key")


@pytest.mark.parametrize(
    ("spoil", "variable", "remedy"),
    [
        (_refused_key, None, "verify-perms --fix"),
        (_open_key_behind_a_link, None, "chmod 600 {home}/data/key"),
        (_short_key, None, "install -m 0600 FILE {home}/secrets/master.key"),
        (lambda _home: None, "x" * 43, "unset SAGEWAI_MASTER_KEY"),
    ],
    ids=["open", "link", "short", "variable"],
)
def test_a_key_that_sagewai_would_replace_is_repaired_at_its_source(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    variable: str | None,
    remedy: str,
) -> None:
    """No mode repairs a variable; and no rotation is advised where the right key is available."""
    spoil(home)
    if variable:
        monkeypatch.setenv("SAGEWAI_MASTER_KEY", variable)

    _answer, lines = fly(home, "--no-snapshot")

    remedies = lines["keys"]["mend"]
    assert lines["keys"]["verdict"] in ("finding", "failed")
    assert any(remedy.format(home=home) in line for line in remedies), remedies
    assert not any("keys rotate" in line for line in remedies)


def test_values_of_another_key_are_brought_under_sagewais_by_the_command_named(
    home: Path, tmp_path: Path
) -> None:
    """It names a recipient to be filled in, and the key that opens them."""
    found = tmp_path / "found.key"
    found.write_bytes((home / "secrets/master.key").read_bytes())
    (home / "secrets/master.key").write_bytes(base64.urlsafe_b64encode(bytes(32)))

    _answer, lines = fly(home, "--no-snapshot", "--extra-key", found)

    (line,) = (each for each in lines["keys"]["mend"] if "keys rotate" in each)
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    words = shlex.split(line.replace("age1...", recipient), comments=True)
    assert call(*words[1:]).code == 0
    assert fly(home, "--no-snapshot")[1]["keys"]["verdict"] == "ok"


def test_a_document_that_is_no_json_is_named_by_its_path(home: Path) -> None:
    """The command to look at it can be pasted anywhere."""
    (home / "config/connections.json").write_text("{")

    _answer, lines = fly(home, "--no-snapshot")

    assert lines["keys"]["mend"] == [f"ls -l {home}/config/connections.json"]


def test_a_lost_key_is_the_hardest_failure_but_damage(home: Path) -> None:
    """Exit 12; the snapshot is taken anyway."""
    (home / "secrets/master.key").unlink()

    answer, lines = fly(home)

    assert answer.code == 12
    assert verdicts(lines) == {"keys": "failed", "snapshot": "unproved", "drill": "failed"}
    assert "--extra-key FILE" in lines["keys"]["mend"][0]
    assert lines["drill"]["exit_code"] == 12
    (line,) = lines["drill"]["mend"]
    assert shlex.split(line, comments=True)[:4] == ["sagewai-ops", "--home", str(home), "drill"]


def test_key_file_decrypts_what_the_home_cannot(home: Path, tmp_path: Path) -> None:
    """The drill proves it; that Sagewai has no such key stays a finding."""
    shutil.move(home / "secrets/master.key", tmp_path / "kept.key")

    _answer, lines = fly(home, "--extra-key", tmp_path / "kept.key")

    assert lines["keys"]["verdict"] == "finding"
    (line,) = lines["keys"]["mend"]
    subprocess.run(shlex.split(line), check=True)
    assert fly(home, "--no-snapshot")[1]["keys"]["verdict"] == "ok"


def test_damage_exits_16(home: Path) -> None:
    """Whatever else there is; what can still be reported is reported."""
    _open_secret(home)
    database = home / "db/sagewai.db"
    change(home, "PRAGMA journal_mode = DELETE")
    content = bytearray(database.read_bytes())
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'prompt_logs'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content[(page - 1) * size] ^= 0xFF
    database.write_bytes(content)

    answer, lines = fly(home)

    assert answer.code == 16
    assert lines["database"]["verdict"] == "failed"
    assert "restore latest --only db" in lines["database"]["mend"][0]
    assert lines["permissions"]["verdict"] == "finding"


def test_a_database_that_is_none_any_more_is_brought_back_by_the_command_named(home: Path) -> None:
    """Each line that meets it names the way back, and that leads there."""
    assert fly(home)[0].code == 0
    database = home / "db/sagewai.db"
    change(home, "PRAGMA journal_mode = DELETE")
    content = bytearray(database.read_bytes())
    content[0] ^= 1
    database.write_bytes(content)

    answer, lines = fly(home)

    assert answer.code == 16
    failed = {name for name, line in lines.items() if line["exit_code"] == 16}
    assert failed == {"keys", "database", "snapshot", "upgrade"}
    for name in failed:
        assert any("restore latest --only db" in line for line in lines[name]["mend"])
    assert call(*shlex.split(lines["keys"]["mend"][0])[1:]).code == 0
    assert fly(home, "--no-snapshot")[0].result["ready"]


def test_a_schema_ahead_exits_18(home: Path) -> None:
    """This program must not upgrade it."""
    change(home, "ALTER TABLE workers ADD COLUMN of_the_future TEXT")

    answer, lines = fly(home)

    assert answer.code == 18
    assert (lines["upgrade"]["verdict"], lines["upgrade"]["exit_code"]) == ("failed", 18)
    error = answer.document["error"]
    assert (error["code"], error["hint"]) == ("schema-ahead", lines["drill"]["mend"])
    assert error["message"] == lines["drill"]["summary"]
    assert error["message"].startswith("drill: database")


@pytest.mark.parametrize("words", [(), ("--no-snapshot",)])
def test_an_upgrade_is_rehearsed_with_a_drill_and_without(
    home: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """What it would add is reported; the home's database stays behind."""
    change(home, "DROP TABLE prompt_logs")
    before = (home / "db/sagewai.db").read_bytes()

    answer, lines = fly(home, *words, "--work-dir", tmp_path)

    assert lines["upgrade"]["verdict"] == "ok"
    assert "prompt_logs" in lines["upgrade"]["details"]
    assert "schema behind" in lines["database"]["summary"]
    assert answer.code == 0
    assert (home / "db/sagewai.db").read_bytes() == before
    assert os.listdir(home / "db") == ["sagewai.db"]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_drift_that_no_upgrade_repairs_is_a_warning(home: Path) -> None:
    """Known before, and no reason to stop; --strict makes it one."""
    change(home, "ALTER TABLE prompt_logs RENAME TO logs_before",
           "CREATE TABLE prompt_logs AS SELECT * FROM logs_before",
           "DROP TABLE logs_before")  # fmt: skip

    answer, lines = fly(home, "--no-snapshot")
    strict, _lines = fly(home, "--no-snapshot", "--strict")

    assert lines["database"]["verdict"] == "warning"
    assert any(line.startswith("drift: prompt_logs") for line in lines["database"]["details"])
    assert (answer.code, strict.code, strict.result["ready"]) == (0, 4, False)


def test_who_has_it_open_is_named(home: Path) -> None:
    """It is checked under a live server; it has to end before the upgrade."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE');"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, home / "db/sagewai.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        other.stdout.readline()

        answer, lines = fly(home)
        other.kill()

    assert verdicts(lines) == {"use": "warning"}
    assert any(str(other.pid) in line for line in lines["use"]["details"])
    assert lines["use"]["mend"] == [f"kill {other.pid}  # or stop its service"]
    assert answer.code == 0


def test_it_works_under_a_live_writer(home: Path) -> None:
    """Rows come all the while; the snapshot is of one moment and is proved."""
    with home_writer.start(home, seconds=60, files=False):
        answer, lines = fly(home)

    assert verdicts(lines) == {"use": "warning"}
    assert answer.result["proved_restorable_at"]


@pytest.mark.parametrize(("free", "verdict"), [(1000, "failed"), (12_000_000, "warning")])
def test_what_does_not_fit_is_not_tried(
    home: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str
) -> None:
    """Exit 13 where it cannot fit; where it may not, a warning."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 10**9 - free, free))

    answer, lines = fly(home, *(["--no-snapshot"] if verdict == "warning" else []))

    assert lines["space"]["verdict"] == verdict
    assert "df -h" in lines["space"]["mend"][0]
    if verdict == "failed":
        assert answer.code == 13
        assert (lines["snapshot"]["verdict"], lines["drill"]["verdict"]) == ("skipped", "skipped")
        assert not (home.parent / f"{home.name}.snapshots").exists()
    else:
        assert answer.code == 0


@pytest.mark.parametrize("method", ["recipient", "identity", "passphrase"])
def test_an_encrypted_snapshot_is_drilled_where_it_can_be_opened(
    home: Path, tmp_path: Path, method: str
) -> None:
    """An identity that is kept elsewhere is reported, with the command for there: exit 3."""
    identity = pyrage.x25519.Identity.generate()
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n" if method == "passphrase" else str(identity))
    words: list[object] = ["--recipient", str(identity.to_public()), "--key", "sealed"]
    if method == "passphrase":
        words = ["--passphrase-file", secret]
    if method == "identity":
        words += ["--identity", secret]

    answer, lines = fly(home, *words)

    assert answer.result["archive"].endswith(".age")
    if method == "recipient":
        assert (answer.code, verdicts(lines)) == (3, {"drill": "unproved"})
        assert "--identity FILE" in lines["drill"]["mend"][0]
        assert lines["upgrade"]["verdict"] == "ok"
    else:
        assert (answer.code, verdicts(lines)) == (0, {})


def test_only_an_authentic_snapshot_is_restored_on_request(home: Path) -> None:
    """Without a master key nothing shows which home wrote it."""
    assert fly(home, "--require-authentic")[0].code == 0
    (home / "secrets/master.key").unlink()

    refused, found = fly(home, "--require-authentic")

    assert (refused.code, found["drill"]["exit_code"]) == (16, 16)
    assert "not authenticated" in found["drill"]["summary"]


def test_a_key_that_would_go_into_a_clear_archive_is_refused_in_its_line(home: Path) -> None:
    """As by `backup`; the other lines are there."""
    answer, lines = fly(home, "--key", "sealed")

    assert answer.code == 2
    assert verdicts(lines) == {"snapshot": "failed", "drill": "skipped"}


def test_another_run_is_waited_for_and_then_reported(home: Path) -> None:
    """Exit 11 names it."""
    with locks.exclusive(home):
        answer, lines = fly(home, "--wait", "0")

    assert answer.code == 11
    assert f"pid {os.getpid()}" in lines["snapshot"]["summary"]


def test_an_interrupted_restore_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between old and new nothing else can be checked."""
    found = Pending("restore", home)
    monkeypatch.setattr(pending, "pending_operations", lambda *_: (found,))

    answer, lines = fly(home)

    assert answer.code == 11
    assert lines["layout"]["verdict"] == "failed"
    assert "recover" in lines["layout"]["mend"][0]


def test_an_interrupted_migration_is_a_finding(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recover` completes it."""
    monkeypatch.setattr(preflight, "pending_operations", lambda *_: (True,))

    _answer, lines = fly(home, "--no-snapshot")

    assert lines["layout"]["verdict"] == "finding"
    assert lines["layout"]["mend"] == [f"sagewai-ops --home {home} recover"]


def test_a_home_without_a_database_needs_one(home: Path) -> None:
    """Exit 10 and how to make it; the rest is checked."""
    shutil.rmtree(home / "db")

    answer, lines = fly(home)

    assert answer.code == 10
    assert lines["database"]["verdict"] == "failed"
    assert lines["database"]["mend"] == [f"sagewai-ops --home {home} init"]
    assert lines["upgrade"]["verdict"] == "skipped"
    assert lines["drill"]["verdict"] == "ok"


def test_no_home_is_no_table(tmp_path: Path) -> None:
    """There is nothing to check."""
    answer = call("--home", tmp_path / "none", "preflight", "--json")

    assert answer.code == 10
    assert answer.document["result"] is None


def test_what_the_system_refuses_is_a_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is named; the others go on."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(home / "config"))

    monkeypatch.setattr(preflight, "verify", refuse)

    answer, lines = fly(home, "--no-snapshot")

    assert answer.code == 14
    assert lines["permissions"]["verdict"] == "failed"
    assert str(home / "config") in lines["permissions"]["summary"]


def test_a_bug_is_no_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error is raised, not reported as a state of the home."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(preflight, "verify", fail)

    with pytest.raises(RuntimeError, match="a bug"):
        call("--home", home, "preflight", "--no-snapshot", "--json")


@pytest.mark.parametrize("place", ["create_snapshot", "drill", "rehearse_upgrade"])
def test_a_signal_ends_it_and_leaves_no_partials(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It is no line of the table; a snapshot that was taken whole stays."""
    monkeypatch.setattr(
        f"sagewai_ops.operations.preflight.{place}",
        lambda *_a, **_o: os.kill(os.getpid(), signal.SIGTERM),
    )
    words = ["--no-snapshot", "--work-dir", tmp_path] if place == "rehearse_upgrade" else []

    answer = call("--home", home, "preflight", *words, "--json")

    assert (answer.code, answer.document["error"]["code"]) == (143, "interrupted")
    left = [path.name for path in tmp_path.rglob(".*") if not path.is_relative_to(home)]
    assert left == []


def test_the_gravest_code_of_several_is_returned() -> None:
    """As documented: damage before keys, before space, before findings, before what is open."""

    def output(*codes: int, warning: bool = False, strict: bool = False) -> int:
        checks = [Check("x", Verdict.FAILED, "", exit_code=code) for code in codes]
        if warning:
            checks.append(Check("x", Verdict.WARNING, ""))
        return PreflightReport(Path(), tuple(checks), None, None, is_strict=strict).exit_code

    assert output(4, 12, 16, 13) == 16
    assert output(13, 4, 12) == 12
    assert output(3, 4) == 4
    assert output(4, 11) == 11
    assert output(0, 0, warning=True) == 0
    assert output(0, 3, warning=True, strict=True) == 4


def test_a_home_whose_tables_are_on_a_server(
    home: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database is checked, drilled on a private server, and its upgrade rehearsed."""
    name = postgres.at("019_fleet_tasks")
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", postgres.url(name))
    answer, lines = fly(home)
    postgres.drop(name)
    _gone, without = fly(home, "--no-snapshot")

    assert (answer.code, verdicts(lines)) == (0, {})
    assert lines["upgrade"]["summary"].startswith("1 revisions to 020")
    assert lines["use"]["summary"] == "not in use"
    assert ", on PostgreSQL " in lines["drill"]["summary"]
    assert answer.result["proved_restorable_at"]
    assert without["database"]["verdict"] == without["upgrade"]["verdict"] == "failed"
    assert without["keys"]["mend"] == [f"sagewai-ops --home {home} db check"]


def test_a_database_outside_of_the_home_counts_for_the_space(home: Path, tmp_path: Path) -> None:
    """A snapshot contains it as well."""
    options = PreflightOptions({}, tmp_path, BackupOptions())
    inside = preflight.check_space(locate(home, {}), options, tmp_path)
    elsewhere = tmp_path / "elsewhere.db"
    shutil.move(home / "db/sagewai.db", elsewhere)
    moved = locate(home, {"SAGEWAI_DATABASE_URL": f"sqlite:///{elsewhere}"})

    outside = preflight.check_space(moved, options, tmp_path)

    assert outside.summary == inside.summary
    assert outside.verdict is Verdict.OK
