"""`notify`: test the notifications of failed runs."""

import socket
from pathlib import Path
from typing import Annotated, Any

from sagewai_ops.cli.command import Outcome, Run, command, envelope
from sagewai_ops.cli.options import REPORTING, DryRunOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.errors import RemoteError, UsageError

HELP = """Send a test message to every URL that is notified.

Without options, to those of `backup`: of its variables, or of the configuration.

Exit status:
  0   sent to all
  2   no URL, or an invalid or unreadable one
  19  not sent to all
"""
_HINT = "sagewai-ops notify test --notify-file FILE  # with this URL alone"
_OF_BACKUP = "SAGEWAI_OPS_BACKUP_"


@command("notify test", HELP, result="sagewai_ops.notify.notification:Delivered", changes=True)
def notify_test(
    run: Run,
    *,
    notify: Annotated[
        list[str] | None, option(REPORTING, "--notify", "URL; repeatable; a secret.", "URL")
    ] = None,
    notify_file: Annotated[
        Path | None, option(REPORTING, "--notify-file", "File with URLs, one a line.", "FILE")
    ] = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Parse, send, render."""
    from sagewai_ops.notify.notification import (
        Delivered,
        Delivery,
        build_message,
        describe_target,
        send,
    )
    from sagewai_ops.notify.reporter import read_notify_urls

    problems: list[str] = []
    if not (notify or notify_file):
        notify, notify_file = _of_backup(run)
    urls = read_notify_urls(notify or (), notify_file, problems.append)
    if problems:
        raise UsageError(problems[0])
    if not urls:
        raise UsageError(
            "notify test: no URL is given, nor one for backup",
            hint="sagewai-ops notify test --notify-file FILE",
        )
    names = [describe_target(url) for url in urls]
    if dry_run:
        return plan_outcome(f"send a {name}" for name in names)
    message = build_message(envelope(run, 0), socket.gethostname(), recovered=False)
    found = [Delivery(name, send(url, message)) for name, url in zip(names, urls, strict=True)]
    failed = [delivery for delivery in found if delivery.problem]
    error = None
    if failed:
        error = RemoteError(f"{failed[0].target}: {failed[0].problem}", hint=_HINT)

    def show(terminal: Any) -> None:
        for delivery in found:
            terminal.line(f"{delivery.target}: {delivery.problem or 'sent'}")

    return Outcome(
        Delivered(tuple(found)),
        show,
        exit_code=error.exit_code if error else 0,
        always=True,
        error=error,
    )


def _of_backup(run: Run) -> tuple[list[str], Path | None]:
    """Return the URLs and the file of `backup`, of its variables or the configuration."""
    configured = (run.context.find_root().default_map or {}).get("backup") or {}
    environment = run.settings.environment
    file = environment.get(_OF_BACKUP + "NOTIFY_FILE") or configured.get("notify_file")
    return environment.get(_OF_BACKUP + "NOTIFY", "").split(), Path(file) if file else None


COMMANDS = (notify_test,)
