"""Collect the facts about entries, and evaluate the rules."""

import os
import re
import stat
from contextlib import suppress
from dataclasses import field
from pathlib import Path

from sagewai_ops.home.paths import Home
from sagewai_ops.permissions.attributes import (
    attribute_names,
    entry_state,
    has_capabilities,
    read_access_lists,
    read_key_length,
)
from sagewai_ops.permissions.entry_kinds import EntryKind, Facts
from sagewai_ops.permissions.findings import Finding
from sagewai_ops.permissions.rules import RULES_BY_KIND
from sagewai_ops.records import dataclass

# Access lists of other kinds: NFS version 4, Samba's and Windows' on their file systems.
_UNKNOWN_LIST = re.compile(r"system\.(nfs4_acl|nfs4acl_xdr|richacl|cifs_acl|ntfs_acl)")
_ROOT_MAY_OWN = (EntryKind.OWN, EntryKind.OWN_DIRECTORY, EntryKind.SNAPSHOT, EntryKind.SNAPSHOTS)
_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


@dataclass(slots=True)
class Evaluator:
    """The findings so far.

    Attributes:
        owner: The uid to which everything should belong.
        status: Of the home.
        entries: How many were checked.
        ancestors: Checked directories and links above the home and above its overrides.
    """

    home: Home
    owner: int
    status: os.stat_result
    findings: list[Finding] = field(default_factory=list)
    entries: int = 0
    ancestors: set[Path] = field(default_factory=set)

    def check_ancestor(self, path: Path) -> None:
        """Check a directory or a link above an entry, once."""
        if path not in self.ancestors:
            self.ancestors.add(path)
            with suppress(FileNotFoundError):
                status = os.lstat(path)
                facts = self.collect_facts(EntryKind.PARENT, "", status)
                self.evaluate(facts, path, "", status)

    def collect_facts(
        self,
        kind: EntryKind,
        path: str,
        status: os.stat_result,
        descriptor: int | None = None,
        name: str = "",
        *,
        is_owned: bool = True,
    ) -> Facts:
        """Return the facts about an entry that is not a link.

        Args:
            descriptor: Of its directory, or of the entry if `name` is empty; None leaves out the
                facts that need an open directory.
            is_owned: False where any owner is accepted.
        """
        problem, unknown_lists = "", list[str]()
        key_length: int | None = None
        lists: tuple[bytes | None, bytes | None] = (None, None)
        if descriptor is not None and kind is not EntryKind.OTHER:
            lists = read_access_lists(descriptor, name)
        if kind is EntryKind.HOME and descriptor is not None:
            names = attribute_names(descriptor, "")
            unknown_lists = [attribute for attribute in names if _UNKNOWN_LIST.fullmatch(attribute)]
        if kind is EntryKind.KEY and stat.S_ISREG(status.st_mode):
            key_length, problem = read_key_length(name, descriptor)
        is_program = stat.S_ISREG(status.st_mode) and status.st_mode & 0o111
        # Records and snapshots that root created belong to root.
        is_roots = kind in _ROOT_MAY_OWN and status.st_uid == 0
        return Facts(
            kind=kind,
            path=path,
            type=_TYPES.get(stat.S_IFMT(status.st_mode), "other"),
            state=entry_state(status, *lists),
            links=status.st_nlink,
            owner=self.owner if is_owned and not is_roots else status.st_uid,
            owner_gid=self.status.st_gid,
            problem=problem,
            key_length=key_length,
            unknown_lists=tuple(unknown_lists),
            is_capable=bool(
                is_program and descriptor is not None and has_capabilities(descriptor, name)
            ),
        )

    def report_unreadable(
        self, kind: EntryKind, path: str, absolute: Path, root: str, error: OSError
    ) -> None:
        """Evaluate a directory that cannot be listed."""
        try:
            status = os.lstat(absolute)
        except OSError:
            status = self.status
        facts = Facts(
            kind=kind,
            path=path,
            type="directory",
            state=entry_state(status),
            links=1,
            owner=status.st_uid,
            owner_gid=status.st_gid,
            problem=f"cannot be listed: {(error.strerror or 'input/output error').lower()}",
        )
        self.evaluate(facts, absolute, root, status)

    def evaluate(self, facts: Facts, path: Path, root: str, status: os.stat_result) -> None:
        """Evaluate the rules for an entry of its kind.

        Args:
            root: As in `Finding`.
        """
        for rule in RULES_BY_KIND[facts.kind]:
            if message := rule.test(facts):
                repaired = rule.repair(facts) if root else None
                self.findings.append(
                    Finding(rule, facts, path, message, root, repaired, status.st_ino)
                )
