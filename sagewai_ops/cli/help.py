"""Help texts: how a screen of help is laid out, and the first page, which needs no other module.

`sagewai-ops --help` is printed from the table below, without importing Typer or a command; a test
compares the table with the commands. Environment variables and examples are in the manual pages.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

SUMMARY = "Back up, restore, check and migrate the home of a Sagewai installation."
# Heading -> command -> its summary.
COMMANDS = {
    "Everyday": {
        "init": "Create a Sagewai home, or complete an existing one.",
        "status": "Show layout, database, key and snapshots of a home.",
        "backup": "Create a verified snapshot of a home.",
        "restore": "Restore a home from a snapshot.",
        "recover": "Complete or roll back an interrupted operation.",
        "snapshots": "List, verify, compare, copy, extract and prune snapshots.",
    },
    "Checks": {
        "verify-perms": "Check which users can read or replace the secrets.",
        "drill": "Prove that a snapshot can be restored.",
        "preflight": "Check everything before an upgrade.",
    },
    "Keys": {"keys": "Identify, check, escrow and rotate the master key."},
    "Database": {
        "db": "Show, check and change the schema of the database.",
        "export-to-postgres": "Move the database of a home to PostgreSQL.",
        "import-from-postgres": "Move the database of a home from PostgreSQL back to SQLite.",
    },
    "Set-up": {
        "migrate-layout": "Move the files of older versions to their directories.",
        "schedule": "Print or run a schedule for nightly backups.",
        "notify": "Test the notifications of failed runs.",
        "remote": "Initialise and check remote places for snapshots.",
        "config": "Show the configuration.",
    },
}
GLOBAL_OPTIONS = (
    ("--home DIR", "Sagewai home (default: SAGEWAI_HOME, else ~/.sagewai)."),
    ("--config FILE", "Configuration file (default: ~/.config/sagewai-ops/config.toml)."),
    ("--json", "Print one JSON object on stdout."),
    ("-q, --quiet", "Print errors only."),
    ("-v, --verbose", "Print summaries and notes without a terminal too."),
    ("--debug", "Log steps and timings on stderr, without secrets."),
)
_PROGRAM_OPTIONS = (
    ("--version", "Print the version."),
    ("--install-completion", "Install completion for the current shell."),
    ("--show-completion", "Print completion for the current shell."),
    ("-h, --help", "Show help; also after a command."),
)
WIDTH = 80  # columns
_INDENT = 2
_WIDEST_TERM = 30  # columns; the description of a longer one begins on the next line
_GAP = 2


def program_help(width: int = WIDTH) -> str:
    """Return the first page: commands and global options."""
    sections = [
        "Usage: sagewai-ops [OPTIONS] COMMAND [ARGS]...",
        SUMMARY,
        *(section(heading, commands.items(), width) for heading, commands in COMMANDS.items()),
        section("Global options", (*GLOBAL_OPTIONS, *_PROGRAM_OPTIONS), width),
        "Manual: man sagewai-ops, man sagewai-ops-backup, ...",
    ]
    return "\n\n".join(sections) + "\n"


def section(heading: str, rows: Iterable[tuple[str, str]], width: int = WIDTH) -> str:
    """Write a list of terms with their descriptions below a heading."""
    return "\n".join([f"{heading}:", *_rows(list(rows), width)])


def paragraphs(text: str, width: int = WIDTH) -> str:
    """Wrap paragraphs."""
    wrapped = (
        textwrap.fill(" ".join(part.split()), width, break_on_hyphens=False)
        for part in text.split("\n\n")
    )
    return "\n\n".join(wrapped)


def split_status(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Split a command's help into its prose and its exit statuses.

    Returns:
        The prose, and the code and meaning of each status.
    """
    prose, _, listed = text.partition("Exit status:\n")
    statuses: list[tuple[str, str]] = []
    for line in listed.splitlines():
        code, _, meaning = line.strip().partition(" ")
        if code.isdigit():
            statuses.append((code, meaning.strip()))
        elif line.strip():
            statuses[-1] = (statuses[-1][0], f"{statuses[-1][1]} {line.strip()}")
    return prose.strip(), statuses


def _rows(rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    longest = max((len(term) for term, _text in rows if len(term) <= _WIDEST_TERM), default=0)
    column = _INDENT + longest + _GAP
    for term, text in rows:
        lines = textwrap.wrap(text, width - column, break_on_hyphens=False) or [""]
        if len(term) > longest:
            yield " " * _INDENT + term
        else:
            yield (" " * _INDENT + term.ljust(longest + _GAP) + lines.pop(0)).rstrip()
        yield from (" " * column + line for line in lines)
