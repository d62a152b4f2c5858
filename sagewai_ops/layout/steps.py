"""The steps of a layout migration, each of which can be undone.

Paths are relative to the home. Copies and directories are made first; then moves within one file
system and changes of mode change the home. A file to be removed is first renamed to a name of our
own, and removed after all other steps.
"""

import os
import stat
from enum import Enum
from pathlib import Path

from sagewai_ops.home.paths import LEGACY_PLACES, OWN_PREFIX
from sagewai_ops.permissions.rules import OTHERS, PRIVATE_FILE
from sagewai_ops.records import dataclass

PREFIX = f"{OWN_PREFIX}layout-"


class StepKind(str, Enum):
    """The kind of a step."""

    DIRECTORY = "folder"  # make it
    COPY = "copy"  # to a name of our own; the source may be outside the home
    MODE = "mode"
    MOVE = "move"


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        source: Absolute for a copy from outside the home; else relative.
        target: The directory, the copy, the new name; empty for a mode.
        inode: Of the source; 0 for what does not exist yet.
        before: The previous mode.
        mode: The new mode.
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
    """The steps of a plan, in the making.

    Args:
        root: The home.
        moment: In the names of temporary files.
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

    def narrow(self, path: str) -> bool:
        """Set a private mode, if others have access or the owner has none.

        Returns:
            False for a file with several names, whose mode is never changed.
        """
        status = os.lstat(self.root / path)
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISREG(status.st_mode) and (mode & OTHERS or not mode & stat.S_IRUSR):
            if status.st_nlink > 1:
                return False
            step = Step(StepKind.MODE, path, inode=status.st_ino, before=mode, mode=PRIVATE_FILE)
            self.all.append(step)
        return True

    def move(self, path: str, target: str, *, removes: bool = False) -> None:
        """Rename an entry on its file system."""
        inode = os.lstat(self.root / path).st_ino
        self.all.append(Step(StepKind.MOVE, path, target, inode, removes=removes))

    def discard(self, path: str) -> None:
        """Rename an entry, to be removed at the end."""
        self.move(path, self._own_name(path), removes=True)

    def move_content(self, name: str, real: Path, destination: str) -> bool:
        """Move the content of a file to a destination, or copy it where it cannot be moved.

        Args:
            name: Its legacy name, or that of the link to it.

        Returns:
            Whether the file itself stays in its place.
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
        """Return whether a file can be moved: in the home, on its file system, no other's place."""
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
