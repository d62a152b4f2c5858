"""Find the schedules of this machine that run the program: systemd units and crontabs.

Files that this user cannot read are skipped; containers and other machines are not searched.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

PROGRAM = b"sagewai-ops"
_MOST_BYTES = 1 << 20
_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_CRONTABS = ("etc/cron.d", "var/spool/cron/crontabs", "var/spool/cron", "etc/cron.daily")


def find_schedules(environment: Mapping[str, str], root: Path = Path("/")) -> tuple[Path, ...]:
    """Return the units and crontabs that name the program's `backup`.

    Args:
        environment: HOME and XDG_CONFIG_HOME have the user's own units.
    """
    found = [path for path in _candidates(environment, root) if _runs_backup(path)]
    return tuple({path.resolve(): path for path in reversed(found)}.values())[::-1]


def _candidates(environment: Mapping[str, str], root: Path) -> Iterator[Path]:
    units = [root / name for name in _UNITS]
    own = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", ""), ".config")
    if os.path.isabs(own):
        units.append(Path(own) / "systemd/user")
    for directory in units:
        yield from _entries(directory, ".service")
    yield root / "etc/crontab"
    for name in _CRONTABS:
        yield from _entries(root / name, "")


def _entries(directory: Path, suffix: str) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in directory.iterdir() if path.name.endswith(suffix))
    return []


def _runs_backup(path: Path) -> bool:
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            lines = path.read_bytes().splitlines()
            return any(
                PROGRAM in line and b"backup" in line
                for line in lines
                if not line.lstrip().startswith(b"#")
            )
    return False
