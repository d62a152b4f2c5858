"""`snapshots diff`: the differences between two snapshots."""

from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import UsageError
from sagewai_ops.text import shell_word, size

from .shared_options import OpeningOptions, SnapshotsOption  # noqa: TID251 - a neighbour
from .snapshot_argument import find_named, origin_keys  # noqa: TID251 - a neighbour

HELP = """Show the differences between two snapshots.

The last two of this home by default. Added, removed and changed files, row counts of tables, schema
and keys are compared by the manifests; times are ignored, and no content is read.

Exit status:
  0   compared, equal or not
  2   ambiguous name, or one name alone
  10  snapshot not found, or fewer than two
  12  no key decrypts one
  16  damaged or forged
  18  format newer than this program
"""

_Name = typer.Argument(
    metavar="[SNAPSHOT]", help="An id, the beginning of an id, latest, tree, or a path."
)


@command("snapshots diff", HELP, result="sagewai_ops.snapshots.diff:SnapshotDiff")
def diff(
    run: Run,
    *,
    first: Annotated[str | None, _Name] = None,
    second: Annotated[str | None, _Name] = None,
    snapshots: SnapshotsOption = None,
    opening: OpeningOptions,
) -> Outcome:
    """Parse, compare, render."""
    from sagewai_ops.snapshots.catalog import latest_two, list_snapshots
    from sagewai_ops.snapshots.diff import compare_snapshots
    from sagewai_ops.snapshots.trust import confirm, ids_at_place, trust_of

    if first is not None and second is None:
        raise UsageError(
            "snapshots diff: two snapshots required, or none for the last two",
            hint=f"sagewai-ops snapshots diff {shell_word(first)} latest",
        )
    if first is None or second is None:
        home = run.home()
        directory = run.snapshots(home, snapshots)
        trust = trust_of(home, directory, run.settings.environment)
        ids = ids_at_place(home, list_snapshots(directory), trust)
        pair = latest_two(directory, ids, lambda found: confirm(directory, found, trust))
    else:
        pair = (find_named(run, first, snapshots)[0], find_named(run, second, snapshots)[0])
    result = compare_snapshots(*pair, opening.read(run), origin_keys(run))
    return Outcome(result, lambda terminal: _show(terminal, result), always=True)


def _show(terminal: Terminal, result: Any) -> None:
    terminal.line(f"{result.first} -> {result.second}", style="bold")
    for sign, members in (("+", result.added), ("-", result.removed)):
        for path, size_bytes in members.items():
            terminal.line(f"  {sign} {path}  {size(size_bytes)}")
    for change in result.changed:
        before, after = change.bytes_before, change.bytes_after
        sizes = f"{size(before)} -> {size(after)}" if before != after else size(after)
        terminal.line(f"  ~ {change.path}  {', '.join(change.what)}  {sizes}")
    for row in result.tables:
        before, after = row.rows_before, row.rows_after
        delta = f" ({after - before:+})" if before is not None and after is not None else ""
        counts = ["no table" if count is None else str(count) for count in (before, after)]
        terminal.line(f"  rows {row.table}  {counts[0]} -> {counts[1]}{delta}")
    for name, fact in result.facts.items():
        terminal.line(f"  {name}  {fact.before or '-'} -> {fact.after or '-'}")
    for fingerprint, key in result.keys.items():
        terminal.line(
            f"  key {fingerprint} opens  {key.values_before} -> {key.values_after} values"
        )
    unchanged = "no differences" if result.same else f"{result.unchanged} entries unchanged"
    terminal.line(f"  {unchanged}")
