"""`keys`: which key there is, what it opens, what stands in the clear, and a copy for bad days."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command, command_group
from sagewai_ops.cli.terminal import Terminal

from .keys_rotate import HELP, rotate  # noqa: TID251 - a neighbour
from .shared_options import RecipientOption, RecipientsFileOption  # noqa: TID251 - a neighbour

KeyFileOption = Annotated[
    Path | None,
    typer.Option("--extra-key", metavar="F", help="One more key: a file with its 44 characters."),
]
_SHOWN = 20  # lines of one kind that people are shown; --json has all


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = command_group(
        "keys", "Name the master key, prove what it opens, put it in escrow, exchange it."
    )
    add_command(group, "keys fingerprint", show_fingerprint)
    add_command(group, "keys check", check, unattended=True)
    add_command(group, "keys escrow", escrow, changes=True)
    add_command(group, "keys rotate", rotate, HELP, changes=True)
    app.add_typer(group)


def show_fingerprint(
    run: Run,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Every key at hand, not only Sagewai's own.")
    ] = False,
) -> Outcome:
    """Print the fingerprint of the master key, 16 hex digits.

    It tells two keys apart and gives neither away; snapshots carry the same. A key that Sagewai
    would refuse, and replace by a new one, is not its own: --all shows it, and why.

    Exit codes: 0 printed, 10 no home, 12 Sagewai would make a new key.
    """
    from sagewai_ops.errors import KeyMissingError
    from sagewai_ops.home.paths import require
    from sagewai_ops.keys.candidates import accepted
    from sagewai_ops.operations.check_keys import all_candidates

    home = run.home()
    require(home)
    candidates = all_candidates(home, run.settings.environment)
    key = accepted(candidates)
    result = {"keys": _keys(candidates), **_own(key)}
    if key is None and not (every and candidates):
        problems = [f"{one.source}: {one.problem}" for one in candidates if one.problem]
        raise KeyMissingError(
            "; ".join((f"home {home.root}: no key that Sagewai would take", *problems)),
            hint="sagewai-ops keys fingerprint --all" if candidates else "",
        )

    def render(terminal: Terminal) -> None:
        if every:
            _show_keys(terminal, result)
        elif key:
            terminal.line(key.fingerprint)

    return Outcome(result, render, warnings=_refusals(candidates, key), always=True)


def check(run: Run, *, key_file: KeyFileOption = None) -> Outcome:
    """Check that every secret is encrypted and can be decrypted.

    It reads and never writes, works while Sagewai runs, and shows no value: places and
    fingerprints alone. What counts as a finding and what as a note: docs/keys.md.

    Exit codes: 0 all opens with Sagewai's own key and nothing is in the clear where Sagewai seals,
    4 findings, 10 no home or key file, 11 the database is held exclusively or a rotation was
    interrupted, 12 there are sealed
    values and no key opens any, 14 the database may not be read, 16 the database is damaged.
    """
    from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, KeyMissingError
    from sagewai_ops.operations.check_keys import check_keys

    home = run.home()
    with run.terminal.progress() as progress:
        found = check_keys(home, run.settings.environment, key_file=key_file, progress=progress)
    refusals = _refusals(found.candidates, found.key)
    total = found.report.total
    if total and not found.opened:
        tried = sum(bool(one.value) for one in found.candidates)
        raise KeyMissingError(
            f"home {home.root}: {total} sealed values and none opens, keys tried: {tried}",
            hint="\n".join(
                (*refusals, "sagewai-ops keys check --extra-key FILE  # with the key that is meant")
            ),
        )
    result: dict[str, Any] = {
        "home": str(home.root),
        "keys": _keys(found.candidates),
        **_own(found.key),
        "sealed": found.report.as_dict(),
        "values": [
            {
                "place": one.place,
                "where": one.where,
                "source": one.source,
                "fingerprint": one.fingerprint,
                "through_project": one.through_project,
            }
            for one in found.opened
        ],
        "lost_to_sagewai": len(found.lost_to_sagewai),
        "plaintext": [
            {
                "place": one.place,
                "where": one.where,
                "finding": one.is_finding,
                "habit": one.habit.value,
            }
            for one in found.plaintext
        ],
        "unread": dict(found.unread),
    }
    return Outcome(
        result,
        lambda terminal: _show_check(terminal, result),
        exit_code=EXIT_FINDINGS if found.has_findings else EXIT_DONE,
        warnings=(*refusals, *(f"{path}: {why}" for path, why in found.unread.items())),
        always=True,
    )


def escrow(
    run: Run,
    *,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="F",
            help="Write the encrypted key.",
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="F", help="Write a recovery sheet to be printed."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="F", help="This key, not the home's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, write nothing.")] = False,
) -> Outcome:
    """Encrypt the master key to recipients, as file and sheet.

    The key never leaves in the clear. Each file is private, and gets its name only after it was
    read back and opened. The sheet is plain text: on paper, with a recipient's identity, it is
    enough.

    Exit codes: 0 written and proved, 2 no recipient, nothing to write, or a place in the home,
    10 no home or file, 11 a rotation was interrupted, 12 there is no key, 13 no space, 14 the
    system refused, 15 a file exists already, 16 what was read back is not the key.
    """
    from sagewai_ops.archive.age import check_recipients
    from sagewai_ops.cli.credentials import lock_of
    from sagewai_ops.errors import KeyMissingError, UsageError
    from sagewai_ops.home.paths import require
    from sagewai_ops.keys.candidates import accepted, resolved
    from sagewai_ops.keys.escrow import check_place, seal_key, write_key, write_sheet
    from sagewai_ops.keys.rotation_journal import require_settled
    from sagewai_ops.operations.check_keys import all_candidates

    if to is None and sheet is None:
        raise UsageError("keys escrow: nothing to write", hint="name --to FILE, --sheet FILE, both")
    if to and sheet and to.absolute() == sheet.absolute():
        raise UsageError(f"keys escrow: --to and --sheet name the same file, {to}")
    encryption = lock_of(run.terminal, recipient or [], recipients_file, None)
    if encryption is None:
        raise UsageError("keys escrow: no recipient", hint="--recipient age1... or ssh-ed25519 ...")
    check_recipients(encryption.recipients)
    home = run.home()
    require(home)
    require_settled(home.root)
    candidates = all_candidates(home, run.settings.environment, key_file=key_file)
    key = candidates[0] if key_file else resolved(candidates)
    if key is None:
        raise KeyMissingError(f"home {home.root}: there is no key", hint="name it: --key-file FILE")
    for path in filter(None, (to, sheet)):
        check_place(path, home, candidates, force=force)
    result: dict[str, Any] = {
        "home": str(home.root),
        **_own(key),
        "recipients": list(encryption.recipients),
        "to": str(to) if to else None,
        "sheet": str(sheet) if sheet else None,
        "dry_run": dry_run,
    }
    if not dry_run:
        sealed = seal_key(key, encryption.recipients)
        if to:
            write_key(to, sealed)
        if sheet:
            write_sheet(sheet, sealed, home, run.started_at)
    words = "would be written" if dry_run else "written, read back and proved"

    def render(terminal: Terminal) -> None:
        for path in filter(None, (to, sheet)):
            terminal.line(f"key {key.fingerprint} from {key.source}: {path} {words}")

    warnings = _refusals(candidates, accepted(candidates))
    return Outcome(result, render, warnings=warnings, always=dry_run)


def _keys(candidates: Any) -> list[dict[str, str]]:
    return [
        {"source": one.source, "fingerprint": one.fingerprint, "problem": one.problem}
        for one in candidates
    ]


def _own(key: Any) -> dict[str, str]:
    return {
        "key_source": key.source if key else "",
        "key_fingerprint": key.fingerprint if key else "",
    }


def _refusals(candidates: Any, key: Any) -> tuple[str, ...]:
    """Say of each key that Sagewai would not take what would come of it."""
    would = "Sagewai would refuse it" if key else "Sagewai would refuse it and write a new key"
    return tuple(
        f"{one.path or one.source}: {one.problem}; {would}" for one in candidates if one.problem
    )


def _show_keys(terminal: Terminal, result: dict[str, Any]) -> None:
    terminal.table(
        ("key", "fingerprint", ""),
        [
            (
                one["source"],
                one["fingerprint"] or "-",
                one["problem"]
                or ("Sagewai's own" if one["source"] == result["key_source"] else ""),
            )
            for one in result["keys"]
        ],
    )


def _show_check(terminal: Terminal, result: dict[str, Any]) -> None:
    sealed = result["sealed"]
    if result["keys"]:
        _show_keys(terminal, result)
    terminal.line(f"sealed values: {sealed['total']}, of which {sealed['opened']} open")
    own = result["key_fingerprint"]
    counts = Counter((one["place"], one["source"], one["fingerprint"]) for one in result["values"])
    for (place, source, fingerprint), count in sorted(counts.items()):
        other = "" if fingerprint == own else ", which is not the key that Sagewai would use"
        style = "yellow" if other else ""
        terminal.line(f"  {place}: {count} under {fingerprint} ({source}){other}", style=style)
    closed = [f"{one['place']} {one['where']}: {one['reason']}" for one in sealed["unopened"]]
    _show_some(terminal, "closed   ", closed, "red")
    for is_finding, word, style in ((True, "in clear ", "red"), (False, "note     ", "")):
        lines = [
            f"{one['place']} {one['where']}: {one['habit']}"
            for one in result["plaintext"]
            if one["finding"] is is_finding
        ]
        _show_some(terminal, word, lines, style)


def _show_some(terminal: Terminal, word: str, lines: list[str], style: str) -> None:
    for line in lines[:_SHOWN]:
        terminal.line(f"  {word}{line}", style=style)
    if len(lines) > _SHOWN:
        terminal.line(f"  {word}and {len(lines) - _SHOWN} more: --json lists them", style=style)
