"""Every command as cron runs it: no environment, no terminal, a read-only working directory.

All of them run one after the other in one process, which has none of this test's own environment.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import litestream
from sagewai_ops.cli import main
from small_homes import small

READ_ONLY = "/proc"  # also for root
_RUNNER = """
import contextlib, io, json, os, sys
from sagewai_ops.cli.main import run
assert not os.environ.keys() - {"LC_CTYPE"}, os.environ  # Python sets this one itself
results = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run(words)
        except BaseException as error:
            code, out = 1, io.StringIO(repr(error))
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""
# What is asked for is shown to everybody; what is done is done in silence.
_ASKED = {
    "status", "recover", "preflight", "keys fingerprint", "keys check", "db current",
    "db history", "db check", "snapshots list", "snapshots show", "snapshots diff", "config show",
    "schedule systemd", "schedule cron", "schedule compose", "schedule kubernetes",
    "schedule run",
    "schedule litestream",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command printed."""

    code: int
    out: str
    err: str


def _commands() -> Iterator[str]:
    def walk(name: str, command: object) -> Iterator[str]:
        below: dict[str, object] = getattr(command, "commands", {})
        if not below:
            yield name
        for word in below:
            yield from walk(f"{name} {word}".strip(), below[word])

    yield from walk("", typer.main.get_command(main.build_app()))


def _under_cron(*lines: list[object]) -> list[Outcome]:
    """Run command lines as cron would."""
    words = json.dumps([[str(word) for word in line] for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, words],
        env={},
        cwd=READ_ONLY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [Outcome(*each) for each in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Run every command on a home that is well."""
    directory = tmp_path_factory.mktemp("cron")
    directory.chmod(0o700)
    home = small(directory / "home").root
    own: dict[str, list[object]] = {
        "init": ["--home", directory / "new", "init"],
        "restore": ["restore", "latest", "--to", directory / "copy",
                    "--key-file", home / "secrets/master.key", "--rebind-fleet"],
        "keys escrow": ["keys", "escrow", "--recipient", _recipient(),
                        "--to", directory / "key.age"],
        "keys rotate": ["keys", "rotate", "--yes", "--no-snapshot"],
        "db upgrade": ["db", "upgrade"],
        "snapshots show": ["snapshots", "show", "latest"],
        "snapshots verify": ["snapshots", "verify", "latest"],
        "snapshots extract": ["snapshots", "extract", "latest", "--to", directory / "out"],
        "snapshots diff": ["snapshots", "diff", "latest", "latest"],
        "snapshots prune": ["snapshots", "prune", "--keep-last", "9"],
        "snapshots copy": ["snapshots", "copy", f"{home}.snapshots", directory / "copies"],
        "snapshots undelete": ["snapshots", "undelete", "--all"],
        **{f"schedule {word}": ["schedule", word, "--install-key", home / "secrets/master.key"]
           for word in ("compose", "kubernetes")},
        "schedule run": ["schedule", "run", "--every", "1s", "--runs", "1", "--", "backup"],
        "schedule litestream": ["schedule", "litestream", directory / "replica",
                                "--program", litestream.stub(directory)],
    }  # fmt: skip
    # A server is needed for these; what two of them print without one is below.
    on_servers = (
        "db downgrade",
        "export-to-postgres",
        "import-from-postgres",
        "remote init",
        "remote check",
        "notify test",
    )
    names = [name for name in _commands() if name not in on_servers]
    names.remove("backup")
    names.insert(0, "backup")
    lines = [["--home", home, *own.get(name, list(name.split()))] for name in names]
    return dict(zip(names, _under_cron(*lines), strict=True))


def _recipient() -> str:
    import pyrage

    return str(pyrage.x25519.Identity.generate().to_public())


def test_every_command_works_with_nothing_around_it(output: dict[str, Outcome]) -> None:
    """Exit code 0 or findings, nothing on stderr, no traceback, no colour."""
    for name, each in output.items():
        assert each.code in (0, 4), (name, each)
        assert each.err == "", name
        assert "\x1b" not in each.out, name


def test_what_is_done_is_done_in_silence(output: dict[str, Outcome]) -> None:
    """Stdout contains what was asked for, and nothing else."""
    assert {name for name, each in output.items() if each.out and each.code == 0} <= _ASKED


def test_every_error_names_the_thing_and_the_next_step(tmp_path: Path) -> None:
    """On a home that is not there: one line with its path, and a hint; --quiet keeps both."""
    home = tmp_path / "none"
    own: dict[str, list[object]] = {
        "restore": ["restore", "latest"],
        "keys escrow": ["keys", "escrow", "--recipient", _recipient(), "--to", tmp_path / "k"],
        "keys rotate": ["keys", "rotate", "--yes", "--no-snapshot"],
        "db downgrade": ["db", "downgrade", "base", "--yes"],
        "snapshots show": ["snapshots", "show", "latest"],
        "snapshots verify": ["snapshots", "verify", "latest"],
        "snapshots extract": ["snapshots", "extract", "latest", "--to", tmp_path / "out"],
        "snapshots diff": ["snapshots", "diff", "1", "2"],
        "snapshots copy": ["snapshots", "copy", f"{home}.snapshots", tmp_path / "copies"],
        "export-to-postgres": ["export-to-postgres", "postgresql://user@127.0.0.1:1/none"],
    }
    # These need no home, and one of them makes it.
    fine = {"init", "config show", "db history"} | {
        f"snapshots {word}" for word in ("list", "prune", "undelete")
    }
    other = ("schedule", "remote", "notify", "import-from-postgres")  # the last names its server
    names = [name for name in _commands() if name not in fine and not name.startswith(other)]

    spoken = _under_cron(
        *(["--home", home, *own.get(name, list(name.split()))] for name in names),
        *(["--home", home, "--quiet", *own.get(name, list(name.split()))] for name in names),
    )

    for name, loud, quiet in zip(names, spoken, spoken[len(names) :], strict=False):
        error, *hints = loud.err.splitlines() or [""]
        assert loud.code not in (0, 1), (name, loud)
        assert error.startswith("sagewai-ops: error: "), (name, loud)
        assert str(home) in error or "SQLite" in error, (name, loud)
        assert hints, (name, loud)
        assert all(hint.startswith("sagewai-ops: hint: ") for hint in hints), (name, loud)
        assert quiet == loud, name


def test_a_command_in_a_hint_runs_whatever_the_path_is_called(tmp_path: Path) -> None:
    """A home with a blank in its name is one word there, and no hint is written another way."""
    (tmp_path / "my home").touch()

    (spoken,) = _under_cron(["--home", tmp_path / "my home", "init"])

    assert f"hint: ls -l '{tmp_path}/my home'" in spoken.err
    command = re.compile(r"(ls -\w+|df -h|rm|cat|mkdir|chmod|mv|--home) \{(?!shell_word|_quoted)")
    root = Path(main.__file__).parents[1]
    sources = [*root.rglob("*.py"), *(root.parent / "commands").rglob("*.py")]
    assert len(sources) > 100
    assert not [path for path in sources if command.search(path.read_text())]
