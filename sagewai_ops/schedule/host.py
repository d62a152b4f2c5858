"""Ready-made schedules for `backup`: systemd units, a crontab; for containers see beside.

Whoever prints one gets text to read, change and install; nothing here touches the system. Secrets
never stand in it: options that name a file with one are handed over in the way of each system.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sagewai_ops.errors import UsageError
from sagewai_ops.text import shell_word

NAME = "sagewai-ops-backup"
# Options of `backup` whose file holds a secret, and what the secret is called elsewhere.
SECRET_FILES = {"--ping-url-file": "ping-url", "--passphrase-file": "passphrase"}
_WRITTEN_FILES = ("--metrics-file", "--log-file")
_JITTER = "15min"  # so that a hundred hosts do not call one store at once
_LONGEST_RUN = "6h"
_NEEDS_OF_ROOT = "CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_CHOWN CAP_FOWNER"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a schedule and where it belongs."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run, and when.

    Attributes:
        program: The absolute path of sagewai-ops.
        home: As the schedule's user sees it.
        snapshots: The directory that a backup goes into.
        words: Further options of `backup`, checked.
        hour, minute: In the time zone of the system; of containers in UTC.
        user: Who runs it; "" for whoever it is installed for.
    """

    program: Path
    home: Path
    snapshots: Path
    words: tuple[str, ...] = ()
    hour: int = 3
    minute: int = 30
    user: str = ""
    secrets: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the files with secrets among the words."""
        found = {SECRET_FILES[word]: value for word, value in pairs(self.words)
                 if word in SECRET_FILES and value}  # fmt: skip
        object.__setattr__(self, "secrets", found)

    def options(self, place: Callable[[str], str] | None = None) -> list[str]:
        """Give the options of `backup`.

        Args:
            place: Where a secret's file is when the command runs, by its name; None for as given.
        """
        found = []
        for word, value in pairs(self.words):
            found.append(word)
            if value is not None:
                secret = SECRET_FILES.get(word)
                found.append(place(secret) if secret and place else value)
        return found

    def written(self) -> list[str]:
        """Name the directories besides home and snapshots that a run writes to."""
        return [
            str(Path(value).parent)
            for word, value in pairs(self.words)
            if word in _WRITTEN_FILES and value and value != "-"
        ]


def pairs(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Cut a command line into options and their values; an option without one has None.

    `--option=value` becomes two, so that both spellings are found.
    """
    found: list[tuple[str, str | None]] = []
    for word in words:
        if word.startswith("-") and word != "-":
            option, equals, value = word.partition("=")
            found.append((option, value if equals else None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], word)
        else:
            raise UsageError(f"{word}: is no option of backup", hint="sagewai-ops backup --help")
    return found


def time_of(text: str) -> tuple[int, int]:
    """Read HH:MM.

    Raises:
        UsageError: It is no time of a day.
    """
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    hour, minute = map(int, found.groups()) if found else (24, 0)
    if hour > 23 or minute > 59:
        raise UsageError(f"--time {text}: is no time of a day", hint="such as --time 03:30")
    return hour, minute


def systemd(plan: Plan) -> list[File]:
    """Write a service and its timer, for the system's manager."""
    command = [
        str(plan.program), "--home", str(plan.home), "backup", "--snapshots", str(plan.snapshots),
        *plan.options(lambda name: f"\0CREDENTIALS_DIRECTORY\0/{name}"),
    ]  # fmt: skip
    writable = [str(plan.home), str(plan.snapshots), *plan.written()]
    service = [
        *_install_note(plan, "systemd"),
        "[Unit]",
        "Description=Snapshot of the Sagewai home",
        "Documentation=man:sagewai-ops-backup(1)",
        f"RequiresMountsFor={_paths(writable)}",
        "",
        "[Service]",
        "Type=oneshot",
        *([f"User={plan.user}"] if plan.user else []),
        f"ExecStart={' '.join(map(_systemd_word, command))}",
        f"TimeoutStartSec={_LONGEST_RUN}",
        *(f"LoadCredential={name}:{_specifiers(path)}" for name, path in plan.secrets.items()),
        "UMask=0077",
        "Nice=10",
        "IOSchedulingClass=best-effort",
        "IOSchedulingPriority=7",
        "",
        "# It writes to the home (locks), the snapshots and nothing else.",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        f"ReadWritePaths={_paths(writable)}",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "NoNewPrivileges=yes",
        f"CapabilityBoundingSet={_NEEDS_OF_ROOT if plan.user in ('', 'root') else ''}",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelLogs=yes",
        "ProtectControlGroups=yes",
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "LockPersonality=yes",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
    ]
    timer = [
        "[Unit]",
        "Description=Nightly snapshot of the Sagewai home",
        "Documentation=man:sagewai-ops-schedule-systemd(1)",
        "",
        "[Timer]",
        f"OnCalendar=*-*-* {plan.hour:02}:{plan.minute:02}:00",
        f"RandomizedDelaySec={_JITTER}",
        "# After a night that the machine slept through, it runs when it wakes.",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return [
        File(f"{NAME}.service", "\n".join(service) + "\n"),
        File(f"{NAME}.timer", "\n".join(timer) + "\n"),
    ]


def cron(plan: Plan) -> list[File]:
    """Write a crontab; with a user it is one for /etc/cron.d, which has a column for him."""
    command = shlex.join([
        str(plan.program), "--home", str(plan.home), "backup", "--snapshots", str(plan.snapshots),
        *plan.options(),
    ])  # fmt: skip
    if "\n" in command:
        raise UsageError("a path has a line end in it, which no crontab can hold")
    user = f"{plan.user} " if plan.user else ""
    # cron takes a % for a line end, also inside quotes.
    escaped = command.replace("%", "\\%")
    text = [
        *_install_note(plan, "cron"),
        "# Silent when all is well; what is written otherwise is mailed to MAILTO.",
        f"{plan.minute} {plan.hour} * * * {user}{escaped}",
    ]
    return [File(NAME, "\n".join(text) + "\n")]


def _install_note(plan: Plan, kind: str) -> list[str]:
    """Say where the text goes, and what must be there first."""
    owner = f" -o {shlex.quote(plan.user)}" if plan.user else ""
    places = {
        "systemd": [
            f"# Both units go to /etc/systemd/system/; then: systemctl enable --now {NAME}.timer",
        ],
        "cron": [
            f"# This goes to /etc/cron.d/{NAME}" if plan.user else "# This goes into: crontab -e",
        ],
    }
    directory = shell_word(plan.snapshots)
    return [
        *places[kind],
        f"# The directory must be there first: install -d -m 0700{owner} {directory}",
    ]


def _systemd_word(word: str) -> str:
    """Quote one word of ExecStart: systemd.service(5), COMMAND LINES."""
    text = _specifiers(word).replace("$", "$$").replace("\0CREDENTIALS_DIRECTORY\0",
                                                         "${CREDENTIALS_DIRECTORY}")  # fmt: skip
    if re.fullmatch(r"[\w@%+=:,./${}-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _paths(paths: Sequence[str]) -> str:
    """Quote a list of paths: systemd.syntax(7)."""
    return " ".join(_systemd_word(path).replace("$$", "$") for path in dict.fromkeys(paths))


def _specifiers(text: str) -> str:
    """Keep a % from being a specifier: systemd.unit(5)."""
    if "\n" in text:
        raise UsageError("a path has a line end in it, which no unit should hold")
    return text.replace("%", "%%")
