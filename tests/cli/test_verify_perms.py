"""The command `verify-perms`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import program
from home_builder import build_home
from private_home import KEY, make_private_home, tree_of
from sagewai_ops.permissions.rules import RULES
from unprivileged import NO_USER, reachable_directory, unprivileged

DATABASE = "db/sagewai.db"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A private home under private directories."""
    (tmp_path / "above").mkdir(mode=0o755)
    return make_private_home(tmp_path / "above" / "home")


def verify(home: Path, *words: object) -> program.Answer:
    """Call the command in this process."""
    return program.call("--home", home, "verify-perms", *words)


def rules_of(answer: program.Answer) -> list[str]:
    """Return the ids of the rules in a JSON result."""
    return [finding["rule"] for finding in answer.result["findings"]]


def mode(path: Path) -> int:
    """Return the permission bits."""
    return path.stat().st_mode & 0o7777


def test_private_home_prints_nothing(home: Path) -> None:
    """Under cron a home without findings causes no mail."""
    assert verify(home) == program.Answer(0, "", "")


def test_strict_counts_warnings(home: Path) -> None:
    """A warning alone exits 0, with --strict 4, and is shown either way."""
    (home / "sessions").chmod(0o755)

    lax, strict = verify(home), verify(home, "--strict")

    assert (lax.code, strict.code) == (0, 4)
    assert "P027" in lax.out
    assert "0 errors, 1 warnings" in strict.out


def test_error_exits_with_findings(home: Path) -> None:
    """An error exits 4, in the table with rule, path and problem."""
    (home / DATABASE).chmod(0o644)

    answer = verify(home)

    assert answer.code == 4
    assert answer.err == ""
    assert f"error     P010  {home}/{DATABASE}" in answer.out
    assert "mode 0644, accessible to others" in answer.out
    assert "sagewai-ops verify-perms --fix" in answer.out


def test_json_has_findings_and_plan(home: Path) -> None:
    """The JSON has each finding and the change that repairs it."""
    (home / DATABASE).chmod(0o644)

    answer = verify(home, "--json")

    assert answer.document["status"] == "findings"
    assert answer.result["errors"] == 1
    assert answer.result["findings"] == [
        {
            "rule": "P010",
            "severity": "error",
            "path": str(home / DATABASE),
            "wrong": "mode 0644, accessible to others",
            "protects": "it contains credentials, prompts and hashes in plaintext",
            "advice": "",
        }
    ]
    assert answer.result["changes"] == [
        {
            "root": "home",
            "path": DATABASE,
            "rules": ["P010"],
            "change": "mode 0644 -> 0600",
        }
    ]


def test_dry_run_plans_what_fix_does(home: Path) -> None:
    """The same changes in the same order; the dry run writes nothing."""
    for path, wrong in ((DATABASE, 0o666), ("secrets", 0o755), ("data/artifacts", 0o777)):
        (home / path).chmod(wrong)
    before = tree_of(home)

    planned = verify(home, "--fix", "--dry-run", "--json")
    assert tree_of(home) == before
    done = verify(home, "--fix", "--json")

    assert planned.result["changes"] == done.result["changes"]
    assert (planned.code, done.code) == (4, 0)
    assert [mode(home / path) for path in (DATABASE, "secrets", "data/artifacts")] == [
        0o600,
        0o700,
        0o755,
    ]


def test_fix_is_done_once(home: Path) -> None:
    """A second run has nothing to do, writes no record and is silent."""
    (home / DATABASE).chmod(0o644)
    verify(home, "--fix")
    records = sorted(home.glob(".sagewai-ops-permissions-2*"))

    assert verify(home, "--fix") == program.Answer(0, "", "")
    assert sorted(home.glob(".sagewai-ops-permissions-2*")) == records


def test_undo_restores_everything(home: Path) -> None:
    """The printed command restores the modes, and removes the record."""
    (home / DATABASE).chmod(0o644)
    (home / "config").chmod(0o777)
    before = tree_of(home)
    record = verify(home, "--fix", "--json").result["record"]

    answer = verify(home, "--undo", record, "--json")

    assert answer.code == 0
    assert len(answer.result["changes"]) == 2
    assert tree_of(home) == before


def test_undo_of_changed_entries_is_incomplete(home: Path) -> None:
    """Entries that changed after the repair are named, with exit 3."""
    (home / DATABASE).chmod(0o644)
    record = verify(home, "--fix", "--json").result["record"]
    (home / DATABASE).chmod(0o640)

    answer = verify(home, "--undo", record)

    assert answer.code == 3
    assert f"unchanged  {DATABASE}: changed by another process" in answer.out


def test_undo_excludes_other_options(home: Path) -> None:
    """It cannot be combined with a repair."""
    assert verify(home, "--undo", "x", "--fix").code == 2
    assert verify(home, "--undo", "missing").code == 10


def test_sarif_follows_the_standard(home: Path) -> None:
    """SARIF 2.1.0: a version, one run, all rules, and results that point at a rule and a file."""
    (home / "fleet" / "wörker b.json").write_bytes(b"{}")
    (home / "fleet" / "wörker b.json").chmod(0o644)
    (home / "sessions").chmod(0o755)

    answer = verify(home, "--format", "sarif")

    log: dict[str, Any] = json.loads(answer.out)
    assert answer.code == 4
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    run = log["runs"][0]
    driver = run["tool"]["driver"]
    assert [rule["id"] for rule in driver["rules"]] == [rule.id for rule in RULES]
    assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
    assert run["originalUriBaseIds"]["HOME"]["uri"] == f"file://{home}/"
    worker, sessions = run["results"]
    assert (worker["ruleId"], worker["level"]) == ("P009", "error")
    assert driver["rules"][worker["ruleIndex"]]["id"] == "P009"
    assert worker["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "fleet/w%C3%B6rker%20b.json", "uriBaseId": "HOME"}
            }
        }
    ]
    assert (sessions["ruleId"], sessions["level"]) == ("P027", "warning")
    assert set(worker) == {"ruleId", "ruleIndex", "level", "message", "locations"}


def test_sarif_has_absolute_paths_outside_the_home(home: Path) -> None:
    """The snapshot directory is not below the home."""
    home.with_name("home.snapshots").chmod(0o755)

    log = json.loads(verify(home, "--format", "sarif").out)

    uri = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert uri == {"uri": f"file://{home}.snapshots"}


def test_sarif_is_not_json(home: Path) -> None:
    """One output at a time."""
    assert verify(home, "--format", "sarif", "--json").code == 2


def test_names_of_strangers_stay_one_line(home: Path) -> None:
    """A newline in a name cannot forge a row, and bytes that are not UTF-8 do not stop it."""
    odd = os.fsencode(home) + b"/fleet/a\nerror\xff.json"
    descriptor = os.open(odd, os.O_CREAT | os.O_WRONLY, 0o644)
    os.fchmod(descriptor, 0o644)
    os.close(descriptor)

    shown, parsed, sarif = verify(home), verify(home, "--json"), verify(home, "--format", "sarif")

    assert "a\\nerror\\xff.json" in shown.out
    assert rules_of(parsed) == ["P009"]
    assert "a%0Aerror%FF.json" in sarif.out
    assert verify(home, "--fix").code == 0


def test_many_findings_of_a_rule_are_counted(home: Path) -> None:
    """People see ten of a rule and the number of the rest; JSON has all."""
    for number in range(25):
        (home / "data" / f"{number}.txt").write_bytes(b"")
        (home / "data" / f"{number}.txt").chmod(0o666)

    assert "P021: 15 more" in verify(home).out
    assert rules_of(verify(home, "--json")) == ["P021"] * 25


def test_key_that_would_be_replaced_comes_first(home: Path) -> None:
    """The first row of the table is about the key."""
    for path in (DATABASE, "secrets", "secrets/master.key"):
        (home / path).chmod(0o755)

    first = verify(home).out.splitlines()[1]

    assert first.startswith("error     P001")
    assert first.endswith("Sagewai would replace it with a new key")


def test_refused_key_of_a_variable_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With correct modes too: at its next start Sagewai would replace the file."""
    monkeypatch.setenv("SAGEWAI_MASTER_KEY", f"{KEY.decode()}\n")

    answer = verify(home, "--fix")

    assert answer.code == 4
    assert "P032" in answer.out.splitlines()[1]
    assert "blanks around the key" in answer.out
    assert KEY.decode() not in answer.out
    assert (home / "secrets/master.key").read_bytes() == KEY


def test_short_key_is_left_to_a_person(home: Path) -> None:
    """No mode repairs an invalid key: --fix prints the advice and exits 4."""
    (home / "secrets/master.key").write_bytes(b"short")

    answer = verify(home, "--fix")

    assert answer.code == 4
    assert "by hand  P002: put the right key there" in answer.out
    assert (home / "secrets/master.key").read_bytes() == b"short"


def test_home_that_sagewai_wrote_is_repaired(tmp_path: Path) -> None:
    """Its usual modes are found, repaired, and nothing of the content changes."""
    built = build_home(tmp_path / "home", links_out=True, undecodable_names=True)
    before = {name: facts[3] for name, facts in tree_of(built.root).items()}

    found = verify(built.root, "--json")
    fixed = verify(built.root, "--fix", "--json")

    assert {"P010", "P026", "P027"} <= set(rules_of(found))
    assert (found.code, fixed.code, rules_of(fixed)) == (4, 0, [])
    after = {name: facts[3] for name, facts in tree_of(built.root).items()}
    after.pop(str(Path(fixed.result["record"]).relative_to(built.root)))
    assert after == before


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("is_root", [True, False])
def test_fix_works_for_any_user_and_umask(umask: int, *, is_root: bool) -> None:
    """As root and as user nobody, the record is private and everything is fixed."""
    with reachable_directory() as directory:
        directory.chmod(0o755)
        home = make_private_home(directory / "home")
        verify(home)  # loads modules that the other user cannot load
        (home / "secrets/master.key").chmod(0o644)
        if not is_root:
            change_owner(directory)
        before = os.umask(umask)
        try:
            with contextlib.nullcontext() if is_root else unprivileged():
                found, fixed = verify(home, "--json"), verify(home, "--fix", "--json")
        finally:
            os.umask(before)

        assert rules_of(found) == ["P001"]
        assert rules_of(fixed) == []
        assert mode(home / "secrets/master.key") == 0o600
        assert mode(Path(fixed.result["record"])) == 0o600


def test_read_only_home_is_checked_and_not_fixed() -> None:
    """A read-only home can be verified; --fix exits 14."""
    with reachable_directory() as directory:
        directory.chmod(0o755)
        home = make_private_home(directory / "home")
        verify(home)
        (home / DATABASE).chmod(0o644)
        home.chmod(0o500)
        change_owner(directory)

        with unprivileged():
            checked, fixed = verify(home), verify(home, "--fix")

        assert (checked.code, fixed.code) == (4, 14)
        assert mode(home / DATABASE) == 0o644


def change_owner(directory: Path) -> None:
    """Change the owner of everything in a directory, if the test runs as root."""
    if not os.getuid():
        for path in directory.rglob("*"):
            os.chown(path, NO_USER, NO_USER)


def test_missing_home_is_not_found(tmp_path: Path) -> None:
    """Exit 10, in two lines."""
    answer = verify(tmp_path / "missing")

    assert answer.code == 10
    assert answer.err.startswith("sagewai-ops: error: home ")


def test_snapshot_directory_can_be_named(home: Path, tmp_path: Path) -> None:
    """--snapshots replaces the default snapshot directory."""
    other = tmp_path / "other"
    shutil.copytree(home.with_name("home.snapshots"), other)
    other.chmod(0o750)

    answer = verify(home, "--snapshots", other, "--json")

    assert rules_of(answer) == ["P023"]
    assert verify(home, "--snapshots", other, "--fix").code == 0
    assert mode(other) == 0o700


def test_every_rule_is_documented() -> None:
    """docs/permissions.md has a row for each rule, with its severity."""
    manual = Path(__file__).parents[2] / "docs" / "permissions.md"
    text = manual.read_text(encoding="utf-8")

    assert [rule.id for rule in RULES if f"| {rule.id} | {rule.severity.value} |" not in text] == []
