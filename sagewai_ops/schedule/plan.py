"""What a schedule runs, and when."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.schedule.template import refuse_control

NAME = "sagewai-ops-backup"
# Options of `backup` whose file holds a secret, with the name of the secret in a schedule.
SECRET_FILES = {
    "--ping-url-file": "ping-url",
    "--notify-file": "notify",
    "--passphrase-file": "passphrase",
    "--url-file": "database-url",
}
_INPUT_FILES = (*SECRET_FILES, "--recipients-file")
_OUTPUT_FILES = ("--metrics-file", "--log-file")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a schedule."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """The files of a schedule, and the directory that they were written to."""

    files: tuple[File, ...]
    into: Path | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A nightly backup.

    Attributes:
        program: The absolute path of sagewai-ops.
        home: As the user of the schedule sees it.
        snapshots: The snapshot directory.
        words: Further options of `backup`, checked.
        hour, minute: In the time zone of the system; in containers UTC.
        user: That runs the backup; "" for the one that installs the schedule.
        online: The backup sends something: it has a ping URL, the database is on a server, or a
            snapshot goes to a remote place.
        directories: That get snapshots, on this machine.
        secrets: Name -> file, of the options with secrets.
    """

    program: Path
    home: Path
    snapshots: Path
    words: tuple[str, ...] = ()
    hour: int = 3
    minute: int = 30
    user: str = ""
    online: bool = False
    directories: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check every text, and find the files with secrets among the options.

        Raises:
            UsageError: A text has a control character.
        """
        for text in (self.program, self.home, self.snapshots, *self.words, self.user):
            refuse_control(str(text), "a schedule")
        secrets = {
            SECRET_FILES[option]: value
            for option, value in parse_options(self.words)
            if option in SECRET_FILES and value
        }
        object.__setattr__(self, "secrets", secrets)

    def options(self, secret_path: Callable[[str], str] | None = None) -> list[str]:
        """Return the options of `backup`.

        Args:
            secret_path: Returns the path of a secret while the backup runs, from its name; None
                for the path that the option has.
        """
        words = []
        for option, value in parse_options(self.words):
            words.append(option)
            if value is not None:
                secret = SECRET_FILES.get(option)
                words.append(secret_path(secret) if secret and secret_path else value)
        return words

    def input_files(self) -> list[str]:
        """Return the files that a backup reads."""
        return [
            value for option, value in parse_options(self.words) if option in _INPUT_FILES and value
        ]

    def output_directories(self) -> list[str]:
        """Return the directories besides home and snapshots to which a backup writes."""
        return [
            str(Path(value).parent)
            for option, value in parse_options(self.words)
            if option in _OUTPUT_FILES and value and value != "-"
        ]


def parse_options(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return the options of a command line with their values, None for an option without one.

    Raises:
        UsageError: A word is neither an option nor its value.
    """
    options: list[tuple[str, str | None]] = []
    for word in words:
        if word.startswith("-") and word != "-":
            option, equals, value = word.partition("=")
            options.append((option, value if equals else None))
        elif options and options[-1][1] is None:
            options[-1] = (options[-1][0], word)
        else:
            raise UsageError(f"{word}: not an option of backup", hint="sagewai-ops backup --help")
    return options


def parse_time(text: str) -> tuple[int, int]:
    """Return hour and minute of a time HH:MM.

    Raises:
        UsageError: The text is not a time of day.
    """
    digits = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})", text)
    hour, minute = map(int, digits.groups()) if digits else (24, 0)
    if hour > 23 or minute > 59:
        raise UsageError(f"--time {text}: not a time of day", hint="--time 03:30")
    return hour, minute
