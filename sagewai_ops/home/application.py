"""The version of Sagewai that uses a home, from the names of its package's metadata.

No code of Sagewai runs: the directory `sagewai-VERSION.dist-info` next to the program is listed.
The program is that of a running process of the home's owner or of this user, as any user can run
a program of this name; else the one on PATH, else that of this Python.
"""

import glob
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from sagewai_ops.errors import UsageError

_PROGRAM = "sagewai"
_METADATA = re.compile(r"sagewai-([0-9][A-Za-z0-9.+!_]{0,63})\.dist-info")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]{0,63}")
_MOST_BYTES = 8192  # of a command line
_MOST_PACKAGES = 16  # of one program; each has one
_SITE = "lib/python3*/site-packages"


def check_version(text: str) -> str:
    """Return a version that was named by hand.

    Raises:
        UsageError: It has other characters than a version.
    """
    if not _VERSION.fullmatch(text):
        raise UsageError("--application-version: not a version", hint="--application-version 1.0.1")
    return text


def find_version(environment: Mapping[str, str], home: Path) -> str:
    """Return the version of Sagewai; "" if it is unknown, or several are in use.

    Args:
        environment: Its PATH is searched.
        home: Its owner's processes count.
    """
    named = shutil.which(_PROGRAM, path=environment.get("PATH", ""))
    on_path = [Path(named)] if named else []
    for programs in (_running({os.geteuid(), *_owner(home)}), on_path, [Path(sys.executable)]):
        found = {version for program in programs for version in _versions(program)}
        if found:
            return found.pop() if len(found) == 1 else ""
    return ""


def _versions(program: Path) -> Iterator[str]:
    """Yield the versions in the environment of a program, which is in its `bin`."""
    # Not Path.resolve, which raises another error for links that form a loop.
    resolved = Path(os.path.realpath(program))
    for place in dict.fromkeys((program.parent.parent, resolved.parent.parent)):
        pattern = os.path.join(glob.escape(str(place)), _SITE, "sagewai-*.dist-info")
        for directory in islice(glob.iglob(pattern), _MOST_PACKAGES):
            if match := _METADATA.fullmatch(os.path.basename(directory)):
                yield match[1]


def _owner(home: Path) -> tuple[int, ...]:
    try:
        return (os.stat(home).st_uid,)
    except OSError:
        return ()


def _running(users: Collection[int]) -> Iterator[Path]:
    """Yield the programs of these users' Sagewai processes; none without /proc."""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as stream:
                if os.fstat(stream.fileno()).st_uid not in users:
                    continue
                words = stream.read(_MOST_BYTES).split(b"\0")[:3]
        except OSError:
            continue  # it has ended, or belongs to another user
        for word in words:
            name = os.fsdecode(word)
            if os.path.isabs(name) and os.path.basename(name) == _PROGRAM:
                yield Path(name)
