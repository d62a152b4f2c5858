"""The options that every command has, and those of commands that run unattended.

The global ones are accepted before and after the names of a group and of a command; at every level
a flag has priority over a variable, and that over the file.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

# Headings of options in the help.
SNAPSHOTS = "Snapshots"
CONTENT = "Content"
ENCRYPTION = "Encryption and keys"
RETENTION = "Retention"
TARGET = "Target"
DATABASE = "Database"
REPORTING = "Reporting"
RUN = "Run"


def option(
    panel: str | None, flags: str, text: str, metavar: str | None = None, **more: Any
) -> Any:
    """Return the declaration of an option.

    Args:
        panel: The heading in the help; None for that of the others.
        flags: Separated by blanks.
        text: Its help.
        metavar: The name of its value in the help.
        more: For `typer.Option`.
    """
    return typer.Option(*flags.split(), metavar=metavar, help=text, rich_help_panel=panel, **more)


class NotifyOn(str, Enum):
    """Runs that are notified of."""

    FAILURE = "failure"
    RECOVERY = "recovery"  # and failures
    ALWAYS = "always"


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", metavar="DIR", help="Sagewai home (default: SAGEWAI_HOME, else ~/.sagewai)."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file (default: ~/.config/sagewai-ops/config.toml).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print summaries and notes without a terminal too.")
]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Log steps and timings on stderr, without secrets.")
]
YesOption = Annotated[bool, option(RUN, "--yes", "Confirm without asking.")]
DryRunOption = Annotated[bool, option(RUN, "--dry-run", "Print the plan, change nothing.")]
# Both kinds of URLs are secrets. The hidden options are named in the helps of those next to them.
PingOption = Annotated[
    str | None,
    option(REPORTING, "--ping-url", "Ping at start, end, failure; or --ping-url-file FILE.", "URL"),
]
PingFileOption = Annotated[
    Path | None,
    option(
        REPORTING, "--ping-url-file", "Read the URL to ping from this file.", "FILE", hidden=True
    ),
]
NotifyOption = Annotated[
    list[str] | None,
    option(REPORTING, "--notify", "Notify of a failure; repeatable; or --notify-file FILE.", "URL"),
]
NotifyFileOption = Annotated[
    Path | None,
    option(
        REPORTING,
        "--notify-file",
        "Read the URLs to notify from this file, one a line.",
        "FILE",
        hidden=True,
    ),
]
NotifyOnOption = Annotated[
    NotifyOn,
    option(
        REPORTING,
        "--notify-on",
        "Notify of a failure, also of the first success after one, or always.",
        "failure|recovery|always",
        hidden=True,
    ),
]
MetricsOption = Annotated[
    Path | None, option(REPORTING, "--metrics-file", "Write metrics for node_exporter.", "FILE")
]
LogOption = Annotated[
    str | None,
    option(REPORTING, "--log-file", "Append a line at start and end; - is stderr.", "FILE"),
]
# Parameter -> annotation and default.
GLOBAL: dict[str, tuple[Any, Any]] = {
    "home": (HomeOption, None),
    "config": (ConfigOption, None),
    "json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "verbose": (VerboseOption, False),
    "debug": (DebugOption, False),
}
UNATTENDED: dict[str, tuple[Any, Any]] = {
    "ping_url": (PingOption, None),
    "ping_url_file": (PingFileOption, None),
    "notify": (NotifyOption, None),
    "notify_file": (NotifyFileOption, None),
    "notify_on": (NotifyOnOption, NotifyOn.FAILURE),
    "metrics_file": (MetricsOption, None),
    "log_file": (LogOption, None),
}
# Of commands that change something and never ask: scripts pass it to all.
CHANGES: dict[str, tuple[Any, Any]] = {
    "yes": (
        Annotated[bool, typer.Option("--yes", help="Confirm without asking.", hidden=True)],
        False,
    )
}
_ENGINE = ("--engine", "Use a repository of restic or borg.", "restic|borg")
_REPOSITORY = ("--repository", "The repository (default: RESTIC_REPOSITORY or BORG_REPO).", "R")
# Of commands that accept a snapshot directory.
REPOSITORY: dict[str, tuple[Any, Any]] = {
    "engine": (Annotated[str | None, option(SNAPSHOTS, *_ENGINE, hidden=True)], None),
    "repository": (Annotated[str | None, option(SNAPSHOTS, *_REPOSITORY, hidden=True)], None),
}
_PRIORITY = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")  # the parser's sources


def find_global(context: Any, name: str) -> tuple[Any, str]:
    """Find the value of a global option on a command line.

    Args:
        context: That of the command, or of the part of the line that could be parsed.
        name: Its parameter.

    Returns:
        The value and its source: `DEFAULT`, `DEFAULT_MAP`, `ENVIRONMENT` or `COMMANDLINE`; of two
        with the same priority, the one closer to the end of the line.
    """
    value, source = None, _PRIORITY[0]
    while context is not None:
        found = getattr(context.get_parameter_source(name), "name", "")
        is_set = name in context.params and found in _PRIORITY
        if is_set and _PRIORITY.index(found) > _PRIORITY.index(source):
            value, source = context.params[name], found
        context = context.parent
    return value, source
