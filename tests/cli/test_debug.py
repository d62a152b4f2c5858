"""`--debug`: a log of steps and timings on stderr, in which no secret appears."""

from __future__ import annotations

import re
from pathlib import Path

import pyrage
import pytest

from program import Answer, call, run
from small_homes import small

PLANTED = "planted-secret-in-an-option"


def _lines(answer: Answer) -> list[str]:
    lines = [line for line in answer.err.splitlines() if line.startswith("debug: ")]
    assert all(re.match(r"debug: +\d+\.\d{3} \S", line) for line in lines)
    return [line.split(None, 2)[2] for line in lines]


def test_debug_logs_versions_options_steps_stages_and_the_exit(tmp_path: Path) -> None:
    """In order, with the seconds since the start; results on stdout are the same."""
    home = small(tmp_path / "home").root

    lines = _lines(run("--home", home, "backup", "--debug", "--level", 3))

    assert re.match(r"sagewai-ops \S+ backup, Python 3\.", lines[0])
    assert "option --level from commandline" in lines
    assert f"create directory {home}.snapshots" in lines
    assert any(line.startswith("verify: ") and " done in " in line for line in lines)
    assert any(re.match(r"rename \S+\.partial -> \S+\.tar\.zst$", line) for line in lines)
    assert lines[-1].startswith("exit 0, peak memory ")


def test_debug_logs_where_an_error_was_raised(tmp_path: Path) -> None:
    """Stdout is still the one JSON object."""
    answer = call("--home", tmp_path / "none", "--debug", "backup", "--json")

    lines = _lines(answer)
    assert answer.document["exit_code"] == 10
    assert any("NotFoundError" in line for line in lines)
    assert any(re.search(r"paths\.py:\d+ in require", line) for line in lines)


def test_nothing_is_logged_without_debug(tmp_path: Path) -> None:
    """Also after a run with it in the same process, whose hook remains."""
    home = small(tmp_path / "home").root
    call("--home", home, "backup", "--debug")

    assert call("--home", home, "backup").err == ""


@pytest.mark.parametrize("fails", [False, True])
def test_no_secret_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """Neither keys, passphrases and URLs of options and variables, nor values of the home."""
    built = small(tmp_path / "home")
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "id").write_text(str(identity))
    (tmp_path / "pass").write_text(f"{PLANTED}-passphrase")
    key = built.master_key.read_text().strip()
    monkeypatch.setenv("SAGEWAI_MASTER_KEY", key)
    monkeypatch.setenv("PGPASSWORD", f"{PLANTED}-password")
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_PING_URL", f"http://127.0.0.1:9/{PLANTED}-ping")
    if fails:
        built.root.joinpath("db/sagewai.db").write_bytes(b"no database" * 1000)
        url = f"postgresql://u:{PLANTED}-url@127.0.0.1:1/d"
        lines: list[list[object]] = [["export-to-postgres", url], ["backup"], ["keys", "check"]]
    else:
        sealed: list[object] = ["--passphrase-file", tmp_path / "pass", "--key", "sealed"]
        lines = [
            ["backup", *sealed],
            ["snapshots", "verify", "latest", "--passphrase-file", tmp_path / "pass"],
            ["keys", "check"],
            ["keys", "rotate", "--recipient", identity.to_public()],
            ["drill", "--identity", tmp_path / "id"],
        ]

    for words in lines:
        answer = call("--home", built.root, "--debug", *words)

        assert len(_lines(answer)) > 3, words
        for secret in (PLANTED, key, str(identity), *(each.value for each in built.secrets)):
            assert secret not in answer.err, words


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("drill",), "home/db/sagewai.db"),
        (("preflight",), "home/db/sagewai.db"),
        (("preflight", "--no-snapshot"), "*/sagewai.db"),
        (("db", "upgrade", "--rehearse"), "sagewai.db"),
    ],
    ids=["drill", "preflight", "preflight without a snapshot", "rehearsal"],
)
def test_work_directory_is_kept_on_request_only_away_from_snapshots(
    tmp_path: Path, words: tuple[str, ...], file: str
) -> None:
    """It is plaintext; a warning names it, and no later run removes it."""
    home = small(tmp_path / "home").root
    (tmp_path / "work").mkdir()
    call("--home", home, "backup")
    command = ("--home", home, *words, "--keep-work-dir")

    refused = [call(*command), call(*command, "--work-dir", f"{home}.snapshots")]
    kept = call(*command, "--work-dir", tmp_path / "work", "--json")
    call("--home", home, *words, "--work-dir", tmp_path / "work")

    assert [answer.code for answer in refused] == [2, 2]
    assert all("no plaintext is kept next to" in answer.err for answer in refused)
    (path,) = (tmp_path / "work").iterdir()
    warning = f"work directory {path}: kept, contains plaintext of the home"
    assert warning in kept.document["warnings"]
    assert list(path.glob(file))
    assert path.stat().st_mode & 0o777 == 0o700
