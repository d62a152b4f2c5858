"""`drill --from litestream`: prove that a replica can be restored."""

from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.cli.command import Outcome, Run
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS
from sagewai_ops.text import printable, size

from .litestream_options import replica_of  # noqa: TID251 - a neighbour
from .shared_options import keeper  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.operations.drill_replica import ReplicaDrillResult


def drill_replica(
    run: Run,
    source: str,
    configuration: Path | None,
    *,
    key_file: Path | None,
    without_key: bool,
    scratch: Path | None,
    keep_work_dir: bool,
    dry_run: bool,
) -> Outcome:
    """Drill a replica, render."""
    from sagewai_ops.operations import drill_replica as drilling

    home = run.home()
    replica = replica_of(run, "--from", source, configuration)
    options = drilling.ReplicaDrillOptions(
        home=home,
        environment=run.settings.environment,
        key_file=key_file,
        without_key=without_key,
        scratch=scratch,
        keep=keeper(run, keep_work_dir, scratch, home.snapshots),
    )
    if dry_run:
        return plan_outcome(drilling.plan_replica_drill(replica, options))
    with run.terminal.progress() as progress:
        result = drilling.drill_replica(replica, options, progress=progress)
    closed = len(result.keys.unopened)
    return Outcome(
        result,
        lambda terminal: _show(terminal, result, is_kept=keep_work_dir),
        exit_code=EXIT_FINDINGS if result.findings else EXIT_DONE,
        warnings=(f"not proved: no available key opens {closed} encrypted values",)
        if closed
        else (),
        always=bool(result.findings),
    )


def _age(result: "ReplicaDrillResult") -> str:
    """Return how long before the drill the last change was."""
    from sagewai_ops.database.sqlite.litestream import parse_moment

    ends = [parse_moment(text) for text in (result.state_at, result.at)]
    if ends[0] is None or ends[1] is None:
        return ""
    minutes = max(0, int((ends[1] - ends[0]).total_seconds())) // 60
    hours, minutes = divmod(minutes, 60)
    return f", {hours} h {minutes} min before" if hours else f", {minutes} min before"


def _show(terminal: Terminal, result: "ReplicaDrillResult", *, is_kept: bool) -> None:
    is_proved = result.outcome == "proved"
    outcome = "proved restorable" if is_proved else "restorable, but not all encrypted values open"
    terminal.line(
        f"replica of {printable(result.replica)}: {outcome}",
        style="bold green" if is_proved else "bold yellow",
    )
    rows, tables = sum(result.database.tables.values()), len(result.database.tables)
    terminal.line(f"  state     {printable(result.state_at)}, the last change{_age(result)}")
    end = "kept" if is_kept else "removed"
    terminal.line(f"  restored  {size(result.size_bytes)}, and {end}")
    terminal.line(f"  database  {rows} rows in {tables} tables, undamaged")
    keys = result.keys
    opened = f"{keys.opened} of {keys.total} values open with {result.key_source or 'no key'}"
    terminal.line(f"  secrets   {opened if keys.total else 'none'}")
    before, after = (
        " and ".join(ids) or "no revision" for ids in (result.upgrade.before, result.upgrade.after)
    )
    terminal.line(f"  upgrade   {before} to {after}, {len(result.upgrade.added)} additions")
    findings = [f"{finding.check}: {finding.text}" for finding in result.findings]
    terminal.items("  finding   ", findings, style="yellow")
    terminal.line(f"  took      {result.seconds:.1f} s")
