"""The program of an engine: its version, a new repository, and the errors of a run."""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from sagewai_ops.engines.engine import MOST_FILE_BYTES, classify
from sagewai_ops.engines.process import Access, Finished, run_engine, shown
from sagewai_ops.errors import OpsError, TargetBusyError
from sagewai_ops.records import dataclass
from sagewai_ops.remote.address import REPOSITORY_VARIABLES, repository_address
from sagewai_ops.text import shell_word


@dataclass(frozen=True, slots=True)
class EngineProgram:
    """restic or borg with a repository, which its environment names.

    Args:
        limits: Options such as `--limit-upload=N`.
    """

    access: Access
    limits: tuple[str, ...] = ()

    version_word: ClassVar[str]
    versions: ClassVar[tuple[tuple[int, int], tuple[int, int], str]]  # oldest, unknown, in words
    init_words: ClassVar[tuple[str, ...]]
    exists_word: ClassVar[str]  # in a message of `init` where the repository exists
    hints: ClassVar[Mapping[type[OpsError], str]]  # with the repository as {}

    @property
    def name(self) -> str:
        """The name of the engine."""
        return self.access.program

    def require_version(self) -> None:
        """Check that it is one that this program knows."""
        finished = run_engine(self.access, [self.version_word], most_bytes=MOST_FILE_BYTES)
        match = re.match(rb"%s (\d+)\.(\d+)" % self.name.encode(), finished.output)
        hint = f"{self.name} {self.version_word}"
        if finished.code or match is None:
            raise OpsError(f"{self.name}: version unknown", hint=hint)
        oldest, unknown, words = self.versions
        found = (int(match[1]), int(match[2]))
        if not oldest <= found < unknown:
            raise OpsError(
                f"{self.name}: version {found[0]}.{found[1]}, {words} required", hint=hint
            )

    def initialise(self) -> None:
        """Create the repository."""
        finished = run_engine(self.access, self.init_words)
        if finished.code and any(self.exists_word in line for line in finished.messages):
            raise TargetBusyError(f"{self.name}: {shown(self._explain(finished)[0][0])}")
        self._check(finished)

    def _check(self, finished: Finished) -> Finished:
        # A warning of borg (1) is a failure too: what is stored or read is private to this run.
        if finished.code:
            raise self._failure(finished, *self._explain(finished))
        return finished

    def _explain(self, finished: Finished) -> tuple[Sequence[str], type[OpsError] | None]:
        """Return the messages of a run in clear, and the kind of its error where it names one."""
        raise NotImplementedError

    def _failure(
        self, finished: Finished, messages: Sequence[str], kind: type[OpsError] | None = None
    ) -> OpsError:
        """Return the error of a run that failed.

        Args:
            messages: In clear; the first is shown.
            kind: None to find it in the messages.
        """
        kind = kind or classify(messages)
        end = f"exit code {finished.code}" if finished.code >= 0 else f"signal {-finished.code}"
        first = next((line for line in messages if "fatal" in line.lower()), "")
        text = shown(first or next(iter(messages), "")) or "no message"
        named = self.access.environment.get(REPOSITORY_VARIABLES[self.name], "")
        repository = shell_word(repository_address(self.name, named).partition(":")[2])
        hint = self.hints.get(kind, "").format(repository)
        return kind(f"{self.name}: {text} ({end})", hint=hint)

    def _unknown(self, what: str) -> OpsError:
        hint = f"{self.name} {self.version_word}"
        return OpsError(f"{self.name}: {what} of an unknown form", hint=hint)
