"""The version of Sagewai: of its package's metadata, without running it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from program import call, taken
from sagewai_ops.home import application
from sagewai_ops.home.application import find_version
from small_homes import small


def _installed(directory: Path, version: str) -> Path:
    """Make an environment with a `sagewai` of a version; return its `bin`."""
    (directory / "lib/python3.13/site-packages" / f"sagewai-{version}.dist-info").mkdir(
        parents=True
    )
    programs = directory / "bin"
    programs.mkdir()
    program = programs / "sagewai"
    program.write_text(
        f"#!{sys.executable}\nimport time\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    return programs


def test_the_program_on_path_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through a link, as pipx makes it; without one it is unknown."""
    monkeypatch.setattr(application, "_running", lambda _users: [])
    programs = _installed(tmp_path / "a", "1.0.1")
    links = tmp_path / "links"
    links.mkdir()
    (links / "sagewai").symlink_to(programs / "sagewai")

    assert find_version({"PATH": str(programs)}, tmp_path) == "1.0.1"
    assert find_version({"PATH": str(links)}, tmp_path) == "1.0.1"
    assert find_version({"PATH": str(tmp_path)}, tmp_path) == ""


def test_a_running_program_counts_more(tmp_path: Path) -> None:
    """It is the one that writes; of two versions neither is guessed."""
    on_path = _installed(tmp_path / "a", "1.0.0")
    first, second = (_installed(tmp_path / name, version) for name, version in
                     (("b", "1.1.0"), ("c", "1.2.0")))  # fmt: skip
    environment = {"PATH": str(on_path)}
    found = []
    processes = []
    try:
        for programs in (first, second):
            process = subprocess.Popen([programs / "sagewai"], stdout=subprocess.PIPE)
            processes.append(process)
            assert process.stdout
            process.stdout.readline()
            found.append(find_version(environment, tmp_path))
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    assert found == ["1.1.0", ""]


def test_a_program_behind_a_loop_of_links_is_unknown(tmp_path: Path) -> None:
    """A process can have any word as its name."""
    (tmp_path / "loop").symlink_to("loop")
    words = [str(tmp_path / "loop/sagewai"), "600"]
    with subprocess.Popen(words, executable="/bin/sleep") as process:
        command = Path(f"/proc/{process.pid}/cmdline")
        while b"loop" not in command.read_bytes():
            assert process.poll() is None
        found = find_version({"PATH": str(_installed(tmp_path / "a", "1.0.0"))}, tmp_path)
        process.kill()

    assert found == "1.0.0"


def test_a_program_of_another_user_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user can run one with this name; the home's owner decides."""
    on_path, running = (_installed(tmp_path / name, version) for name, version in
                        (("a", "1.0.0"), ("b", "1.1.0")))  # fmt: skip
    environment = {"PATH": str(on_path)}
    process = subprocess.Popen([running / "sagewai"], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        monkeypatch.setattr("os.geteuid", lambda: 4711)
        of_owner = find_version(environment, tmp_path)
        of_user = find_version(environment, tmp_path / "none")
    finally:
        process.kill()
        process.communicate()

    assert (of_owner, of_user) == ("1.1.0", "1.0.0")


def test_a_snapshot_records_it_and_a_restore_reports_it(tmp_path: Path) -> None:
    """Named by hand, in JSON and for people; another text is refused."""
    home = small(tmp_path / "home").root
    at_home = ("--home", home)
    archive = taken(call(*at_home, "backup", "--application-version", "1.0.1", "--json"))

    shown = call(*at_home, "snapshots", "show", archive, "--json").result
    plan = call(*at_home, "restore", "latest", "--replace", "--dry-run")
    done = call(*at_home, "restore", "latest", "--to", tmp_path / "copy", "--json").result
    refused = call(*at_home, "backup", "--application-version", "1.0 1")

    assert shown["application_version"] == done["application_version"] == "1.0.1"
    assert "  written   by Sagewai 1.0.1\n" in plan.out
    assert refused.code == 2


def test_a_snapshot_without_it_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every snapshot from before."""
    monkeypatch.setattr("sagewai_ops.backup.run.find_version", lambda *_: "")
    home = small(tmp_path / "home").root
    call("--home", home, "backup")

    done = call("--home", home, "restore", "latest", "--to", tmp_path / "copy", "--json").result

    assert done["application_version"] == ""
