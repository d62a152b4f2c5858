"""Options about litestream's replica, and what they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sagewai_ops.cli.command import Run
from sagewai_ops.cli.options import DATABASE, option
from sagewai_ops.errors import UsageError

if TYPE_CHECKING:
    from sagewai_ops.database.sqlite.litestream import Replica

LitestreamConfigOption = Annotated[
    Path | None,
    option(
        DATABASE,
        "--litestream-config",
        "Configuration of litestream (default: LITESTREAM_CONFIG, else /etc/litestream.yml).",
        "FILE",
        hidden=True,
    ),
]


def replica_of(run: Run, flag: str, source: str, configuration: Path | None) -> "Replica":
    """Return the replica of the home's database that an option names.

    Args:
        flag: The option.
        source: Its value: `litestream`, or `litestream:TIMESTAMP`.

    Raises:
        UsageError: It is something else, or the database is on a server.
    """
    from sagewai_ops.database.sqlite.litestream import DEFAULT_CONFIGURATION, Replica, parse_source
    from sagewai_ops.home.server_record import server_name

    home, environment = run.home(), run.settings.environment
    moment = parse_source(flag, source)
    if server := server_name(home, environment):
        raise UsageError(
            f"{flag}: the database is on a server, {server}, which litestream does not replicate",
            hint=f"omit {flag}: a snapshot has the database of the server",
        )
    named = environment.get("LITESTREAM_CONFIG") or DEFAULT_CONFIGURATION
    path = configuration or Path(named)
    return Replica(path.expanduser().absolute(), home.database, moment, environment)


def refuse_with(run: Run, flag: str, names: tuple[str, ...]) -> None:
    """Refuse options that contradict another one.

    Args:
        names: Of their parameters; only the command line counts, the configuration may have them.

    Raises:
        UsageError: One is named on the command line.
    """
    for parameter in run.context.command.params:
        source = getattr(run.context.get_parameter_source(parameter.name), "name", "")
        if parameter.name in names and source == "COMMANDLINE":
            shown = next((word for word in parameter.opts if word.startswith("--")), "SNAPSHOT")
            raise UsageError(f"{shown}: contradicts {flag}")
