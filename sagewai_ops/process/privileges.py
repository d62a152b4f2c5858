"""The user that this process runs as: another user's rights, taken for good.

Root runs this program over homes that other users own. What these users can write, they can
exchange while root works on it, so root works on it with their rights.
"""

import contextlib
import ctypes
import importlib
import os
import pwd
import signal
import sys
from collections.abc import Mapping
from typing import Any

from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.process import core_dumps
from sagewai_ops.process.interpreter import keep_interpreter
from sagewai_ops.process.parent import parent_death_signal
from sagewai_ops.records import dataclass

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_taken: list["Account"] = []


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine.

    Attributes:
        groups: All of its groups.
        home: Its home directory, "" if it has none.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str = ""

    @property
    def name(self) -> str:
        """The name, or `uid N` without one."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


def account_of(uid: int, gid: int) -> Account:
    """Return the account of a user id.

    Args:
        gid: The group of a user that is not in the system's list of users.
    """
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(uid, gid, (gid,))
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(uid, entry.pw_gid, tuple(groups), entry.pw_dir)


def own_account() -> Account:
    """Return the account of this process."""
    return account_of(os.geteuid(), os.getegid())


def become(account: Account) -> None:
    """Switch to the rights of a user from root's; the process cannot return to root's.

    The process ends with SIGTERM when its parent ends. No other process of the user can trace it.

    Raises:
        PermissionDeniedError: This process may not change its user.
    """
    roots = _open_import_roots()
    keep_interpreter()
    try:
        os.setgroups(account.groups)
        os.setgid(account.gid)  # as root, these set the real, the effective and the saved id
        os.setuid(account.uid)
    except OSError as error:
        raise PermissionDeniedError(
            f"user {account.name}: this process may not take its rights,"
            f" {(error.strerror or '').lower()}",
            hint=f"run it as this user: setpriv --reuid {account.uid} --regid {account.gid}"
            " --clear-groups sagewai-ops ...",
        ) from error
    with contextlib.suppress(PermissionError):
        os.setuid(0)
        raise PermissionDeniedError(f"user {account.name}: root's rights could be taken again")
    _taken[:] = [account]
    _keep_readable(roots)  # before the first import
    core_dumps.forbid()  # changing the user has allowed them again
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    parent_death_signal(signal.SIGTERM)()
    os.environ["HOME"] = account.home or os.sep  # root's may not be read
    for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        os.environ.pop(variable, None)


def taken_account() -> Account | None:
    """Return the account whose rights this process took from root's; None if it took none."""
    return _taken[0] if _taken else None


def _open_import_roots() -> dict[str, int]:
    """Open the directories from which modules are imported: root's Python may be below /root."""
    roots = [path for path in sys.path if path]
    for finder in _editable_finders():
        roots += finder.MAPPING.values()
    found = {}
    for root in dict.fromkeys(roots):
        with contextlib.suppress(OSError):
            found[root] = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return found


def _keep_readable(roots: Mapping[str, int]) -> None:
    """Import from the open directory where the user cannot reach it by its path."""
    names = {}
    for root, descriptor in roots.items():
        if os.access(root, os.R_OK | os.X_OK):
            os.close(descriptor)
        else:
            names[root] = f"/proc/self/fd/{descriptor}"
    if not names:
        return

    def relocate(path: str) -> str:
        for root, name in names.items():
            if path == root or path.startswith(root + os.sep):
                return name + path[len(root) :]
        return path

    sys.path[:] = map(relocate, sys.path)
    for finder in _editable_finders():
        finder.MAPPING.update({name: relocate(path) for name, path in finder.MAPPING.items()})
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if spec is None or not isinstance(spec.origin, str):
            continue
        spec.origin = relocate(spec.origin)
        with contextlib.suppress(AttributeError):  # a loader without files
            spec.loader.path = relocate(spec.loader.path)
        if isinstance(spec.submodule_search_locations, list):
            spec.submodule_search_locations[:] = map(relocate, spec.submodule_search_locations)
            module.__path__ = spec.submodule_search_locations
    importlib.invalidate_caches()


def _editable_finders() -> list[Any]:
    """Return the modules by which setuptools finds what is installed from a checkout."""
    return [module for name, module in sys.modules.items() if name.startswith("__editable___")]
