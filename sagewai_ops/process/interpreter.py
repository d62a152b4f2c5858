"""How this program starts Python again, also where the user cannot reach root's Python by its path.

A process that takes another user's rights may have been started with a Python below /root. Before,
it opens what the new process needs: the executable, the standard library and this package.
"""

import os
import sys
from contextlib import suppress
from dataclasses import field
from pathlib import Path

import sagewai_ops
from sagewai_ops.process.procfs import minimal_environment
from sagewai_ops.records import dataclass

_ROOT = os.fspath(Path(sagewai_ops.__file__).parents[1])
_descriptors: list[int] = []


@dataclass(frozen=True, slots=True)
class Interpreter:
    """How to start a program in Python: with `command`, `variables` and `descriptors`.

    Attributes:
        descriptors: The new process inherits them.
        root: The directory that `sagewai_ops` is imported from.
    """

    words: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=minimal_environment)
    descriptors: tuple[int, ...] = ()
    root: str = _ROOT

    def command(self, program: str) -> list[str]:
        """Return the command line that runs a program, which does not import from `""`."""
        return [*self.words, f"import sys\nsys.path[:] = filter(None, sys.path)\n{program}"]

    def module_command(self, name: str) -> list[str]:
        """Return the command line that runs `main` of one of our modules.

        It can import the standard library and this package, and nothing else.
        """
        return self.command(f"sys.path.append({self.root!r})\nfrom {name} import main\nmain()")


def keep_interpreter() -> None:
    """Open what `find_interpreter` needs, before this process takes another user's rights."""
    if not _descriptors:
        with suppress(OSError):
            for path, flags in ((sys.executable, 0), (sys.base_prefix, os.O_DIRECTORY), (_ROOT, 0)):
                _descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags))


def find_interpreter() -> Interpreter:
    """Return how to start Python, without the site's packages and from any current directory."""
    can_start = os.access(sys.executable, os.X_OK) and os.access(_ROOT, os.R_OK | os.X_OK)
    if can_start or len(_descriptors) < 3:
        return Interpreter((sys.executable, "-I", "-S", "-c"))
    program, prefix, root = (f"/proc/self/fd/{number}" for number in _descriptors)
    variables = {"PYTHONHOME": prefix, "LD_LIBRARY_PATH": f"{prefix}/lib"}
    return Interpreter(
        (program, "-s", "-S", "-c"),
        {**minimal_environment(), **variables},
        tuple(_descriptors),
        root,
    )
