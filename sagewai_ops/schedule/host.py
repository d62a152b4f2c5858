"""Schedules of a host: systemd units and a crontab.

They contain no secret: systemd passes the files of options with secrets as credentials.
"""

import re
import shlex
from collections.abc import Sequence

from sagewai_ops.errors import UsageError
from sagewai_ops.schedule.plan import NAME, File, Plan
from sagewai_ops.schedule.template import fill_template, flag, refuse_control
from sagewai_ops.text import shell_word

# As root, the program reads the home in a process that has become the home's owner; root's own
# process opens the files of options. Neither changes an owner.
_ROOT_CAPABILITIES = "CAP_DAC_READ_SEARCH CAP_KILL CAP_SETGID CAP_SETUID"
_CREDENTIALS = "\0"  # replaced by ${CREDENTIALS_DIRECTORY} after the word is escaped


def systemd(plan: Plan) -> list[File]:
    """Return a service and its timer, for the system manager."""
    command = _command(plan, plan.options(lambda name: f"{_CREDENTIALS}/{name}"))
    writable = [str(plan.home), *plan.directories, *plan.output_directories()]
    service = fill_template(
        "systemd.service",
        {
            "needs": _needs(plan),
            "drill": _drill(plan),
            "writable": systemd_paths(writable),
            "user": [{"name": plan.user}] if plan.user not in ("", "root") else [],
            "command": " ".join(map(systemd_word, command)),
            "credentials": [
                {"name": name, "path": _credential_path(path)}
                for name, path in plan.secrets.items()
            ],
            "capabilities": _ROOT_CAPABILITIES if plan.user in ("", "root") else "",
            "offline": flag(not plan.online),
            "families": "AF_UNIX AF_INET AF_INET6" if plan.online else "AF_UNIX",
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
            "needs": _needs(plan),
            "drill": _drill(plan),
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
        UsageError: The text has a control character.
    """
    refuse_control(text.replace(_CREDENTIALS, ""), "a unit")
    return text.replace("%", "%%")


def _credential_path(path: str) -> str:
    if path.endswith("\\"):  # which would join the next line
        raise UsageError(f"{path}: ends with a backslash, not possible in a unit")
    return escape_specifiers(path)


def crontab_command(words: Sequence[str]) -> str:
    """Escape a command for the shell, and `%`, which is a line break to cron, also in quotes.

    Raises:
        UsageError: A word has a control character.
    """
    command = shlex.join(words)
    refuse_control(command, "a crontab")
    return command.replace("%", "\\%")


def _command(plan: Plan, options: list[str]) -> list[str]:
    home, snapshots = str(plan.home), str(plan.snapshots)
    return [str(plan.program), "--home", home, "backup", "--snapshots", snapshots, *options]


def _drill(plan: Plan) -> str:
    """Return the command that proves the newest snapshot, for a shell."""
    words = [plan.program, "--home", plan.home, "drill", "--snapshots", plan.snapshots]
    return shlex.join([*map(str, words), "--require-authentic"])


def _needs(plan: Plan) -> str:
    """Return what has to be done once, before the first backup."""
    snapshots = shell_word(plan.snapshots)
    if str(plan.snapshots) in plan.directories:
        return f"The snapshot directory must exist: install -d -m 0700{_owner(plan)} {snapshots}"
    return f"The place must be initialised: sagewai-ops remote init {snapshots}"


def _owner(plan: Plan) -> str:
    return f" -o {shlex.quote(plan.user)}" if plan.user else ""
