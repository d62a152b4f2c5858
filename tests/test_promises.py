"""What holds across files: help, exit codes, who imports whom, how light the start is."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from program import call
from sagewai_ops import errors
from sagewai_ops.cli import help as texts
from sagewai_ops.cli import main
from sagewai_ops.cli.help import split_status
from sagewai_ops.cli.parser import describe_option
from sagewai_ops.cli.variables import ACTING
from small_homes import small

ROOT = Path(__file__).parent.parent
MOST_LINES = 600  # of a module; style: split what is longer
HEAVY = ("sqlalchemy", "alembic", "asyncpg", "cryptography", "zstandard", "pyrage", "rich")
# The order of imports, from the bottom; a package may import those of its own rank, in no cycle.
RANKS = {
    **dict.fromkeys(("__init__", "errors", "progress", "records", "text"), 0),
    **dict.fromkeys(("database/url", "process", "schedule"), 1),
    **dict.fromkeys(("database/sqlite", "database/postgres", "fs", "home", "migrations"), 2),
    **dict.fromkeys(("archive", "engines", "notify", "permissions", "remote", "schema"), 3),
    **dict.fromkeys(("cli", "keys", "layout", "snapshots"), 4),
    "swap": 5,
    "backup": 6,
    **dict.fromkeys(("export/convert",), 6),
    "export/mapping": 7,
    "export/compare": 8,
    **dict.fromkeys(("export/pipeline", "export/validate"), 9),
    "export/learnings": 10,
    "export": 11,
    "restore": 11,
    "operations": 12,
    "commands": 13,
    "__main__": 14,
}


def _sources() -> list[Path]:
    return sorted([*(ROOT / "sagewai_ops").rglob("*.py"), *(ROOT / "commands").glob("*.py")])


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _package(path: Path) -> str:
    """Return the ranked package of a source file, or the module itself at the root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "commands" if parts[0] == "commands" else _ranked(parts[1:])


def _ranked(parts: Sequence[str]) -> str:
    """Return the longest beginning of a module's path that has a rank."""
    for length in (2, 1):
        name = "/".join(parts[:length])
        if name in RANKS:
            return name
    return parts[0]


def _imports(path: Path) -> Iterator[str]:
    """Yield every module that a source file imports, also inside its functions."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _packages_of(path: Path) -> set[str]:
    """Return the ranked packages that a source file imports from."""
    package = ROOT / "sagewai_ops"
    found = set()
    for name in _imports(path):
        parts = name.split(".")
        place = package.joinpath(*parts[1:])
        if parts[0] == "sagewai_ops" and len(parts) > 1:
            if not place.is_dir() and not place.with_suffix(".py").exists():
                parts.pop()  # a name within a module
            if len(parts) > 2 or (len(parts) == 2 and place.with_suffix(".py").exists()):
                found.add(_ranked(parts[1:]))
    return found


def test_the_core_names_tests_that_exist(missing_from_core: list[str]) -> None:
    """Where a test was renamed, core.txt is to be changed by hand or by `make core`."""
    assert missing_from_core == []


def test_every_package_has_a_rank() -> None:
    """A new package is placed in the order of imports before it is used."""
    assert {_package(path) for path in _sources()} - {"database"} <= RANKS.keys()


def test_imports_run_downward_only() -> None:
    """Commands, operations, then the packages that they share, down to errors and text."""
    upward = {
        (str(path.relative_to(ROOT)), package)
        for path in _sources()
        for package in _packages_of(path)
        if RANKS[package] > RANKS[_package(path)]
    }

    assert upward == set()


def test_no_packages_import_each_other_in_a_cycle() -> None:
    """Among packages of one rank there is an order too."""
    edges = {(_package(path), package) for path in _sources() for package in _packages_of(path)}
    known = {(above, below) for above, below in edges if above != below}
    while known:
        # Remove the packages that import no other, again and again: a cycle remains.
        leaves = {below for _above, below in known} - {above for above, _below in known}
        assert leaves, sorted(known)
        known = {(above, below) for above, below in known if below not in leaves}


def test_only_cli_and_commands_import_typer_or_rich() -> None:
    """The library can be used by another program, on any stream."""
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in _sources()
        for name in _imports(path)
        if name.split(".")[0] in ("typer", "click", "rich")
        and _package(path) not in ("cli", "commands")
    }

    assert found == set()


def test_dataclasses_are_those_that_start_fast() -> None:
    """The standard decorator takes 0.4 ms for each class at every start."""
    found = {
        str(path.relative_to(ROOT))
        for path in _sources()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.ImportFrom)
        and node.module == "dataclasses"
        and any(name.name == "dataclass" for name in node.names)
    }

    assert found == {"sagewai_ops/records.py"}


def test_the_library_neither_prints_nor_exits() -> None:
    """Only `cli/main` exits; only `cli/terminal` prints."""
    found = set()
    for path in _sources():
        for node in ast.walk(_tree(path)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "input") and path.name != "terminal.py":
                found.add((str(path.relative_to(ROOT)), called))
            if called in ("sys.exit", "exit", "os._exit") and path.name != "main.py":
                found.add((str(path.relative_to(ROOT)), called))

    # A forked process has no caller to exit for it.
    forked = ("worker.py", "cli/acting.py")
    assert {place for place, _called in found if not place.endswith(forked)} == set()


def test_migrations_import_only_alembic_and_sqlalchemy() -> None:
    """What brought a database to its revision must not change with our code."""
    allowed = {"alembic", "sqlalchemy", "sagewai_ops.migrations", "pathlib", "re", "typing"}
    found = {
        name
        for path in (ROOT / "migrations/versions").glob("*.py")
        for name in _imports(path)
        if name.split(".")[0] not in allowed | {"__future__"}
        and not name.startswith("sagewai_ops.migrations")
    }

    assert found == set()


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    """It describes its purpose, and is not too long."""
    text = path.read_text(encoding="utf-8")

    assert text.count("\n") <= MOST_LINES
    assert path.name == "__main__.py" or ast.get_docstring(_tree(path))


def _commands() -> dict[str, Any]:
    """Return every command by what people type, groups apart."""
    found = {}

    def walk(name: str, command: Any) -> None:
        for word, below in getattr(command, "commands", {}).items():
            walk(f"{name} {word}".strip(), below)
        if name and not hasattr(command, "commands"):
            found[name] = command

    walk("", typer.main.get_command(main.build_app()))
    return found


def _documented() -> dict[str, set[int]]:
    """Read docs/exit-codes.md: the codes by the JSON name, "" for those without one."""
    rows = re.findall(
        r"^\| ([\d, ]+) \| (?:`([\w-]+)`)? *\|",
        (ROOT / "docs/exit-codes.md").read_text(),
        re.MULTILINE,
    )
    found: dict[str, set[int]] = {}
    for codes, name in rows:
        found.setdefault(name, set()).update(int(code) for code in codes.split(","))
    return found


def test_exit_codes_are_unique_and_equal_the_documented_ones() -> None:
    """Every class of error has a code of its own, and the manual has it, and no other."""
    classes = [
        found
        for _name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.OpsError)
    ]
    codes = {found.code: {found.exit_code} for found in classes}
    constants = {
        value for name, value in vars(errors).items() if name.startswith("EXIT_") and value
    }

    kinds = [found for found in classes if found.__base__ in (Exception, errors.OpsError)]
    assert len({found.exit_code for found in kinds}) == len(kinds)
    assert {code for each in codes.values() for code in each}.isdisjoint(constants)
    assert _documented() == {
        **codes,
        errors.InterruptedRunError.code: {129, 130, 143},
        "": {0, *constants},
    }


@pytest.mark.parametrize("name", _commands())
def test_a_command_has_help_with_its_exit_statuses(name: str) -> None:
    """A sentence of at most 60 characters, and each option and status explained."""
    command = _commands()[name]
    documented = {code for codes in _documented().values() for code in codes}

    assert 0 < len(command.short_help) <= 60
    assert (command.help or "").startswith(f"{command.short_help}\n\n")
    prose, statuses = split_status(command.help)
    codes = [int(code) for code, _meaning in statuses]
    assert codes[0] == 0
    assert codes == sorted(set(codes))
    assert set(codes) <= documented
    assert all(meaning for _code, meaning in statuses)
    assert "Exit" not in prose
    for option in command.params:
        if option.param_type_name == "option" and option.name != "help":
            assert re.fullmatch(r"(- |[A-Z]|archive).*\.", option.help), option.name
            assert option.is_flag or option.metavar, option.name


@pytest.mark.parametrize("name", ["", *_commands()])
def test_help_fits_on_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 lines of 80 columns, without variables, and with the global options once."""
    monkeypatch.setenv("COLUMNS", "80")

    lines = call(*name.split(), "--help").out.splitlines()

    assert lines[0].startswith("Usage: sagewai-ops")
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 80
    assert "SAGEWAI_OPS_" not in "".join(lines)
    assert sum("--json" in line for line in lines) == 1


def test_first_page_of_help_is_that_of_the_commands() -> None:
    """It is printed from a table, without loading them."""
    program: Any = typer.main.get_command(main.build_app())
    listed = {name: text for names in texts.COMMANDS.values() for name, text in names.items()}
    options = {
        describe_option(option): option
        for option in program.params
        if option.name not in ("install_completion", "show_completion")
    }

    assert set(program.commands) == set(listed)
    assert list(main.COMMANDS) == list(listed)
    for name, command in program.commands.items():
        is_group = hasattr(command, "commands")
        assert listed[name] == (command.help if is_group else command.short_help)
    assert {*texts.GLOBAL_OPTIONS, ("--version", "Print the version.")} == options.keys()
    assert call("--help").out == texts.program_help(78) == call("-h").out


@pytest.mark.parametrize("name", _commands())
def test_every_option_has_a_variable_of_its_own(name: str) -> None:
    """Unless it acts, answers a question or disables a safeguard; see tests/cli/test_variables."""
    variables: list[str] = []
    for option in _commands()[name].params:
        if option.param_type_name == "option" and option.name != "help":
            assert bool(option.envvar) is ACTING.isdisjoint(option.opts), option.name
            variables += option.envvar or ()

    assert len(set(variables)) == len(variables)
    assert all(variable.startswith("SAGEWAI_OPS_") for variable in variables)


@pytest.mark.parametrize("name", _commands())
def test_a_command_takes_the_global_options(name: str) -> None:
    """After its name as well as before it."""
    flags = {flag for option in _commands()[name].params for flag in option.opts}

    assert {"--home", "--json", "--quiet", "-q", "--verbose", "-v"} <= flags


_LOADED = """
import json, sys
from sagewai_ops.cli.main import run
codes = [run(words) for words in json.loads(sys.argv[1])]
loaded = {name.split(".")[0] for name in sys.modules}
sys.stderr.write(json.dumps([codes, sorted(loaded)]))
"""


def _loaded(*commands: list[str]) -> tuple[list[int], set[str]]:
    """Run commands in one fresh process; return their codes and its imported packages."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _LOADED, json.dumps(commands)],
        capture_output=True,
        check=True,
    )
    codes, loaded = json.loads(done.stderr.splitlines()[-1])
    return codes, set(loaded)


def test_help_is_shown_without_anything_heavy() -> None:
    """Completion and help are typed often; what only work needs is imported by work."""
    codes, loaded = _loaded(["--help"], ["backup", "--help"], ["snapshots", "--help"])

    assert codes == [0, 0, 0]
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["backup", "--to", "status"], ["backup"]),
        (["--home", "restore", "-v", "--json", "status"], ["status"]),
        (["--config", "drill", "--home=backup", "db", "check"], ["db"]),
        (["schedule", "cron"], main.COMMANDS),
        (["config", "show"], main.COMMANDS),
        (["--help", "backup"], main.COMMANDS),
        (["bakup"], main.COMMANDS),
        (["--home", "backup"], main.COMMANDS),
        ([], main.COMMANDS),
    ],
)
def test_only_the_command_that_is_named_is_loaded(words: list[str], needed: Sequence[str]) -> None:
    """The value of an option is no command; who asks for help, or misspells one, needs all."""
    assert list(main._needed(words)) == list(needed)


@pytest.mark.parametrize(
    ("word", "first"), [("--version", b"sagewai-ops "), ("--help", b"Usage: ")]
)
def test_version_and_first_help_need_no_typer(word: str, first: bytes) -> None:
    """Scripts ask for the version before every run, and people for the help often."""
    code = f"import sys\nfrom sagewai_ops.cli.main import main\ntry: main(['{word}'])\n"
    code += "except SystemExit: sys.exit('typer' in sys.modules)"

    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)

    assert done.stdout.startswith(first)


def test_backup_and_restore_never_load_sqlalchemy(tmp_path: Path) -> None:
    """A home's life needs SQLite alone; a server's driver has no part in it."""
    built = small(tmp_path / "home")
    home = ["--home", str(built.root)]

    codes, loaded = _loaded(
        [*home, "backup"],
        [*home, "status"],
        [*home, "snapshots", "verify", "latest"],
        [*home, "restore", "latest", "--to", str(tmp_path / "copy"),
         "--key-file", str(built.master_key)],
        [*home, "verify-perms"],
    )  # fmt: skip

    assert codes[:4] == [0, 0, 0, 0]
    assert (tmp_path / "copy/db/sagewai.db").exists()
    assert loaded.isdisjoint(("sqlalchemy", "alembic", "asyncpg", "aiosqlite"))


def test_status_of_a_home_without_a_server_never_loads_asyncio(tmp_path: Path) -> None:
    """It takes a tenth of the time of the command."""
    built = small(tmp_path / "home")

    codes, loaded = _loaded(["--home", str(built.root), "status"])

    assert codes == [0]
    assert "asyncio" not in loaded
