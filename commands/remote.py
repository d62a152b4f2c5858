"""`remote`: initialise and check places for snapshots in object stores and over SSH."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DryRunOption
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS

if TYPE_CHECKING:
    from sagewai_ops.remote.address import Address
    from sagewai_ops.remote.initialise import PlaceResult
    from sagewai_ops.remote.store import Store

_PROBE = "probe {} with objects that are deleted"
_RESULT = "sagewai_ops.remote.initialise:PlaceResult"
_DELETING = {
    "deleted": "possible",
    "hidden": "only hides, the store keeps a version",
    "denied": "denied with these rights",
}
PlaceArgument = Annotated[
    str, typer.Argument(metavar="PLACE", help="URL, or NAME: of the configuration.")
]


@command("remote init", result=_RESULT, changes=True)
def init(run: Run, *, place: PlaceArgument, dry_run: DryRunOption = False) -> Outcome:
    """Initialise a remote place for snapshots.

    The place is probed with objects of its own: conditional writes, ranges, parts, replacement,
    deletion, locks and the clock. If snapshots would be safe there, the marker sagewai-ops.json is
    written; a place without one is not used. Buckets and directories are never created.

    Credentials are read from the environment (AWS_*, AZURE_*, GOOGLE_*, or the same names with
    _FILE), ~/.aws, the instance, or the credentials-file of [remote.NAME]; for SFTP by ssh.

    Exit status:
      0   initialised
      2   not a place, or obstore or ssh is not installed
      4   findings; no marker was written
      10  the bucket or directory does not exist
      14  permission denied, or no credentials
      15  initialised already
      19  the server or the network failed
    """
    from sagewai_ops.remote.initialise import initialise, require_uninitialised

    with _opened(run, place) as (address, store):
        if dry_run:
            require_uninitialised(store)
            steps = (_PROBE.format(address), f"create {address}/sagewai-ops.json")
            return plan_outcome(steps)
        result = initialise(store, address)
    is_refused = result.place_id is None

    def render(terminal: Terminal) -> None:
        _show(terminal, result)
        if is_refused:
            terminal.line(f"{result.place}: not initialised", style="red")
        else:
            terminal.line(f"{result.place}: initialised as {result.place_id}", style="green")

    code = EXIT_FINDINGS if is_refused else EXIT_DONE
    return Outcome(result, render, exit_code=code, warnings=_warnings(result), always=is_refused)


@command("remote check", result=_RESULT, changes=True, unattended=True)
def check(run: Run, *, place: PlaceArgument, dry_run: DryRunOption = False) -> Outcome:
    """Check a remote place again.

    It is probed as by init, with objects that are deleted, and compared with the results of init.
    The summary has the least rights that a place needs, and the lifecycle rule that removes the
    parts of uploads that were killed.

    Exit status:
      0   as it should be
      2   not a place, or obstore or ssh is not installed
      4   findings, or a result differs from that of init
      10  the place does not exist, or is not initialised
      14  permission denied, or no credentials
      16  the marker is damaged
      19  the server or the network failed
    """
    from sagewai_ops.remote.initialise import check_place
    from sagewai_ops.remote.marker import require_marker

    with _opened(run, place) as (address, store):
        if dry_run:
            require_marker(store)
            return plan_outcome((_PROBE.format(address),))
        result = check_place(store, address)

    def render(terminal: Terminal) -> None:
        _show(terminal, result)
        advice = result.advice
        terminal.line(f"least rights ({advice.for_pruning} only to prune):")
        terminal.line(advice.policy)
        if advice.command:
            terminal.line("rule for the parts of killed uploads; replaces all rules of the bucket:")
            terminal.line(advice.lifecycle)
            terminal.line(advice.command)

    code = EXIT_FINDINGS if result.findings or result.changed else EXIT_DONE
    return Outcome(result, render, exit_code=code, warnings=_warnings(result), always=True)


@contextlib.contextmanager
def _opened(run: Run, place: str) -> "Iterator[tuple[Address, Store]]":
    from sagewai_ops.remote.address import open_store

    address = run.settings.address_of(place)
    store = open_store(address, run.settings.environment)
    try:
        yield address, store
    finally:
        store.close()


def _show(terminal: Terminal, result: "PlaceResult") -> None:
    found = result.capabilities
    if found is None:
        return
    rows = [
        ("put if absent", _yes(found.put_if_absent)),
        ("exact ranges", _yes(found.exact_ranges)),
        ("objects of several parts", _yes(found.multipart)),
        ("current list", _yes(found.consistent_list)),
        ("replacement", _yes(found.overwrite)),
        ("deletion", _DELETING[found.deleting]),
        ("lock of new objects", f"{found.locked_seconds} s" if found.locked_seconds else "unknown"),
        ("clock of the server", f"{found.clock_skew_seconds:+d} s"),
    ]
    terminal.table(("probe", "result"), rows)
    for name in result.changed:
        terminal.line(f"{result.place}: {name} differs from the result of init", style="yellow")


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _warnings(result: "PlaceResult") -> tuple[str, ...]:
    untested = f"{result.place}: this kind of store is not tested with a server"
    return (
        *(f"{finding.message}: {finding.repair}" for finding in result.findings),
        *(() if result.is_tested else (untested,)),
    )


COMMANDS = (init, check)
