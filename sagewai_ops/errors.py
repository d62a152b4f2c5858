"""The errors of this program, each with its exit code (docs/exit-codes.md).

The library raises these and no others on purpose; only `cli` prints them, as two lines, and exits.
A message names the thing, its state and the value; never a secret.
"""

from typing import ClassVar

EXIT_DONE = 0
EXIT_INCOMPLETE = 3  # done, without the files or rows that are named
EXIT_FINDINGS = 4  # a check found something
EXIT_READER_GONE = 141  # 128 and SIGPIPE, as a shell reports it


class OpsError(Exception):
    """An error that the user can correct.

    Args:
        message: `<thing>: <state>`; lower case, no full stop.
        hint: The next commands, one per line; "" for `advice`.

    Attributes:
        advice: The default hint of the class.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"
    advice: ClassVar[str] = "sagewai-ops status"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def next_step(self) -> str:
        """The hint, or the advice of the class."""
        return self.hint or self.advice


class UsageError(OpsError):
    """The options contradict each other or the situation; nothing was changed."""

    exit_code: ClassVar[int] = 2
    code: ClassVar[str] = "usage"
    advice: ClassVar[str] = "sagewai-ops --help"


class NotFoundError(OpsError):
    """A home, snapshot or revision does not exist."""

    exit_code: ClassVar[int] = 10
    code: ClassVar[str] = "not-found"


class ExtensionMissingError(NotFoundError):
    """A PostgreSQL server has not installed an extension that tables need."""


class LockedError(OpsError):
    """Another run has locked it, or an interrupted one has to be recovered."""

    exit_code: ClassVar[int] = 11
    code: ClassVar[str] = "locked"
    advice: ClassVar[str] = "run it with --wait SECONDS"


class KeyMissingError(OpsError):
    """A master key, identity or passphrase is missing or wrong."""

    exit_code: ClassVar[int] = 12
    code: ClassVar[str] = "key-missing"
    advice: ClassVar[str] = "sagewai-ops keys check"


class NoSpaceError(OpsError):
    """A disk is full, or would be."""

    exit_code: ClassVar[int] = 13
    code: ClassVar[str] = "no-space"
    advice: ClassVar[str] = "df -h"


class PermissionDeniedError(OpsError):
    """The operating system denied permission."""

    exit_code: ClassVar[int] = 14
    code: ClassVar[str] = "permission-denied"
    advice: ClassVar[str] = "run it as the owner"


class TargetBusyError(OpsError):
    """The target is not empty, or is in use by a process."""

    exit_code: ClassVar[int] = 15
    code: ClassVar[str] = "target-busy"
    advice: ClassVar[str] = "sagewai-ops status"


class DamagedError(OpsError):
    """An archive, a database or another file is damaged."""

    exit_code: ClassVar[int] = 16
    code: ClassVar[str] = "damaged"
    advice: ClassVar[str] = "sagewai-ops snapshots list  # an older snapshot may be undamaged"


class NotAuthenticError(DamagedError):
    """A snapshot is forged, or not shown to be of this home; nothing is done with it."""

    code: ClassVar[str] = "not-authentic"


class SchemaBehindError(OpsError):
    """A schema is older than the command requires."""

    exit_code: ClassVar[int] = 17
    code: ClassVar[str] = "schema-behind"
    advice: ClassVar[str] = "sagewai-ops db upgrade"


class SchemaAheadError(OpsError):
    """A schema or a format is newer than this program, or unknown."""

    exit_code: ClassVar[int] = 18
    code: ClassVar[str] = "schema-ahead"
    advice: ClassVar[str] = "pip install --upgrade sagewai-ops"


class RemoteError(OpsError):
    """A server or the network failed."""

    exit_code: ClassVar[int] = 19
    code: ClassVar[str] = "remote"
    advice: ClassVar[str] = "check the server, then run it again"


class DifferenceError(OpsError):
    """A copy differs from its source."""

    exit_code: ClassVar[int] = 20
    code: ClassVar[str] = "difference"
    advice: ClassVar[str] = "sagewai-ops db check"


class InterruptedRunError(BaseException):
    """A signal stopped the run; partial files are removed.

    Not an `OpsError`, like `KeyboardInterrupt`: code that continues after the failure of a step
    would continue after a signal, and every later signal is ignored.

    Args:
        signal_number: Of the signal; the exit code is 128 more, as a shell reports it.
        words: The state after the interruption.
    """

    code: ClassVar[str] = "interrupted"
    next_step: ClassVar[str] = ""  # the interruption was intended
    LEAST_CODE: ClassVar[int] = 128  # and the number of the signal: as a shell reports it

    def __init__(self, signal_number: int, words: str = "partial files are removed") -> None:
        super().__init__(f"interrupted by signal {signal_number}, {words}")
        self.message = str(self)
        self.signal_number = signal_number


def error_class(exit_code: int) -> type[OpsError]:
    """Return the class of errors with an exit code."""
    classes = OpsError.__subclasses__()
    return next((kind for kind in classes if kind.exit_code == exit_code), OpsError)
