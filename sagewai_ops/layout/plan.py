"""Plan how the four files of the older, flat layout move to their present paths.

With one file and no conflict the result is the same as Sagewai's. Where Sagewai would lose data it
differs: a link is replaced by its target, of two different documents the newer is used and the
other kept next to it, of two different keys the one that Sagewai uses stays, and any other obstacle
is kept too. Only a second equal copy, or a link whose target has been moved, is removed. Planning
changes nothing; `journal` executes plans.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from enum import Enum
from pathlib import Path

from sagewai_ops.errors import UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.fs.trust import owned_target
from sagewai_ops.home.paths import (
    ADMIN_STATE,
    LEGACY_MASTER_KEY,
    LEGACY_PLACES,
    SIDECAR_SUFFIXES,
    Home,
)
from sagewai_ops.layout.steps import Step, Steps
from sagewai_ops.permissions.attributes import read_key_length
from sagewai_ops.permissions.rules import KEY_CHARACTERS
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

# Variables that, when not empty, make Sagewai leave a legacy file where it is.
MANAGED_BY = {
    "admin-state.json": ("SAGEWAI_ADMIN_STATE_FILE", "SAGEWAI_ADMIN_STATE"),
    "connections.json": ("SAGEWAI_CONNECTIONS_FILE",),
}
_ALIAS = "SAGEWAI_ADMIN_STATE"
_SERVER_VARIABLE = "SAGEWAI_ADMIN_STATE_FILE"
_ROOT_DATABASE = "sagewai.db"
_MOMENT = "%Y%m%dT%H%M%SZ"
_CHUNK_BYTES = 1 << 20


class Action(str, Enum):
    """What happens to one of the four files."""

    MOVE = "move"  # to its free place
    REPLACE = "replace"  # it is the newer: to its place, the present file is kept
    KEEP = "keep"  # the file in its place stays, this one is kept
    REMOVE = "remove"  # the file in its place is equal, or is the target of this link
    MANAGED = "managed"  # a variable names another path for the document
    LEAVE = "leave"  # it is not a file, or a broken link


@dataclass(frozen=True, slots=True)
class Item:
    """One of the four files, found at the root of the home.

    Attributes:
        name: At the root.
        place: Its present relative path.
        detail: The reason, or a peculiarity; may be empty.
        kept: Relative path of the file that is kept.
    """

    name: str
    place: str
    action: Action
    detail: str = ""
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a migration.

    Attributes:
        steps: In their order.
        left: Path -> reason, for files that stay at the root and should not.
        notes: One line each.
    """

    items: tuple[Item, ...]
    steps: tuple[Step, ...]
    left: Mapping[str, str]
    notes: tuple[str, ...]


def plan_layout(
    home: Home, environment: Mapping[str, str], moment: datetime, *, is_split: bool = False
) -> Plan:
    """Return the plan for a home.

    Args:
        environment: Variables can name another path for a document.
        moment: UTC; in the names of kept files.
        is_split: Copy instead of moving: a move between directories was refused.

    Raises:
        UsageError: `config` or `secrets` is not a directory, so nothing can be moved there.
        PermissionDeniedError: A document is not readable.
    """
    text = f"{moment:{_MOMENT}}"
    planner = _Planner(home.root, text, Steps(home.root, text, is_split=is_split))
    planner.notes += _alias_notes(home.root, environment)
    items: list[Item] = []
    left: dict[str, str] = {}
    for name, place in LEGACY_PLACES.items():
        if not os.path.lexists(home.root / name):
            continue
        variables = MANAGED_BY.get(name, ())
        variable = next((word for word in variables if environment.get(word)), "")
        if variable:
            items.append(Item(name, place, Action.MANAGED, f"{variable} is set"))
            read = home.admin_state if place == ADMIN_STATE else home.connections
            if variable != _ALIAS and not os.path.exists(read):
                planner.notes.append(
                    f"{variable} names {read}, which does not exist, so Sagewai starts without it;"
                    f" {name} stays where it is"
                )
            continue
        item = planner.item(name, place)
        items.append(item)
        if item.action is Action.LEAVE:
            left[name] = item.detail
    database = home.root / _ROOT_DATABASE
    for suffix in ("", *SIDECAR_SUFFIXES):
        if os.path.lexists(f"{database}{suffix}"):
            left[_ROOT_DATABASE + suffix] = (
                "a database at the root: Sagewai reads db/sagewai.db and never this one"
            )
    return Plan(tuple(items), tuple(planner.steps.all), left, tuple(planner.notes))


def _alias_notes(root: Path, environment: Mapping[str, str]) -> list[str]:
    """Return a note if the commands and the server of Sagewai read different states."""
    alias, server = environment.get(_ALIAS), environment.get(_SERVER_VARIABLE)
    if not alias or alias == server:
        return []
    read = server or str(root / LEGACY_PLACES["admin-state.json"])
    note = f"{_ALIAS} names {alias}, but Sagewai's server reads {read}"
    if not os.path.exists(read):
        note += ", which does not exist, so it starts empty"
    return [f"{note}; set {_SERVER_VARIABLE}"]


@dataclass(slots=True)
class _Planner:
    root: Path
    moment: str
    steps: Steps
    notes: list[str] = field(default_factory=list)

    def item(self, name: str, place: str) -> Item:
        """Plan one document."""
        legacy, target = self.root / name, self.root / place
        real, reason = _regular(legacy, self.root)
        if real is None:
            return Item(name, place, Action.LEAVE, reason)
        self._require_directory(target.parent)
        if not os.path.lexists(target):
            self._plan_content(name, real, place)
            return Item(name, place, Action.MOVE, self._detail(name, real))
        there, obstacle = _regular(target, self.root)
        if there is None:
            kept = self._plan_kept(place)
            self._plan_content(name, real, place)
            return Item(name, place, Action.REPLACE, f"{place} {obstacle}", kept)
        if os.path.samefile(real, there):
            return self._same(name, place, real)
        if _is_equal(real, there):
            self._narrow(place)
            self.steps.discard(name)
            if real != legacy:
                self.notes.append(f"{real}: still holds a copy of {place}")
            return Item(name, place, Action.REMOVE, f"equal to {place}")
        if self._is_preferred(name, real, there):
            self._narrow(place)
            kept = self._plan_kept(place)
            self._plan_content(name, real, place)
            why = "newer" if name != LEGACY_MASTER_KEY else f"{place} was not a key"
            return Item(name, place, Action.REPLACE, why, kept)
        self._narrow(place)
        kept = self._free_name(place)
        self._plan_content(name, real, kept)
        why = "not newer" if name != LEGACY_MASTER_KEY else "another key than the one in use"
        return Item(name, place, Action.KEEP, why, kept)

    def _same(self, name: str, place: str, real: Path) -> Item:
        """Plan for two names of one file: a link to the other, or hard links."""
        if (self.root / place).is_symlink() and not (self.root / name).is_symlink():
            self.steps.discard(place)
            self._plan_content(name, real, place)
            return Item(name, place, Action.MOVE, f"{place} was a link to it")
        if (self.root / place).is_symlink():
            # Both are links to a third file.
            self.steps.discard(place)
            self._plan_content(name, real, place)
            return Item(name, place, Action.MOVE, f"both were links to {real}")
        self._narrow(place)
        self.steps.discard(name)
        return Item(name, place, Action.REMOVE, f"another name of {place}")

    def _plan_content(self, name: str, real: Path, destination: str) -> None:
        """Plan to move the content to the destination and to remove the name."""
        legacy = self.root / name
        stays = self.steps.move_content(name, real, destination)
        if real != legacy:
            self.steps.discard(name)
            if stays:
                self.notes.append(f"{real}: copied, and still there with its secrets")
        elif stays:
            self.steps.discard(name)

    def _plan_kept(self, place: str) -> str:
        kept = self._free_name(place)
        self.steps.move(place, kept)
        return kept

    def _free_name(self, place: str) -> str:
        kept, number = f"{place}.legacy-{self.moment}", 1
        while os.path.lexists(self.root / kept):
            number += 1
            kept = f"{place}.legacy-{self.moment}-{number}"
        return kept

    def _narrow(self, place: str) -> None:
        """Plan a private mode for the file in a place."""
        if not (self.root / place).is_symlink() and not self.steps.narrow(place):
            self.notes.append(f"{place}: has other names (hard links), its mode is unchanged")

    def _detail(self, name: str, real: Path) -> str:
        return f"was a link to {real}" if real != self.root / name else ""

    def _is_preferred(self, name: str, real: Path, there: Path) -> bool:
        """Return whether the legacy file replaces the one in its place."""
        if name == LEGACY_MASTER_KEY:
            # The time of a key is no evidence of what it opens. Sagewai uses the one in place; if
            # that is not a key, it would overwrite it.
            return not _is_key(there) and _is_key(real)
        return real.stat().st_mtime_ns > there.stat().st_mtime_ns

    def _require_directory(self, directory: Path) -> None:
        if beneath.exists(directory):
            if stat.S_ISDIR(beneath.status(directory).st_mode):
                return
            reason = "a symlink" if directory.is_symlink() else "not a directory"
            raise UsageError(
                f"{directory}: {reason}",
                hint=f"ls -ld {shell_word(directory)}  # then move it away, or mount it",
            )
        self.steps.directory(directory.relative_to(self.root).as_posix())


def _regular(path: Path, root: Path) -> tuple[Path | None, str]:
    """Return the regular file that a path names, through links to files of the home's owner.

    Returns:
        (the file, or None; the reason for None).

    Raises:
        PermissionDeniedError: Its target is not readable.
    """
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        # It may be the only copy of a document: nothing is planned without reading it.
        raise from_os_error(error, path) from error
    except OSError:
        return None, f"broken link to {_target_of(path)}"
    if not stat.S_ISREG(mode):
        return None, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
    return owned_target(path, beneath.status(root).st_uid)


def _target_of(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "not readable"


def _is_key(path: Path) -> bool:
    return read_key_length(os.fspath(path), None)[0] == KEY_CHARACTERS


def _is_equal(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with (
        open(beneath.open_file(first), "rb") as stream,
        open(beneath.open_file(second), "rb") as other,
    ):
        while chunk := stream.read(_CHUNK_BYTES):
            if chunk != other.read(_CHUNK_BYTES):
                return False
    return True
