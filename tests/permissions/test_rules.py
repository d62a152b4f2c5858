"""Every rule about permissions: observed, violated, repaired, and the repair undone."""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from private_home import ACCESS_LIST, DEFAULT_LIST, KEY, access_list, make_private_home, tree_of
from sagewai_ops.errors import (
    LockedError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    UsageError,
)
from sagewai_ops.fs.locks import exclusive
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.permissions import evaluator
from sagewai_ops.permissions.entry_kinds import (
    EntryKind,
    EntryState,
    Facts,
    directory_kind,
    file_kind,
)
from sagewai_ops.permissions.findings import Finding, Inspection
from sagewai_ops.permissions.modes import directory_mode, file_mode
from sagewai_ops.permissions.repair import apply_repairs, plan_repairs, undo_repairs
from sagewai_ops.permissions.rules import RULES, RULES_BY_KIND, Severity
from sagewai_ops.permissions.scan import inspect
from sagewai_ops.permissions.verify import verify
from step_counter import killed_at, until_done
from unprivileged import NO_USER, reachable_directory, unprivileged

STRANGER = 12345
is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="changes owners")


def copy_to(directory: str, name: str) -> Callable[[Path], None]:
    """Create a copy that others can read, as operators do before they change something."""

    def break_rule(root: Path) -> None:
        (root / directory).mkdir(mode=0o700)
        write(f"{directory}/{name}", b"{}", 0o644)(root)

    return break_rule


@dataclass(frozen=True, slots=True)
class Case:
    """A violation of a rule.

    Attributes:
        break_rule: Violates it in a home.
        path: Of the entry that then violates it, relative to the home.
        is_repaired: Whether --fix repairs it.
    """

    rule: str
    path: str
    break_rule: Callable[[Path], object]
    is_repaired: bool = True


def chmod(path: str, mode: int) -> Callable[[Path], None]:
    """Set the mode of an entry."""
    return lambda root: (root / path).chmod(mode)


def write(path: str, content: bytes, mode: int = 0o600) -> Callable[[Path], None]:
    """Write a file."""

    def break_rule(root: Path) -> None:
        (root / path).write_bytes(content)
        (root / path).chmod(mode)

    return break_rule


def link(path: str, target: str, mode: int | None = None) -> Callable[[Path], None]:
    """Replace a file by a link; with a mode, to a file that has it."""

    def break_rule(root: Path) -> None:
        (root / path).unlink()
        (root / path).symlink_to(target)
        if mode is not None:
            ((root / path).parent / target).write_bytes(b"{}")
            ((root / path).parent / target).chmod(mode)

    return break_rule


def grant(path: str, attribute: str, permissions: int = 4) -> Callable[[Path], None]:
    """Allow another user access by an access list."""

    def break_rule(root: Path) -> None:
        try:
            os.setxattr(root / path, attribute, access_list(STRANGER, permissions))
        except (OSError, AttributeError) as error:
            pytest.skip(f"no access lists here: {error}")

    return break_rule


def make_directory(path: str) -> Callable[[Path], None]:
    """Replace a file by a directory."""

    def break_rule(root: Path) -> None:
        (root / path).unlink()
        (root / path).mkdir(mode=0o700)

    return break_rule


# CAP_NET_BIND_SERVICE, permitted and effective: `struct vfs_cap_data`, revision 2.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
CASES = (
    Case("P001", "secrets/master.key", chmod("secrets/master.key", 0o644)),
    Case("P001", "secrets/master.key", chmod("secrets/master.key", 0o640)),
    Case("P001", "secrets/master.key", chmod("secrets/master.key", 0o200)),
    Case("P001", "master.key", write("master.key", b"k" * 44, 0o604)),
    Case("P002", "secrets/master.key", write("secrets/master.key", b""), is_repaired=False),
    Case("P002", "secrets/master.key", write("secrets/master.key", b"k" * 43), is_repaired=False),
    Case("P002", "secrets/master.key", make_directory("secrets/master.key"), is_repaired=False),
    Case("P002", "secrets/master.key", link("secrets/master.key", "gone"), is_repaired=False),
    Case("P004", "secrets", chmod("secrets", 0o750)),
    Case("P004", "secrets/sops", chmod("secrets/sops", 0o755)),
    Case("P005", ".", chmod(".", 0o777)),
    Case("P005", "config", chmod("config", 0o775)),
    Case("P005", "db", chmod("db", 0o1777)),
    Case("P006", "config/connections.json", chmod("config/connections.json", 0o644)),
    Case("P006", "secrets/profiles.json", chmod("secrets/profiles.json", 0o660)),
    Case("P006", "secrets/sops/team.enc.yaml", chmod("secrets/sops/team.enc.yaml", 0o644)),
    Case("P007", "kept/master.key", copy_to("kept", "master.key")),
    Case("P007", "config/old/profiles.json", copy_to("config/old", "profiles.json")),
    Case("P007", "db/copies/sagewai.db", copy_to("db/copies", "sagewai.db")),
    Case(
        "P007",
        "config/admin-state.json.bak-v0-20260228T235959_123456-a1b2c3",
        chmod("config/admin-state.json.bak-v0-20260228T235959_123456-a1b2c3", 0o644),
    ),
    Case("P008", "config/tmpab12cd_x.tmp", chmod("config/tmpab12cd_x.tmp", 0o644)),
    Case("P009", "fleet/worker-a.json", chmod("fleet/worker-a.json", 0o644)),
    Case("P010", "db/sagewai.db", chmod("db/sagewai.db", 0o644)),
    Case("P010", "db/sagewai.db-wal", chmod("db/sagewai.db-wal", 0o644)),
    Case("P010", "sagewai.db", write("sagewai.db", b"", 0o644)),
    Case("P011", "profiles.json", write("profiles.json", b"{}", 0o644)),
    Case("P012", "profiles.json", write("profiles.json", b"{}"), is_repaired=False),
    Case("P013", "config/admin-state.json", grant("config/admin-state.json", ACCESS_LIST)),
    Case("P013", "secrets", grant("secrets", ACCESS_LIST, 7)),
    Case("P014", "config", grant("config", DEFAULT_LIST)),
    Case(
        "P016",
        "secrets/profiles.json",
        lambda root: os.link(root / "secrets/profiles.json", root / "data/other-name"),
        is_repaired=False,
    ),
    Case(
        "P017",
        "config/connections.json",
        link("config/connections.json", "../data/elsewhere.json", 0o644),
        is_repaired=False,
    ),
    Case(
        "P018",
        "config/connections.json",
        link("config/connections.json", "x"),
        is_repaired=False,
    ),
    Case("P019", "..", chmod("..", 0o777), is_repaired=False),
    Case("P021", "data/artifacts/report.md", chmod("data/artifacts/report.md", 0o666)),
    Case("P021", "data/artifacts", chmod("data/artifacts", 0o770)),
    Case("P022", "data/artifacts/report.md", chmod("data/artifacts/report.md", 0o4755)),
    Case("P023", "../home.snapshots", chmod("../home.snapshots", 0o755)),
    Case(
        "P024",
        "../home.snapshots/sagewai-20261123T213436Z-abc123.tar.zst",
        chmod("../home.snapshots/sagewai-20261123T213436Z-abc123.tar.zst", 0o640),
    ),
    Case(
        "P025",
        ".sagewai-ops-permissions-19990101T000000000000Z.json",
        chmod(".sagewai-ops-permissions-19990101T000000000000Z.json", 0o644),
    ),
    Case("P026", "config/admin-state.json.lock", chmod("config/admin-state.json.lock", 0o644)),
    Case("P027", "sessions", chmod("sessions", 0o755)),
    Case("P030", "fleet/worker-b.json", lambda root: os.mkfifo(root / "fleet/worker-b.json", 0o600),
         is_repaired=False),
    Case("P033", "db/.sagewai.db-litestream",
         lambda root: (root / "db/.sagewai.db-litestream").mkdir(mode=0o755)),
)  # fmt: skip
OWNERS = (
    Case(
        "P003",
        "config/admin-state.json",
        lambda root: assign_to_another(root / "config/admin-state.json"),
    ),
    Case("P003", "secrets", lambda root: assign_to_another(root / "secrets")),
    Case("P020", "..", lambda root: assign_to_another(root.parent), is_repaired=False),
    Case(
        "P028",
        "data/artifacts/report.md",
        lambda root: assign_to_another(root / "data/artifacts/report.md"),
    ),
)


def assign_to_another(path: Path) -> None:
    """Set a stranger as the owner of a file."""
    os.chown(path, STRANGER, STRANGER)


def _name(case: Case) -> str:
    return f"{case.rule}-{case.path}"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A private home at `<tmp>/above/home`."""
    (tmp_path / "above").mkdir(mode=0o755)
    return locate(make_private_home(tmp_path / "above" / "home"), {})


@pytest.fixture
def nobodys_home() -> Iterator[Home]:
    """The same, of an unprivileged user where the test runs as root."""
    with reachable_directory() as directory, unprivileged():
        (directory / "above").mkdir(mode=0o755)
        home = locate(make_private_home(directory / "above" / "home"), {})
        yield home
        for path, _, _ in os.walk(directory / "above"):
            Path(path).chmod(0o700)


def check(home: Home) -> Inspection:
    """Inspect a home with its snapshots."""
    return inspect(home, home.snapshots)


def found(seen: Inspection, case: Case) -> list[Finding]:
    """Return the findings of a case."""
    wanted = os.path.normpath(seen.home / case.path)
    return [
        finding
        for finding in seen.findings
        if finding.rule.id == case.rule and os.fspath(finding.path) == wanted
    ]


def repair(home: Home) -> Path | None:
    """Repair a home and return the undo record."""
    seen = check(home)
    repaired = apply_repairs(home, seen, plan_repairs(seen))
    assert repaired.left == ()
    return repaired.record


def home_findings(seen: Inspection) -> list[str]:
    """Return the findings without those about directories above the home, which vary."""
    return [
        f"{finding.rule.id} {finding.path}"
        for finding in seen.findings
        if finding.facts.kind is not EntryKind.PARENT
    ]


def test_every_rule_is_tested_here() -> None:
    """No rule goes without a case; those that need odd file systems have a test of their own."""
    tested = {case.rule for case in (*CASES, *OWNERS)}

    assert tested | {"P015", "P029", "P031", "P032"} == {rule.id for rule in RULES}
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_private_home_violates_nothing(home: Home) -> None:
    """A home with the modes of the table has no finding, and nothing to repair."""
    seen = check(home)

    assert home_findings(seen) == []
    assert plan_repairs(seen) == ()
    assert seen.entries > len(list(home.root.rglob("*"))) - 1


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_violated_rule_is_found_repaired_and_undone(home: Home, case: Case) -> None:
    """One finding where it is violated, none after the repair, and the old state after the undo."""
    case.break_rule(home.root)
    try:
        before = tree_of(home.root.parent)
    except PermissionError:
        assert os.getuid()
        pytest.skip("only root can compare what its owner may not read")

    seen = check(home)
    assert len(found(seen, case)) == 1
    record = repair(home)
    assert (found(check(home), case) == []) is case.is_repaired
    if record:
        assert undo_repairs(home, record).left == ()

    assert tree_of(home.root.parent) == before


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_violated_rule_is_found_and_repaired_without_root(nobodys_home: Home, case: Case) -> None:
    """Users need no root privileges for their own homes."""
    case.break_rule(nobodys_home.root)

    assert len(found(check(nobodys_home), case)) == 1
    repair(nobodys_home)
    assert (found(check(nobodys_home), case) == []) is case.is_repaired


@needs_root
@pytest.mark.parametrize("case", OWNERS, ids=_name)
def test_other_owner_is_found_and_repaired_by_root(home: Home, case: Case) -> None:
    """A stranger's entry is found; root repairs it, except above the home."""
    case.break_rule(home.root)
    before = tree_of(home.root.parent)

    assert len(found(check(home), case)) == 1
    record = repair(home)
    assert (found(check(home), case) == []) is case.is_repaired
    if record:
        undo_repairs(home, record)

    assert tree_of(home.root.parent) == before


@needs_root
def test_other_owner_is_left_to_root(nobodys_home: Home) -> None:
    """Without root the owner is found and not touched."""
    with _as_root():
        os.chown(nobodys_home.root / "config/admin-state.json", 0, 0)

    case = Case("P003", "config/admin-state.json", lambda _root: None)
    assert len(found(check(nobodys_home), case)) == 1
    assert plan_repairs(check(nobodys_home)) == ()


@needs_root
def test_names_of_artifacts_do_not_matter(home: Home) -> None:
    """An agent's file may have a document's name."""
    copy_to("data/run", "profiles.json")(home.root)

    assert home_findings(check(home)) == []


def test_files_of_sandboxes_may_have_any_owner(home: Home) -> None:
    """Containers leave files of their own users in data/workers; that is no finding."""
    assign_to_another(home.root / "data/workers/host:1/runs/a/out.log")
    assign_to_another(home.root / "data/workers/host:1")

    assert home_findings(check(home)) == []


@needs_root
def test_root_checks_a_home_by_its_owner(home: Home) -> None:
    """Everything in another user's home should belong to that user, not to root."""
    for path in [home.root, *home.root.rglob("*")]:
        os.chown(path, STRANGER, STRANGER)
    os.chown(home.root / "secrets/master.key", 0, 0)

    assert home_findings(check(home)) == [f"P003 {home.root}/secrets/master.key"]


def test_directory_that_cannot_be_listed_is_named(nobodys_home: Home) -> None:
    """An unchecked directory is a finding, and the rest is checked."""
    (nobodys_home.root / "data").chmod(0o000)
    (nobodys_home.root / "db/sagewai.db").chmod(0o644)

    seen = check(nobodys_home)

    assert home_findings(seen) == [
        f"P010 {nobodys_home.root}/db/sagewai.db",
        f"P029 {nobodys_home.root}/data",
    ]
    assert (
        "cannot be listed"
        in {finding.rule.id: finding for finding in seen.findings}["P029"].message
    )


@needs_root
def test_snapshots_that_cannot_be_listed_are_named(nobodys_home: Home) -> None:
    """They belong to another user; the home is still checked."""
    with _as_root():
        os.chown(nobodys_home.snapshots, 0, 0)
    (nobodys_home.root / "db/sagewai.db").chmod(0o644)

    seen = check(nobodys_home)

    assert home_findings(seen) == [
        f"P010 {nobodys_home.root}/db/sagewai.db",
        f"P029 {nobodys_home.snapshots}",
    ]


@needs_root
@pytest.mark.parametrize("path", ["data/artifacts/report.md", "data/workers/tool", "secrets/x"])
def test_programs_with_capabilities_are_named(home: Home, path: str) -> None:
    """Also in a sandbox's directory; without an x bit no user can run it."""
    program = home.root / path
    program.parent.mkdir(exist_ok=True)
    program.write_bytes(b"#!/bin/sh\n")
    program.chmod(0o700)
    try:
        os.setxattr(program, "security.capability", CAPABILITY)
    except (OSError, AttributeError) as error:
        pytest.skip(f"no capabilities here: {error}")

    assert [line for line in home_findings(check(home)) if "P031" in line] == [f"P031 {program}"]
    program.chmod(0o600)
    assert [line for line in home_findings(check(home)) if "P031" in line] == []


def test_lists_of_other_kinds_are_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with lists that are not checked is one finding."""
    monkeypatch.setattr(
        evaluator, "attribute_names", lambda _descriptor, _name: ["user.x", "system.nfs4_acl"]
    )

    assert home_findings(check(home)) == [f"P015 {home.root}"]


def test_key_that_sagewai_would_overwrite_comes_first(home: Home) -> None:
    """Trap T1 is the first finding, whatever else is wrong, with its effect."""
    for path in ("config/admin-state.json", "db/sagewai.db", "secrets/master.key"):
        (home.root / path).chmod(0o644)
    (home.root / "secrets").chmod(0o755)

    first = check(home).findings[0]

    assert first.rule.id == "P001"
    assert first.message == (
        "mode 0644, accessible to others; Sagewai would replace it with a new key"
    )


def test_errors_come_before_warnings(home: Home) -> None:
    """The order is the key, errors, warnings."""
    (home.root / "sessions").chmod(0o755)
    (home.root / "db/sagewai.db").chmod(0o644)

    severities = [finding.rule.severity for finding in check(home).findings]

    assert severities == [Severity.ERROR, Severity.WARNING]


def test_whitespace_around_a_key_does_not_count(home: Home) -> None:
    """Sagewai strips the file, so a newline that an editor added is no finding."""
    key = home.root / "secrets/master.key"
    key.write_bytes(b" " + key.read_bytes() + b"\n")

    assert home_findings(check(home)) == []


def test_link_to_a_private_key_is_fine(home: Home) -> None:
    """A key may be a link to a private file; the target is checked."""
    key = home.root / "secrets/master.key"
    key.rename(home.root / "secrets/real.key")
    key.symlink_to("real.key")

    assert home_findings(check(home)) == []
    (home.root / "secrets/real.key").write_bytes(b"short")
    assert home_findings(check(home)) == [f"P002 {key}"]


def test_target_of_a_directory_link_is_checked_and_not_changed(home: Home) -> None:
    """Where config/ is a link out of the home, its target is checked but not repaired."""
    outside = home.root.parent / "outside"
    (home.root / "config").rename(outside)
    (home.root / "config").symlink_to(outside)
    (outside / "admin-state.json").chmod(0o644)

    seen = check(home)

    assert home_findings(seen) == [f"P006 {outside}/admin-state.json"]
    assert plan_repairs(seen) == ()


def test_target_of_a_directory_link_in_the_home_is_checked(home: Home) -> None:
    """A link to another directory in the home does not hide its content."""
    (home.root / "config").rename(home.root / "data/config")
    (home.root / "config").symlink_to("data/config")
    (home.root / "data/config/admin-state.json").chmod(0o644)

    assert home_findings(check(home)) == [f"P006 {home.root}/data/config/admin-state.json"]


def test_loop_of_links_ends(home: Home) -> None:
    """Directories of secrets may lead to one another."""
    outside = home.root.parent / "outside"
    (home.root / "secrets/sops").rename(outside)
    (home.root / "secrets/sops").symlink_to(outside)
    (outside / "again").symlink_to(outside)
    (outside / "up").symlink_to(home.root / "secrets")

    assert home_findings(check(home)) == []


def test_accessible_key_behind_a_link_comes_first(home: Home) -> None:
    """Sagewai checks the mode of the target."""
    outside = home.root.parent / "outside.key"
    (home.root / "secrets/master.key").rename(outside)
    (home.root / "secrets/master.key").symlink_to(outside)
    outside.chmod(0o644)
    (home.root / "db/sagewai.db").chmod(0o644)

    first = check(home).findings[0]

    assert (first.rule.id, first.repaired) == ("P017", None)
    assert first.message.endswith("Sagewai would replace it with a new key")


@needs_root
def test_record_of_root_in_a_home_is_no_finding(home: Home) -> None:
    """Root repairs another user's home and owns the record; then there is no finding."""
    for path in [home.root, *home.root.rglob("*")]:
        os.chown(path, STRANGER, STRANGER)
    (home.root / "db/sagewai.db").chmod(0o644)

    record = repair(home)

    assert record is not None
    assert record.stat().st_uid == 0
    assert home_findings(check(home)) == []


def test_document_of_an_override_is_checked(home: Home, tmp_path: Path) -> None:
    """Overrides lead out of the home: their files and directories are checked, not changed."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    outside.chmod(0o777)
    for name in ("state.json", "sagewai.db", "sagewai.db-wal"):
        (outside / name).write_bytes(b"")
        (outside / name).chmod(0o644)
    moved = locate(
        home.root,
        {
            "SAGEWAI_ADMIN_STATE_FILE": str(outside / "state.json"),
            "SAGEWAI_DATABASE_URL": f"sqlite:///{outside}/sagewai.db",
        },
    )

    seen = check(moved)

    assert sorted({*home_findings(seen)}) == [
        f"P005 {outside}",
        f"P006 {outside}/state.json",
        f"P010 {outside}/sagewai.db",
        f"P010 {outside}/sagewai.db-wal",
    ]
    assert plan_repairs(seen) == ()


def test_document_of_an_override_in_the_home_is_checked(home: Home) -> None:
    """An override may also name another path in the home, where it can be repaired."""
    (home.root / "data/state").write_bytes(b"{}")
    (home.root / "data/state").chmod(0o644)
    moved = locate(home.root, {"SAGEWAI_ADMIN_STATE_FILE": str(home.root / "data/state")})

    assert home_findings(check(moved)) == [f"P006 {home.root}/data/state"]
    repair(moved)
    assert home_findings(check(moved)) == []


def test_copies_of_the_document_of_an_override_are_checked(home: Home, tmp_path: Path) -> None:
    """They begin with its name; other files of that directory do not belong to the home."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    for name in ("s.json", "s.json.lock", "s.json.bak-v0-x", ".s.json.ab12cd34.partial", "others"):
        (outside / name).write_bytes(b"{}")
        (outside / name).chmod(0o644)
    (outside / "s.json.bak-v1-x").symlink_to("nowhere")
    moved = locate(home.root, {"SAGEWAI_ADMIN_STATE_FILE": str(outside / "s.json")})

    assert sorted(home_findings(check(moved))) == [
        f"P006 {outside}/s.json",
        f"P007 {outside}/s.json.bak-v0-x",
        f"P008 {outside}/.s.json.ab12cd34.partial",
        f"P026 {outside}/s.json.lock",
    ]


def test_directories_above_the_document_of_an_override_are_checked(
    home: Home, tmp_path: Path
) -> None:
    """A user who can write to one of them can replace the document."""
    outside = tmp_path / "open/outside"
    outside.mkdir(parents=True, mode=0o700)
    outside.parent.chmod(0o777)
    (outside / "s.json").touch(0o600)
    moved = locate(
        home.root,
        {
            "SAGEWAI_ADMIN_STATE_FILE": str(outside / "s.json"),
            "SAGEWAI_CONNECTIONS_FILE": str(outside / "c.json"),
        },
    )

    found = [f"{finding.rule.id} {finding.path}" for finding in check(moved).findings]

    assert found.count(f"P019 {outside.parent}") == 1


@needs_root
def test_directory_of_moved_documents_that_cannot_be_listed_is_named() -> None:
    """Its content is not checked."""
    with reachable_directory() as directory:
        (directory / "closed").mkdir()
        (directory / "closed/s.json").touch()
        (directory / "closed").chmod(0o300)
        root = make_private_home(directory / "home")
        for path in directory.rglob("*"):
            os.chown(path, NO_USER, NO_USER)
        moved = locate(root, {"SAGEWAI_ADMIN_STATE_FILE": str(directory / "closed/s.json")})
        with unprivileged():
            found = home_findings(check(moved))
        (directory / "closed").chmod(0o700)

    assert found == [f"P029 {directory / 'closed'}"]


@pytest.mark.parametrize("target", ["../real", "{parent}/real"])
def test_path_of_the_home_is_checked_through_its_links(
    home: Home, tmp_path: Path, target: str
) -> None:
    """A user who can replace a link to the home can replace the home."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/link").symlink_to(target.format(parent=tmp_path))
    home.root.rename(tmp_path / "real/home")

    found = check(locate(tmp_path / "open/link/home", {})).findings

    assert f"P019 {tmp_path / 'open'}" in [f"{finding.rule.id} {finding.path}" for finding in found]


@needs_root
def test_link_of_another_user_in_the_path_of_the_home_is_named(home: Home, tmp_path: Path) -> None:
    """Even in a sticky directory its owner can replace it."""
    link = tmp_path / "link"
    link.symlink_to(home.root)
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)

    found = check(locate(link, {})).findings

    assert f"P020 {link}" in [f"{finding.rule.id} {finding.path}" for finding in found]


def test_path_of_the_target_of_a_link_is_checked(home: Home, tmp_path: Path) -> None:
    """Not only the target: every directory above it."""
    (tmp_path / "open/b").mkdir(parents=True, mode=0o700)
    (home.root / "secrets").rename(tmp_path / "open/b/secrets")
    (home.root / "secrets").symlink_to(tmp_path / "open/b/secrets")
    assert home_findings(check(home)) == []
    (tmp_path / "open").chmod(0o777)

    seen = check(home)

    assert home_findings(seen) == [f"P017 {home.root}/secrets"]
    assert f"{tmp_path}/open has mode 0777, others can replace it" in seen.findings[0].message


def test_key_that_others_can_replace_is_accepted_by_sagewai(home: Home, tmp_path: Path) -> None:
    """Sagewai checks the mode of the target of a link, and nothing else."""
    (tmp_path / "open").mkdir()
    home.master_key.rename(tmp_path / "open/key")
    home.master_key.symlink_to(tmp_path / "open/key")
    (tmp_path / "open").chmod(0o777)

    (found,) = (finding for finding in check(home).findings if finding.path == home.master_key)

    assert found.rule.id == "P017"
    assert found.message.endswith("others can replace it")


def test_key_of_a_variable_that_sagewai_refuses_comes_first(home: Home) -> None:
    """It does not fall back to the file, but replaces it: the finding is about the file."""
    (home.root / "db/sagewai.db").chmod(0o644)

    seen = inspect(home, refused_key="SAGEWAI_MASTER_KEY: 43 characters, not 44")

    assert home_findings(seen) == [f"P032 {home.master_key}", f"P010 {home.database}"]
    assert "43 characters, not 44" in seen.findings[0].message
    assert seen.findings[0].repaired is None


@pytest.mark.parametrize(
    ("path", "mode", "message"),
    [
        (
            "secrets/master.key",
            0o604,
            "mode 0604, accessible to others; Sagewai would replace it with a new key",
        ),
        ("secrets/master.key", 0o611, "mode 0611, accessible to others"),
        ("master.key", 0o604, "mode 0604, accessible to others; Sagewai would ignore it"),
    ],
)
def test_effect_of_an_accessible_key_is_named(
    home: Home, path: str, mode: int, message: str
) -> None:
    """Sagewai checks read and write bits only, and writes only to the current path."""
    (home.root / path).write_bytes(KEY)
    (home.root / path).chmod(mode)

    first = check(home).findings[0]

    assert (first.rule.id, first.message) == ("P001", message)


def test_sticky_directory_above_is_fine(home: Home) -> None:
    """In /tmp no user can rename the files of another."""
    home.root.parent.chmod(0o1777)

    assert not found(check(home), Case("P019", "..", lambda _root: None))


@pytest.mark.parametrize(("mode", "rules"), [(0o755, []), (0o1777, []), (0o775, ["P023"])])
def test_shared_snapshot_directory_is_not_changed(home: Home, mode: int, rules: list[str]) -> None:
    """Snapshots may be in a directory such as /var/backups: only write access matters."""
    (home.snapshots / "other.tar").write_bytes(b"")
    home.snapshots.chmod(mode)

    seen = check(home)

    assert [finding.rule.id for finding in seen.findings if finding.path == home.snapshots] == rules
    assert plan_repairs(seen) == ()


def test_missing_home_is_not_found(tmp_path: Path) -> None:
    """There is nothing to check."""
    with pytest.raises(NotFoundError):
        check(locate(tmp_path / "missing", {}))


def test_repair_follows_no_link(home: Home) -> None:
    """A file that became a link after the inspection is not changed, nor is its target."""
    outside = home.root.parent / "outside"
    outside.write_bytes(b"")
    outside.chmod(0o644)
    (home.root / "config/admin-state.json").chmod(0o644)
    seen = check(home)
    (home.root / "config/admin-state.json").unlink()
    (home.root / "config/admin-state.json").symlink_to(outside)

    repaired = apply_repairs(home, seen, plan_repairs(seen))

    assert [(change.path, reason) for change, reason in repaired.left] == [
        ("config/admin-state.json", "not found")
    ]
    assert outside.stat().st_mode & 0o777 == 0o644


def test_repair_leaves_a_directory_that_became_a_link(home: Home) -> None:
    """A directory in the path that was replaced by a link is not entered."""
    outside = home.root.parent / "outside"
    (home.root / "config/admin-state.json").chmod(0o644)
    seen = check(home)
    (home.root / "config").rename(outside)
    (home.root / "config").symlink_to(outside)

    repaired = apply_repairs(home, seen, plan_repairs(seen))

    assert len(repaired.left) == 1
    assert (outside / "admin-state.json").stat().st_mode & 0o777 == 0o644


def test_repair_leaves_a_file_that_was_replaced(home: Home) -> None:
    """Sagewai replaces its documents: another file of the name was not inspected."""
    path = home.root / "config/admin-state.json"
    path.chmod(0o644)
    seen = check(home)
    path.rename(home.root / "data/kept")  # so that its inode is not used again
    path.write_bytes(b"{}")
    path.chmod(0o640)

    repaired = apply_repairs(home, seen, plan_repairs(seen))

    assert repaired.left[0][1] == "replaced by another file"
    assert path.stat().st_mode & 0o777 == 0o640


def test_undo_leaves_entries_that_changed_later(home: Home) -> None:
    """A mode that was set after the repair stays, is named, and the record is kept."""
    (home.root / "db/sagewai.db").chmod(0o644)
    (home.root / "sessions").chmod(0o755)
    record = repair(home)
    assert record is not None
    (home.root / "db/sagewai.db").chmod(0o400)

    undone = undo_repairs(home, record)

    assert [(change.path, reason) for change, reason in undone.left] == [
        ("db/sagewai.db", "changed by another process")
    ]
    assert (home.root / "sessions").stat().st_mode & 0o777 == 0o755
    assert record.exists()


def test_record_is_private_and_removed_by_its_undo(home: Home) -> None:
    """The record has mode 0600 whatever the umask, and nothing is left of it after the undo."""
    (home.root / "db/sagewai.db").chmod(0o644)
    before = os.umask(0)
    try:
        record = repair(home)
    finally:
        os.umask(before)
    assert record is not None

    assert record.stat().st_mode & 0o777 == 0o600
    undo_repairs(home, record)
    assert not record.exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{", UsageError),
        (b"[]", UsageError),
        (b'{"schema": "x", "roots": {}, "changes": []}', UsageError),
        (
            b'{"schema": "sagewai-ops-permissions/1", "roots": {"home": "/else"}, "changes": []}',
            UsageError,
        ),
    ],
)
def test_invalid_record_is_refused(
    home: Home, tmp_path: Path, content: bytes, error: type[OpsError]
) -> None:
    """Only a record that this program wrote for this home is used."""
    record = tmp_path / "record.json"
    record.write_bytes(content)
    record.chmod(0o600)

    with pytest.raises(error):
        undo_repairs(home, record)


@pytest.mark.parametrize("path", ["../outside", "config/../../outside", "/etc/passwd", "a//b"])
def test_record_with_a_path_that_leaves_the_home_is_refused(home: Home, path: str) -> None:
    """A record cannot lead out of the home."""
    (home.root / "db/sagewai.db").chmod(0o644)
    record = repair(home)
    assert record is not None
    content = json.loads(record.read_bytes())
    content["changes"][0]["path"] = path
    record.write_text(json.dumps(content), encoding="ascii")

    with pytest.raises(UsageError):
        undo_repairs(home, record)


def test_record_that_others_may_write_is_refused(home: Home) -> None:
    """A user who can write the record could decide which modes are set."""
    (home.root / "db/sagewai.db").chmod(0o644)
    record = repair(home)
    assert record is not None
    record.chmod(0o620)

    with pytest.raises(PermissionDeniedError):
        undo_repairs(home, record)
    with pytest.raises(NotFoundError):
        undo_repairs(home, record.with_name("missing"))


def test_repair_does_not_wait_for_another_run(home: Home) -> None:
    """While another run has locked the home, nothing is changed."""
    (home.root / "db/sagewai.db").chmod(0o644)
    seen = check(home)

    with exclusive(home.root), pytest.raises(LockedError):
        apply_repairs(home, seen, plan_repairs(seen))

    assert (home.root / "db/sagewai.db").stat().st_mode & 0o777 == 0o644


def test_home_that_cannot_be_written_is_left_as_it_is(nobodys_home: Home) -> None:
    """Without a record nothing is repaired."""
    (nobodys_home.root / "db/sagewai.db").chmod(0o644)
    nobodys_home.root.chmod(0o500)
    seen = check(nobodys_home)

    with pytest.raises(PermissionDeniedError):
        apply_repairs(nobodys_home, seen, plan_repairs(seen))

    assert (nobodys_home.root / "db/sagewai.db").stat().st_mode & 0o777 == 0o644


def test_killed_repair_can_be_undone(home: Home, tmp_path: Path) -> None:
    """Killed at any step, the record undoes the changes; the next repair completes them."""
    paths = ("config/connections.json", "db/sagewai.db", "sessions")
    before = {}
    for path in paths:
        (home.root / path).chmod(0o755)
        before[path] = 0o755
    seen = check(home)
    changes = plan_repairs(seen)

    def attempt(number: int) -> bool:
        killed = killed_at(number, lambda: apply_repairs(home, seen, changes))
        for record in home.root.glob(".sagewai-ops-permissions-2*.json"):
            assert undo_repairs(home, record).left == ()
        modes = {path: (home.root / path).stat().st_mode & 0o777 for path in paths}
        assert modes == before
        return killed

    assert until_done(attempt) >= len(paths)
    repair(home)
    assert home_findings(check(home)) == []
    assert list(home.root.glob("*.partial")) == []


def test_two_repairs_of_one_entry_are_one_change(home: Home) -> None:
    """A directory with an access list and without owner bits becomes private and usable."""
    grant("secrets", ACCESS_LIST, 7)(home.root)
    (home.root / "secrets").chmod(0o070)

    changes = plan_repairs(check(home))

    assert [(change.path, change.rules) for change in changes] == [("secrets", ("P004", "P013"))]
    assert changes[0].after.mode == 0o700
    repair(home)
    assert home_findings(check(home)) == []


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.randoms(use_true_random=False))
def test_any_modes_are_repaired_and_restored(seed: random.Random) -> None:
    """Whatever the modes: no finding after the repair, and every mode as before after the undo."""
    with tempfile.TemporaryDirectory() as directory:
        home = locate(make_private_home(Path(directory) / "home"), {})
        # Children first, so that a user without root privileges can reach the rest.
        for path in sorted(home.root.rglob("*"), reverse=True):
            path.chmod(seed.randrange(0o10000) | (0o700 if path.is_dir() else 0))
        home.root.chmod(0o700 | seed.randrange(0o100))
        before = {path: path.stat().st_mode for path in home.root.rglob("*")}

        record = repair(home)

        assert home_findings(check(home)) == []
        if record:
            assert undo_repairs(home, record).left == ()
        assert {path: path.stat().st_mode for path in home.root.rglob("*")} == before


def test_verification_inspects_again_after_the_repair(home: Home) -> None:
    """The result has the remaining findings, and the changes."""
    (home.root / "db/sagewai.db").chmod(0o644)
    (home.root / "secrets/master.key").write_bytes(b"")

    before = check(home)
    seen = verify(home, home.snapshots, fix=True)

    assert home_findings(before) == [
        f"P002 {home.root}/secrets/master.key",
        f"P010 {home.root}/db/sagewai.db",
    ]
    assert home_findings(seen.inspection) == [f"P002 {home.root}/secrets/master.key"]
    assert seen.repair is not None
    assert [change.path for change in seen.repair.done] == ["db/sagewai.db"]


def test_modes_of_a_restore_follow_the_rules(home: Home) -> None:
    """The modes that restore sets violate no rule."""
    for name in ("db/sagewai.db", "secrets/master.key", "config/connections.json", "data/a.txt"):
        assert _violated_rules(file_kind(name), name, "file", file_mode(name, 0o666)) == []
    for name in ("", "config", "db", "fleet", "secrets", "secrets/sops", "sessions", "data/a"):
        assert (
            _violated_rules(directory_kind(name), name, "directory", directory_mode(name, 0o777))
            == []
        )
    assert file_mode("data/tool", 0o4755) == 0o755
    assert directory_mode("data/artifacts", 0o2775) == 0o755
    assert directory_mode("", 0o755) == 0o755


def _violated_rules(kind: EntryKind, path: str, entry_type: str, mode: int) -> list[str]:
    owner = home_owner = 1000
    facts = Facts(kind, path, entry_type, EntryState(mode, owner, owner), 1, home_owner, home_owner)
    return [rule.id for rule in RULES_BY_KIND[kind] if rule.test(facts)]


class _as_root:  # noqa: N801 - reads as a statement
    """Become root for the block, inside `unprivileged`."""

    def __enter__(self) -> None:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)

    def __exit__(self, *_: object) -> None:
        os.setresgid(NO_USER, NO_USER, 0)
        os.setresuid(NO_USER, NO_USER, 0)


def test_file_with_another_name_keeps_owner_and_mode(home: Home, tmp_path: Path) -> None:
    """The other name may be root's file, which the home's user linked into the home."""
    other = tmp_path / "other"
    other.write_text("{}")
    other.chmod(0o644)
    (home.root / "config/connections.json").unlink(missing_ok=True)
    (home.root / "config/connections.json").hardlink_to(other)

    seen = check(home)
    repaired = apply_repairs(home, seen, plan_repairs(seen))

    assert other.stat().st_mode & 0o777 == 0o644
    assert [reason for _change, reason in repaired.left] == ["has 2 names (hard links)"]
