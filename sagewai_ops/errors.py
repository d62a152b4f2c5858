"""What can go wrong, each with the exit code that scripts rely on (docs/exit-codes.md).

The library raises these and nothing else on purpose; `cli` alone turns them into two lines and an
exit. A message names the thing, what is wrong with it and the value met; never a secret.
"""

from typing import ClassVar

EXIT_DONE = 0
EXIT_INCOMPLETE = 3  # done, but named files or rows were not carried
EXIT_FINDINGS = 4  # a check found something
EXIT_READER_GONE = 141  # 128 and SIGPIPE, as a shell reports it


class OpsError(Exception):
    """A failure that the person who ran the command can act on.

    Args:
        message: `<thing>: <what is wrong>, <value met>`; lower case, no full stop.
        hint: What to do next, one command or sentence per line; where it is empty, `advice` holds.

    Attributes:
        advice: What helps against errors of this class where nothing more is known.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"
    advice: ClassVar[str] = "look at what is there: sagewai-ops status"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def next_step(self) -> str:
        """What to do next; empty only after an interruption."""
        return self.hint or self.advice


class UsageError(OpsError):
    """The options contradict each other or the situation; nothing was touched."""

    exit_code: ClassVar[int] = 2
    code: ClassVar[str] = "usage"
    advice: ClassVar[str] = "sagewai-ops --help"


class NotFoundError(OpsError):
    """A home, snapshot or revision does not exist."""

    exit_code: ClassVar[int] = 10
    code: ClassVar[str] = "not-found"


class LockedError(OpsError):
    """Another run holds the lock."""

    exit_code: ClassVar[int] = 11
    code: ClassVar[str] = "locked"
    advice: ClassVar[str] = "wait for it: --wait SECONDS"


class KeyMissingError(OpsError):
    """A master key, identity or passphrase is missing or does not open what it should."""

    exit_code: ClassVar[int] = 12
    code: ClassVar[str] = "key-missing"
    advice: ClassVar[str] = "sagewai-ops keys check"


class NoSpaceError(OpsError):
    """The disk is full, or would be."""

    exit_code: ClassVar[int] = 13
    code: ClassVar[str] = "no-space"
    advice: ClassVar[str] = "free some space, then run it again"


class PermissionDeniedError(OpsError):
    """The operating system refused."""

    exit_code: ClassVar[int] = 14
    code: ClassVar[str] = "permission-denied"
    advice: ClassVar[str] = "run it as the user whom it belongs to"


class TargetBusyError(OpsError):
    """The target is not empty, or a running process uses it."""

    exit_code: ClassVar[int] = 15
    code: ClassVar[str] = "target-busy"
    advice: ClassVar[str] = "stop what uses it, or name another target"


class DamagedError(OpsError):
    """A checksum, a database or an archive is not what it must be."""

    exit_code: ClassVar[int] = 16
    code: ClassVar[str] = "damaged"
    advice: ClassVar[str] = "an older snapshot may be whole: sagewai-ops snapshots list"


class SchemaBehindError(OpsError):
    """A schema is older than what the command needs."""

    exit_code: ClassVar[int] = 17
    code: ClassVar[str] = "schema-behind"
    advice: ClassVar[str] = "sagewai-ops db upgrade"


class SchemaAheadError(OpsError):
    """A schema or a format is newer than this program, or unknown to it."""

    exit_code: ClassVar[int] = 18
    code: ClassVar[str] = "schema-ahead"
    advice: ClassVar[str] = "use a newer sagewai-ops"


class RemoteError(OpsError):
    """A server or the network failed."""

    exit_code: ClassVar[int] = 19
    code: ClassVar[str] = "remote"
    advice: ClassVar[str] = "look after the server, then run it again"


class DifferenceError(OpsError):
    """A copy differs from its source."""

    exit_code: ClassVar[int] = 20
    code: ClassVar[str] = "difference"
    advice: ClassVar[str] = "sagewai-ops db check"


class InterruptedRunError(OpsError):
    """A signal stopped the run; partial files are removed.

    Args:
        signal_number: The signal met; the exit code is 128 more, as a shell reports it.
        words: What is to be known of it, where that is more than that nothing is left.
    """

    code: ClassVar[str] = "interrupted"
    advice: ClassVar[str] = ""  # who stopped it knows what is next

    def __init__(self, signal_number: int, words: str = "partial files are removed") -> None:
        super().__init__(f"interrupted by signal {signal_number}, {words}")
        self.signal_number = signal_number


def kind_with(exit_code: int) -> type[OpsError]:
    """Find the class of errors that ends a run with an exit code."""
    kinds = (kind for kind in OpsError.__subclasses__() if kind is not InterruptedRunError)
    return next((kind for kind in kinds if kind.exit_code == exit_code), OpsError)
