"""`schedule run`: run a command at the times of a schedule, in the foreground."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command, envelope, find_reporter
from sagewai_ops.cli.options import RUN, UNATTENDED, DryRunOption, NotifyOn, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE, OpsError, UsageError

from .schedule_files import REFUSED_OPTIONS, this_program  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.schedule.loop import Ended

HELP = """Run a command at the times of a schedule, in the foreground.

For containers; on a host, systemd and cron are better. Each run is a process of its own. Two never
overlap, and a failed one is logged and retried at the next time. Each run is one line on stdout, or
its JSON object. A killed run, which cannot report its end, is reported for it. A signal ends the
run, then the loop.

Exit status:
  0    --runs were made
  2    invalid option or command
  3    --runs were made, and one failed
  143  ended by SIGTERM; 130 by SIGINT
"""
_TIMED = "ping_url"  # a parameter of commands that timers run
_PLANNED = 3  # times that a dry run names


@command("schedule run", HELP, result="sagewai_ops.schedule.loop:ScheduleRuns", changes=True)
def run_schedule(
    run: Run,
    *,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND...", help="Command, such as `backup`.", show_default=False
        ),
    ] = None,
    every: Annotated[
        str, option(RUN, "--every", "Times: day@HH:MM, sunday@HH:MM, or 6h.", "TIME")
    ] = "day@03:30",
    jitter: Annotated[
        str, option(RUN, "--jitter", "Longest random delay, such as 15m (default: none).", "SPAN")
    ] = "",
    runs: Annotated[
        int, option(RUN, "--runs", "End after N runs (default: never).", "N", min=0)
    ] = 0,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Parse, run at each time, print a line for each run."""
    from sagewai_ops.fs.os_errors import from_os_error, output_error
    from sagewai_ops.process.signals import describe_interruption
    from sagewai_ops.schedule.loop import Clock, Ended, ScheduleRuns, due_times, run_once
    from sagewai_ops.schedule.times import parse_every, parse_jitter

    name, reporting = _checked_command(run, words or [])
    times = parse_every(every)
    delay_seconds = parse_jitter(jitter, times)
    clock = Clock()
    if dry_run:
        return plan_outcome(_steps(times, clock.now(), name, delay_seconds))
    random_delay = random.SystemRandom()
    command = [str(this_program()), *_global_words(run), "--json", *(words or [])]
    made = failed = 0
    unwritten: OpsError | None = None
    describe_interruption("the schedule ends")
    run.terminal.note(f"next run of {name}: {_utc(times.next_after(clock.now()))}")

    def skipped(time: float) -> None:
        run.terminal.warning(f"run of {name} at {_utc(time)}: skipped, during a run or repeated")

    for _due in due_times(times, lambda: random_delay.uniform(0, delay_seconds), clock, skipped):
        try:
            ended = run_once(command)
        except (FileNotFoundError, PermissionError):
            raise  # the program is missing, and will be at the next time
        except OSError as error:  # no memory, no process
            problem = from_os_error(error, command[0])
            run.terminal.warning(f"run of {name}: not started: {problem.message}")
            ended = Ended(problem.exit_code, 0.0, None, is_reported=False)
        try:
            _print(run, name, ended)
        except BrokenPipeError:
            raise  # its reader has closed it
        except OSError as error:  # a full disk under a log prevents no later run
            unwritten = output_error(error)
            run.terminal.warning(f"run of {name}: no line: {unwritten.message}")
        if not ended.is_reported:
            _report(run, name, reporting, ended)
        if ended.interruption:
            raise ended.interruption
        made += 1
        failed += ended.exit_code != EXIT_DONE
        if made == runs:
            break
    if unwritten:
        raise unwritten
    return Outcome(
        ScheduleRuns(made, failed),
        lambda _terminal: None,
        exit_code=EXIT_INCOMPLETE if failed else EXIT_DONE,
    )


def _checked_command(run: Run, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Parse a command as a run would, and return its name and the values of `UNATTENDED`.

    Raises:
        UsageError: It is not a command for timers, or contains a secret.
    """
    from sagewai_ops.cli.config_file import SECRET_OPTIONS
    from sagewai_ops.remote.address import has_password

    root = run.context.find_root()
    command: Any = root.command
    rest = list(words)
    name: list[str] = []
    defaults = root.default_map
    while rest and rest[0] in getattr(command, "commands", {}):
        name.append(rest.pop(0))
        command = command.commands[name[-1]]
        defaults = (defaults or {}).get(name[-1])
    if not any(parameter.name == _TIMED for parameter in command.params):
        raise UsageError(
            f"{' '.join(name or words[:1]) or 'schedule run'}: not a command for timers",
            hint="sagewai-ops schedule run --every day@02:30 -- backup",
        )
    for word in rest:
        flag = word.partition("=")[0]
        if flag in REFUSED_OPTIONS:
            raise UsageError(f"{flag}: not possible in a schedule")
        if has_password(word):
            raise UsageError("a URL contains a password, shown by ps")
        if flag.removeprefix("--") in SECRET_OPTIONS:
            raise UsageError(f"{flag}: is a secret, shown by ps", hint=f"{flag}-file FILE")
    # or the parser's own error
    parsed = command.make_context(" ".join(name), rest, parent=root, default_map=defaults).params
    given = {parameter: parsed[parameter] for parameter in UNATTENDED}
    return " ".join(name), {**given, "notify_on": NotifyOn(given["notify_on"])}


def _global_words(run: Run) -> list[str]:
    """Return the global options of this run for the runs of the schedule."""
    settings = run.settings
    words = ["--debug"] if settings.debug else []
    if settings.home_option:
        words += ["--home", str(settings.home_option)]
    if settings.configuration_path:
        words += ["--config", str(settings.configuration_path)]
    return words


def _steps(times: Any, now: float, name: str, delay_seconds: int) -> list[str]:
    steps = []
    for _number in range(_PLANNED):
        now = times.next_after(now)
        delayed = f", up to {delay_seconds} s later" if delay_seconds else ""
        steps.append(f"run {name} at {_utc(now)}{delayed}")
    return steps


def _print(run: Run, name: str, ended: "Ended") -> None:
    """Print one line for a run, at once."""
    from sagewai_ops.notify.prometheus import extract_figures
    from sagewai_ops.notify.reporter import log_line

    document = ended.document
    if run.settings.json:
        run.terminal.document(document or _lost(run, name, ended))
    else:
        facts: dict[str, object] = {
            "command": name,
            "exit": ended.exit_code,
            "seconds": f"{ended.seconds:.3f}",
        }
        if document is None:
            facts["error"] = ended.problem
        else:
            facts |= extract_figures(_mapping(document.get("result")))
            if warnings := document.get("warnings"):
                facts["warning"] = warnings[0]
            if failure := document.get("error"):
                facts["error"] = failure["message"]
        run.terminal.line(log_line("run", facts))
    run.terminal.flush()


def _lost(run: Run, name: str, ended: "Ended") -> dict[str, Any]:
    """Return the JSON object of a run that printed none."""
    began = datetime.now(timezone.utc) - timedelta(seconds=ended.seconds)
    lost = replace(run, command=name, started_at=began, warnings=[])
    error = {"code": OpsError.code, "message": ended.problem, "hint": []}
    document = envelope(lost, ended.exit_code, error=error)
    return {**document, "seconds": round(ended.seconds, 3)}


def _report(run: Run, name: str, reporting: Mapping[str, Any], ended: "Ended") -> None:
    """Report the end of a run that could not: to all that its options name."""
    try:
        reporter = find_reporter(replace(run, command=name), reporting)
    except OpsError as error:  # a URL of a variable is no URL
        run.terminal.warning(f"run of {name}: not reported: {error.message}")
        return
    if reporter:
        lost = _lost(run, name, ended)
        reporter.end(lost, ended.seconds, [f"error: {ended.problem}"])


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _utc(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
