"""The options that every command has, and those of commands that run unattended."""

from pathlib import Path
from typing import Annotated, Any

import typer

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="The home; else SAGEWAI_HOME, else ~/.sagewai.",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; else ~/.config/sagewai-ops/config.toml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and nothing else.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more, without a terminal too.")
]
PingOption = Annotated[
    str | None,
    typer.Option(
        "--ping-url",
        metavar="URL",
        help="Tell a watchdog: URL/start, then URL or URL/fail. A secret: better a variable.",
    ),
]
PingFileOption = Annotated[
    Path | None,
    typer.Option("--ping-url-file", metavar="FILE", help="The same, from a file's first line."),
]
MetricsOption = Annotated[
    Path | None,
    typer.Option("--metrics-file", metavar="FILE", help="Write metrics for node_exporter."),
]
LogOption = Annotated[
    str | None,
    typer.Option("--log-file", metavar="FILE", help="Add a line at start and end; - is stderr."),
]
# Parameter -> annotation and default.
GLOBAL: dict[str, tuple[Any, Any]] = {
    "home": (HomeOption, None),
    "config": (ConfigOption, None),
    "json": (JsonOption, False),
    "quiet": (QuietOption, False),
    "verbose": (VerboseOption, False),
}
UNATTENDED: dict[str, tuple[Any, Any]] = {
    "ping_url": (PingOption, None),
    "ping_url_file": (PingFileOption, None),
    "metrics_file": (MetricsOption, None),
    "log_file": (LogOption, None),
}
