"""Schedules of a host: systemd units and a crontab.

They contain no secret: systemd passes the files of options with secrets as credentials.
"""

import re
import shlex
from collections.abc import Sequence

from sagewai_ops.errors import UsageError
from sagewai_ops.schedule.plan import NAME, File, Plan
from sagewai_ops.schedule.template import fill_template
from sagewai_ops.text import shell_word

_ROOT_CAPABILITIES = "CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER"
_CREDENTIALS = "\0"  # replaced by ${CREDENTIALS_DIRECTORY} after the word is escaped


def systemd(plan: Plan) -> list[File]:
    """Return a service and its timer, for the system manager."""
    command = _command(plan, plan.options(lambda name: f"{_CREDENTIALS}/{name}"))
    writable = [str(plan.home), str(plan.snapshots), *plan.output_directories()]
    service = fill_template(
        "systemd.service",
        {
            "owner": _owner(plan),
            "snapshots": shell_word(plan.snapshots),
            "writable": systemd_paths(writable),
            "user": [{"name": plan.user}] if plan.user else [],
            "command": " ".join(map(systemd_word, command)),
            "credentials": [
                {"name": name, "path": escape_specifiers(path)}
                for name, path in plan.secrets.items()
            ],
            "capabilities": _ROOT_CAPABILITIES if plan.user in ("", "root") else "",
        },
    )
    timer = fill_template("systemd.timer", {"time": f"{plan.hour:02}:{plan.minute:02}"})
    return [File(f"{NAME}.service", service), File(f"{NAME}.timer", timer)]


def cron(plan: Plan) -> list[File]:
    """Return a crontab; with a user it is one for /etc/cron.d, which has a column for the user."""
    text = fill_template(
        "crontab",
        {
            "place": f"Install in /etc/cron.d/{NAME}" if plan.user else "Add to: crontab -e",
            "owner": _owner(plan),
            "snapshots": shell_word(plan.snapshots),
            "minute": plan.minute,
            "hour": plan.hour,
            "user": f"{plan.user} " if plan.user else "",
            "command": crontab_command(_command(plan, plan.options())),
        },
    )
    return [File(NAME, text)]


def systemd_word(word: str) -> str:
    """Escape one word of ExecStart: systemd.service(5), COMMAND LINES."""
    text = escape_specifiers(word).replace("$", "$$")
    text = text.replace(_CREDENTIALS, "${CREDENTIALS_DIRECTORY}")
    if re.fullmatch(r"[\w@%+=:,./${}-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def systemd_paths(paths: Sequence[str]) -> str:
    """Escape a list of paths: systemd.syntax(7), where `$` is an ordinary character."""
    return " ".join(systemd_word(path).replace("$$", "$") for path in dict.fromkeys(paths))


def escape_specifiers(text: str) -> str:
    """Escape `%`, which begins a specifier: systemd.unit(5).

    Raises:
        UsageError: The text has a line break.
    """
    _refuse_line_break(text, "a unit")
    return text.replace("%", "%%")


def crontab_command(words: Sequence[str]) -> str:
    """Escape a command for the shell, and `%`, which is a line break to cron, also in quotes.

    Raises:
        UsageError: A word has a line break.
    """
    command = shlex.join(words)
    _refuse_line_break(command, "a crontab")
    return command.replace("%", "\\%")


def _refuse_line_break(text: str, place: str) -> None:
    if "\n" in text:
        raise UsageError(f"{text!r}: has a line break, not possible in {place}")


def _command(plan: Plan, options: list[str]) -> list[str]:
    home, snapshots = str(plan.home), str(plan.snapshots)
    return [str(plan.program), "--home", home, "backup", "--snapshots", snapshots, *options]


def _owner(plan: Plan) -> str:
    return f" -o {shlex.quote(plan.user)}" if plan.user else ""
