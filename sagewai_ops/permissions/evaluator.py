"""One look at a home: the facts of each entry, and what the rules say of them."""

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sagewai_ops.home.paths import Home
from sagewai_ops.permissions.attributes import (
    access_lists,
    is_capable,
    key_length,
    list_names,
    state_of,
)
from sagewai_ops.permissions.entry_kinds import Facts, Part
from sagewai_ops.permissions.findings import Finding
from sagewai_ops.permissions.rules import RULES_BY_PART

# Access lists of other kinds: NFS version 4, Samba's and Windows' on their file systems.
_ODD_LIST = re.compile(r"system\.(nfs4_acl|nfs4acl_xdr|richacl|cifs_acl|ntfs_acl)")
_ROOT_MAY_OWN = (Part.OWN, Part.OWN_DIRECTORY, Part.SNAPSHOT, Part.SNAPSHOTS)
_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


@dataclass(slots=True)
class Look:
    """What is known and found so far.

    Attributes:
        owner: The uid that everything should belong to.
        status: Of the home.
        entries: How many were looked at.
        passed: Directories and links on the way to the home and to what is outside.
    """

    home: Home
    owner: int
    status: os.stat_result
    findings: list[Finding] = field(default_factory=list)
    entries: int = 0
    passed: set[Path] = field(default_factory=set)

    def above(self, passed: Path) -> None:
        """Judge a directory or a link on the way to something, once."""
        if passed not in self.passed:
            self.passed.add(passed)
            with suppress(FileNotFoundError):
                status = os.lstat(passed)
                facts = self.facts_of(Part.PARENT, "", status)
                self.judge(Part.PARENT, facts, passed, "", status)

    def facts_of(
        self,
        part: Part,
        path: str,
        status: os.stat_result,
        descriptor: int | None = None,
        name: str = "",
        *,
        owned: bool = True,
    ) -> Facts:
        """Collect the facts of an entry that is no link.

        Args:
            descriptor: Of its directory, or of itself if `name` is empty; without it, what only an
                open directory tells is left out.
            owned: False where any owner is fine.
        """
        problem, odd = "", list[str]()
        length: int | None = None
        lists: tuple[bytes | None, bytes | None] = (None, None)
        if descriptor is not None and part is not Part.OTHER:
            lists = access_lists(descriptor, name)
        if part is Part.HOME and descriptor is not None:
            odd = [one for one in list_names(descriptor, "") if _ODD_LIST.fullmatch(one)]
        if part is Part.KEY and stat.S_ISREG(status.st_mode):
            length, problem = key_length(name, descriptor)
        is_program = stat.S_ISREG(status.st_mode) and status.st_mode & 0o111
        # What root keeps of another user's home is root's: records and snapshots.
        is_roots = part in _ROOT_MAY_OWN and status.st_uid == 0
        return Facts(
            part=part,
            path=path,
            type=_TYPES.get(stat.S_IFMT(status.st_mode), "other"),
            state=state_of(status, *lists),
            links=status.st_nlink,
            owner=self.owner if owned and not is_roots else status.st_uid,
            owner_gid=self.status.st_gid,
            problem=problem,
            key_length=length,
            odd_lists=tuple(odd),
            is_capable=bool(is_program and descriptor is not None and is_capable(descriptor, name)),
        )

    def unread_directory(
        self, part: Part, path: str, shown: Path, label: str, error: OSError
    ) -> None:
        """Note a directory that cannot be listed."""
        try:
            status = os.lstat(shown)
        except OSError:
            status = self.status
        facts = Facts(
            part=part,
            path=path,
            type="folder",
            state=state_of(status),
            links=1,
            owner=status.st_uid,
            owner_gid=status.st_gid,
            problem=f"cannot be listed: {(error.strerror or 'refused').lower()}",
        )
        self.judge(part, facts, shown, label, status)

    def judge(
        self, part: Part, facts: Facts, path: Path, root: str, status: os.stat_result
    ) -> None:
        """Hold an entry against the rules of its part."""
        for rule in RULES_BY_PART[part]:
            if wrong := rule.test(facts):
                wanted = rule.repair(facts) if root else None
                self.findings.append(Finding(rule, facts, path, wrong, root, wanted, status.st_ino))
