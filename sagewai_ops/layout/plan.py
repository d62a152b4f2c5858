"""Plan how the four files of the older, flat layout get to their places of today.

Where there is one file and no doubt the outcome is Sagewai's own. Where Sagewai loses sight of
data, it is not: a link is replaced by what it leads to, of two different documents the newer stays
in place and the other is kept beside it, of two different keys the one that Sagewai uses stays,
and whatever else stands in the way is kept beside. Nothing but a second equal copy, or a link whose
content has been moved, is removed. Planning changes nothing; `layout_journal` carries plans out.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path

from sagewai_ops.errors import UsageError
from sagewai_ops.fs.os_errors import from_os_error
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
    """What happens to one of the four."""

    MOVE = "move"  # to its place, where nothing stands
    REPLACE = "replace"  # it is the newer: to its place, what stands there is kept beside
    KEEP = "keep"  # what stands in its place stays, this one is kept beside
    REMOVE = "remove"  # what stands in its place is equal, or is what it leads to
    MANAGED = "managed"  # a variable says where the document is
    LEAVE = "leave"  # it is no file, or leads nowhere


@dataclass(frozen=True, slots=True)
class Item:
    """One of the four that was found at the root of the home.

    Attributes:
        name: At the root.
        place: Relative path of its place today.
        detail: Why, or what is special; may be empty.
        kept: Relative path of what is kept beside; "" if nothing is.
    """

    name: str
    place: str
    action: Action
    detail: str = ""
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a migration does.

    Attributes:
        steps: In their order.
        left: Path -> reason, for what stays at the root and should not.
        notes: What the person must know, one line each.
    """

    items: tuple[Item, ...]
    steps: tuple[Step, ...]
    left: Mapping[str, str]
    notes: tuple[str, ...]


def plan_layout(
    home: Home, environment: Mapping[str, str], moment: datetime, *, is_split: bool = False
) -> Plan:
    """Look at a home and say what has to be done.

    Args:
        environment: Where variables say that a document is elsewhere.
        moment: UTC; names what is kept.
        is_split: Copy instead of moving: a move between directories was refused.

    Raises:
        UsageError: `config` or `secrets` is no directory, so that nothing can be moved there.
        PermissionDeniedError: A document may not be looked at.
    """
    text = f"{moment:{_MOMENT}}"
    planner = _Planner(home.root, text, Steps(home.root, text, is_split=is_split))
    planner.notes += _alias_notes(home.root, environment)
    items: list[Item] = []
    left: dict[str, str] = {}
    for name, place in LEGACY_PLACES.items():
        if not os.path.lexists(home.root / name):
            continue
        variable = next((one for one in MANAGED_BY.get(name, ()) if environment.get(one)), "")
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
    """Say it where commands and server of Sagewai read different states."""
    alias, server = environment.get(_ALIAS), environment.get(_SERVER_VARIABLE)
    if not alias or alias == server:
        return []
    read = server or str(root / LEGACY_PLACES["admin-state.json"])
    note = f"{_ALIAS} names {alias}, but Sagewai's server does not look at it: it reads {read}"
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
        real, reason = _regular(legacy)
        if real is None:
            return Item(name, place, Action.LEAVE, reason)
        self._require_directory(target.parent)
        if not os.path.lexists(target):
            self._bring(name, real, place)
            return Item(name, place, Action.MOVE, self._detail(name, real))
        there, obstacle = _regular(target)
        if there is None:
            kept = self._put_aside(place)
            self._bring(name, real, place)
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
            kept = self._put_aside(place)
            self._bring(name, real, place)
            why = "newer" if name != LEGACY_MASTER_KEY else f"what stood in {place} is no key"
            return Item(name, place, Action.REPLACE, why, kept)
        self._narrow(place)
        kept = self._free_name(place)
        self._bring(name, real, kept)
        why = "not newer" if name != LEGACY_MASTER_KEY else "another key than the one in use"
        return Item(name, place, Action.KEEP, why, kept)

    def _same(self, name: str, place: str, real: Path) -> Item:
        """Plan for two names of one file: a link from one to the other, or hard links."""
        if (self.root / place).is_symlink() and not (self.root / name).is_symlink():
            self.steps.discard(place)
            self._bring(name, real, place)
            return Item(name, place, Action.MOVE, f"{place} was a link to it")
        if (self.root / place).is_symlink():
            # Both lead to a third file.
            self.steps.discard(place)
            self._bring(name, real, place)
            return Item(name, place, Action.MOVE, f"both were links to {real}")
        self._narrow(place)
        self.steps.discard(name)
        return Item(name, place, Action.REMOVE, f"another name of {place}")

    def _bring(self, name: str, real: Path, destination: str) -> None:
        """Plan that the content comes to the destination and the name goes away."""
        legacy = self.root / name
        stays = self.steps.bring(name, real, destination)
        if real != legacy:
            self.steps.discard(name)
            if stays:
                self.notes.append(f"{real}: was copied and stays there, with its secrets")
        elif stays:
            self.steps.discard(name)

    def _put_aside(self, place: str) -> str:
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
        """Plan a private mode for what stands in a place already."""
        if not (self.root / place).is_symlink():
            self.steps.narrow(place)

    def _detail(self, name: str, real: Path) -> str:
        return f"was a link to {real}" if real != self.root / name else ""

    def _is_preferred(self, name: str, real: Path, there: Path) -> bool:
        """Tell whether the legacy one goes into the place of what stands there."""
        if name == LEGACY_MASTER_KEY:
            # Newer says nothing of which values a key opens. Sagewai uses what stands in place,
            # unless that is no key: then it would be overwritten, and the older one fell back to.
            return not _is_key(there) and _is_key(real)
        return real.stat().st_mtime_ns > there.stat().st_mtime_ns

    def _require_directory(self, directory: Path) -> None:
        if directory.is_dir():
            return
        if os.path.lexists(directory):
            reason = "leads nowhere" if directory.is_symlink() else "is not a directory"
            raise UsageError(
                f"{directory}: {reason}",
                hint=f"ls -l {shell_word(directory)}  # and move it away, or mount it",
            )
        self.steps.directory(directory.relative_to(self.root).as_posix())


def _regular(path: Path) -> tuple[Path | None, str]:
    """Follow a path to a regular file.

    Returns:
        (the file, or None; why it is none).

    Raises:
        PermissionDeniedError: What it leads to may not be looked at.
    """
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        # It may be all that there is of a document: nothing is planned on a guess.
        raise from_os_error(error, path) from error
    except OSError:
        return None, f"leads nowhere: {_led_to(path)}"
    if not stat.S_ISREG(mode):
        return None, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
    return Path(os.path.realpath(path)) if path.is_symlink() else path, ""


def _led_to(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "it cannot be looked at"


def _is_key(path: Path) -> bool:
    return read_key_length(os.fspath(path), None)[0] == KEY_CHARACTERS


def _is_equal(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while chunk := one.read(_CHUNK_BYTES):
            if chunk != other.read(_CHUNK_BYTES):
                return False
    return True
