"""The steps that a migration of the layout consists of, each of which can be taken back.

Paths are relative to the home. A copy and a directory are made before anything else; what then
changes the home are moves within one file system and changes of mode. What is to be removed is
moved to a name of our own first, and removed when everything else is done.
"""

import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sagewai_ops.home.paths import LEGACY_PLACES, OWN_PREFIX
from sagewai_ops.permissions.rules import OTHERS, PRIVATE_FILE

PREFIX = f"{OWN_PREFIX}layout-"


class StepKind(str, Enum):
    """What a step does."""

    DIRECTORY = "folder"  # make it
    COPY = "copy"  # to a name of our own; the source may be outside of the home
    MODE = "mode"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        source: Of a copy outside of the home, absolute; else relative.
        target: The directory, the copy, the new name; empty for a mode.
        inode: Of the source; 0 for what does not exist yet.
        before: The mode that there was.
        mode: The mode that is set.
        removes: Whether the target is removed at the end.
    """

    kind: StepKind
    source: str = ""
    target: str = ""
    inode: int = 0
    before: int = 0
    mode: int = 0
    removes: bool = False


class Steps:
    """Collects the steps of a plan.

    Args:
        root: The home.
        moment: Names what is temporary.
        is_split: Whether a rename between two directories failed though the device is the same, as
            between two mounts of one file system; then everything is copied.
    """

    def __init__(self, root: Path, moment: str, *, is_split: bool = False) -> None:
        self.root = root
        self._is_split = is_split
        self.all: list[Step] = []
        self._moment = moment
        self._claimed: set[str] = set()

    def directory(self, path: str) -> None:
        """Make a directory, once."""
        step = Step(StepKind.DIRECTORY, target=path)
        if step not in self.all:
            self.all.append(step)

    def narrow(self, path: str) -> None:
        """Give a file a private mode, if it lets others in or its owner out."""
        status = os.lstat(self.root / path)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISREG(status.st_mode) and (mode & OTHERS or not mode & stat.S_IRUSR):
            step = Step(StepKind.MODE, path, inode=status.st_ino, before=mode, mode=PRIVATE_FILE)
            self.all.append(step)

    def move(self, path: str, target: str, *, removes: bool = False) -> None:
        """Give an entry another name on its file system."""
        inode = os.lstat(self.root / path).st_ino
        self.all.append(Step(StepKind.MOVE, path, target, inode, removes=removes))

    def discard(self, path: str) -> None:
        """Move an entry away, to be removed at the end."""
        self.move(path, self._own_name(path), removes=True)

    def bring(self, name: str, real: Path, destination: str) -> bool:
        """Bring a file's content to a destination, by a move where that can be done.

        Args:
            name: The legacy name that it has, or that leads to it.

        Returns:
            Whether the file itself stays where it is.
        """
        if self._can_move(name, real, destination):
            path = real.relative_to(self.root).as_posix()
            self._claimed.add(path)
            self.narrow(path)
            self.move(path, destination)
            return False
        between = self._own_name(destination)
        self.all.append(Step(StepKind.COPY, os.fspath(real), between))
        self.all.append(Step(StepKind.MOVE, between, destination))
        return True

    def _can_move(self, name: str, real: Path, destination: str) -> bool:
        """Tell whether a file is ours to move: in the home, on the file system, nobody's place."""
        if self._is_split or not real.is_relative_to(self.root):
            return False
        path = real.relative_to(self.root).as_posix()
        directory = (self.root / destination).parent
        device = (directory if directory.exists() else self.root).stat().st_dev
        return (
            real.lstat().st_dev == device
            and path not in self._claimed
            and (path == name or path not in {*LEGACY_PLACES, *LEGACY_PLACES.values()})
        )

    def _own_name(self, path: str) -> str:
        directory, _, _name = path.rpartition("/")
        name = f"{PREFIX}{self._moment}-{len(self.all)}"
        return f"{directory}/{name}" if directory else name
