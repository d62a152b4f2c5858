"""The programs that a backup is compared with, each as the commands that a user would run.

All work in directories of their own below one directory, so on the same disk. Caches and
configuration are put there too. A peer whose programs are not installed is left out by `installed`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OURS = "sagewai-ops"
SCRIPT = "the script"
LEVEL = "3"  # of zstd, for all who let it be chosen

# Sagewai's own last connection folds the -wal into the main file when it closes. The script's must
# not: the next round is to find the same home, and next to a running server it would not either.
_COPY = """
mkdir "$work/copy"
sqlite3 "$home/db/sagewai.db" ".dbconfig no_ckpt_on_close on" ".backup '$work/copy/sagewai.db'"
tar -cf - --exclude='./db/sagewai.db*' --transform='s,^sagewai.db$,./db/sagewai.db,' \\
    -C "$home" . -C "$work/copy" sagewai.db | zstd -q -3 -T0 > "$work/home.tar.zst"
rm -r "$work/copy"
"""
_UNPACK = 'mkdir -p "$target" && zstd -dc "$work/home.tar.zst" | tar -xf - -C "$target"\n'


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to back a home up and to bring it back.

    Attributes:
        name: In the table.
        backup: A shell script; `$home` is the home, `$work` a directory of the peer's own.
        restore: Another, which fills `$target`.
        store: What the backup leaves in `$work`: a file, or a directory.
        prepare: Run before a backup and not measured, in an empty `$work`.
        programs: What must be installed.
        environment: For all three.
        proves: What is proved and durable when it ends, for the table.
    """

    name: str
    backup: str
    restore: str
    store: str
    prepare: str = ""
    programs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    proves: str = ""

    def variables(self, home: Path, work: Path, target: Path) -> dict[str, str]:
        """Return the environment of the scripts."""
        places = {"home": home, "work": work, "target": target}
        environment = {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": os.fspath(work / "cache"),
            "BORG_BASE_DIR": os.fspath(work / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return {
            **environment,
            **self.environment,
            **{name: os.fspath(path) for name, path in places.items()},
        }


def program() -> str:
    """Return the path of our program: the one of this environment, or the one on PATH."""
    beside = Path(sys.executable).with_name(OURS)
    return os.fspath(beside) if beside.exists() else shutil.which(OURS) or OURS


def installed() -> tuple[list[Peer], list[str]]:
    """Return the peers that can run here, ours first, and a line for each that cannot."""
    found, missing = [], []
    for peer in _peers(program()):
        lacking = [name for name in peer.programs if shutil.which(name) is None]
        if lacking:
            missing.append(f"{peer.name}: skipped, {' and '.join(lacking)} not installed")
        else:
            found.append(peer)
    return found, missing


def run(script: str, environment: Mapping[str, str]) -> None:
    """Run a script that is not measured.

    Raises:
        RuntimeError: It failed; the message has its output.
    """
    done = subprocess.run(
        shell(script),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script.strip()}: exit {done.returncode}, {done.stderr}")


def shell(script: str) -> list[str]:
    """Return the command that runs a script and ends at its first failure."""
    return ["bash", "-euo", "pipefail", "-c", script]


def _peers(ours: str) -> list[Peer]:
    script = ("sqlite3", "tar", "zstd", "bash")
    borg = 'borg create {} "$work/repository::one" "$home"'
    return [
        Peer(
            OURS,
            f'exec "{ours}" --home "$home" backup --to "$work/snapshots" --level {LEVEL}',
            f'exec "{ours}" --home "$home" restore latest --snapshots "$work/snapshots"'
            ' --to "$target"',
            "snapshots",
            proves="every byte read back; database checked whole; durable",
        ),
        Peer(
            f"{OURS}, six nights of seven",
            f'exec "{ours}" --home "$home" backup --to "$work/snapshots" --level {LEVEL}'
            " --check quick",
            f'exec "{ours}" --home "$home" restore latest --snapshots "$work/snapshots"'
            ' --to "$target" --check full',
            "snapshots",
            proves="every byte read back; database checked quickly, again at restore",
        ),
        Peer(SCRIPT, _COPY, _UNPACK, "home.tar.zst", programs=script, proves="nothing"),
        Peer(
            f"{SCRIPT}, `sync -f`",
            _COPY + 'sync -f "$work/home.tar.zst"',
            _UNPACK + 'sync -f "$target"',
            "home.tar.zst",
            programs=script,
            proves="durable",
        ),
        Peer(
            "restic",
            'restic -q -r "$work/repository" backup "$home"',
            'restic -q -r "$work/repository" restore latest --target "$target"',
            "repository",
            'restic -q -r "$work/repository" init',
            programs=("restic",),
            proves="durable, encrypted",
        ),
        Peer(
            "borg, lz4 (its default)",
            borg.format(""),
            'mkdir -p "$target" && cd "$target" && borg extract "$work/repository::one"',
            "repository",
            'borg init -e none "$work/repository"',
            programs=("borg",),
            proves="durable",
        ),
        Peer(
            f"borg, zstd {LEVEL}",
            borg.format(f"--compression zstd,{LEVEL}"),
            'mkdir -p "$target" && cd "$target" && borg extract "$work/repository::one"',
            "repository",
            'borg init -e none "$work/repository"',
            programs=("borg",),
            proves="durable",
        ),
    ]
