"""A small home in which every rule about permissions holds, to break them one by one."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

KEY = b"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
FILES = (
    "config/admin-state.json",
    "config/admin-state.json.lock",
    "config/admin-state.json.bak-v0-20260228T235959_123456-a1b2c3",
    "config/tmpab12cd_x.tmp",
    "config/connections.json",
    "db/sagewai.db",
    "db/sagewai.db-wal",
    "db/sagewai.db-shm",
    "fleet/worker-a.json",
    "secrets/master.key",
    "secrets/profiles.json",
    "secrets/sops/team.enc.yaml",
    "data/artifacts/report.md",
    "data/workers/host:1/runs/a/out.log",
    "sessions/one.json",
    ".sagewai-ops-permissions-19990101T000000000000Z.json",
)
ACCESS_LIST = "system.posix_acl_access"
DEFAULT_LIST = "system.posix_acl_default"


def make_private_home(root: Path) -> Path:
    """Make the home, and a snapshot directory next to it; return the home."""
    for name in FILES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(KEY if name.endswith("master.key") else b"{}")
        path.chmod(0o600)
    for path in [root, *(each for each in root.rglob("*") if each.is_dir())]:
        path.chmod(0o700)
    snapshots = root.with_name(f"{root.name}.snapshots")
    snapshots.mkdir(mode=0o700)
    (snapshots / "sagewai-20261123T213436Z-abc123.tar.zst").write_bytes(b"")
    (snapshots / "sagewai-20261123T213436Z-abc123.tar.zst").chmod(0o600)
    return root


def access_list(uid: int, permissions: int) -> bytes:
    """Encode a POSIX access list that names one more user.

    Args:
        permissions: 4 to read, 2 to write.

    Source: linux/posix_acl_xattr.h, version 2.
    """
    no_user = 0xFFFFFFFF
    entries = (
        (0x01, 6, no_user),
        (0x02, permissions, uid),
        (0x04, 0, no_user),
        (0x10, permissions, no_user),
        (0x20, 0, no_user),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def tree_of(root: Path) -> dict[str, tuple[int, int, int, str | bytes]]:
    """Map each path below a directory, itself included, to mode, owner and content.

    Returns:
        Mode, uid, number of names, and what a file holds or a link leads to.
    """
    found: dict[str, tuple[int, int, int, str | bytes]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content: str | bytes = b""
        is_file = stat.S_ISREG(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif is_file:
            content = path.read_bytes()
        links = status.st_nlink if is_file else 0
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, links, content)
    return found
