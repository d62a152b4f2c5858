"""borg, from version 1.2, as an engine."""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.engines.engine import (
    MARK,
    MOST_FILE_BYTES,
    Listing,
    NewTree,
    StoredObject,
    labelled,
    labels_of,
    labels_of_file,
    parse_labels,
)
from sagewai_ops.engines.process import Finished, run_engine, shown
from sagewai_ops.engines.program import EngineProgram
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    RemoteError,
)
from sagewai_ops.remote.store import TREE, Bounds

# Never like an option. A run that is killed after half an hour leaves a checkpoint.
_ENGINE_ID = re.compile(
    r"([A-Za-z0-9._][A-Za-z0-9._-]{0,199})~([0-9]{20})(\.checkpoint(\.[0-9]+)?)?"
)
_MOMENT = "%Y%m%d%H%M%S%f"  # in it, UTC
_CAUSE = re.compile(r"[A-Za-z_.]*(Error|Exception)\b")  # in the last line of a traceback
_NO_CAUSES = ("Local Exception", "Remote Exception")  # a traceback follows
_CHUNKS = "fixed,65536"  # pages of a database keep their place
_LOCK_SECONDS = "5"
_CLEAR_MODES = ("none", "authenticated", "authenticated-blake2")  # of `borg init --encryption`
_WORDS = {  # in the names of borg's errors (`borg help errors`), in the order of their priority
    "PassphraseWrong": KeyMissingError,
    "PasscommandFailure": KeyMissingError,
    "PasswordRetriesExceeded": KeyMissingError,
    "NoPassphraseFailure": KeyMissingError,
    "KeyfileNotFound": KeyMissingError,
    "RepoKeyNotFound": KeyMissingError,
    "Lock": LockedError,
    "InsufficientFreeSpace": NoSpaceError,
    "StorageQuota": NoSpaceError,
    "ConnectionClosed": RemoteError,
    "ConnectionBroken": RemoteError,
    "DoesNotExist": NotFoundError,
    "ParentPathDoesNotExist": NotFoundError,
    "InvalidRepository": NotFoundError,
    "Integrity": DamagedError,
    "CheckNeeded": DamagedError,
    "ObjectNotFound": DamagedError,
    "TAM": DamagedError,
    "Decode": DamagedError,
    "Decompression": DamagedError,
    "NoManifest": DamagedError,
}
_HINTS: dict[type[OpsError], str] = {
    LockedError: "borg break-lock {}  # if no borg uses the repository",
    DamagedError: "borg check --verify-data {}",
    KeyMissingError: "BORG_PASSPHRASE_FD or BORG_PASSCOMMAND, or --passphrase-file FILE",
}


class Borg(EngineProgram):
    """borg, from version 1.2; the key of a new repository is in it."""

    __slots__ = ()

    version_word = "--version"
    versions = ((1, 2), (2, 0), "1.2 to 1.4")
    init_words = ("init", "--log-json", "--encryption", "repokey-blake2")
    exists_word = "AlreadyExists"
    hints = _HINTS

    def list(self) -> Listing:
        """Return what this program stored."""
        options = ["--json", "--format", "{comment}", "--consider-checkpoints"]
        finished = self._run(["list", *options])
        try:
            listed = json.loads(finished.output)
            mode = listed["encryption"]["mode"]
            marked = [item for item in listed["archives"] if _labels_of(item) is not None]
            found = [stored for item in marked if (stored := _parse(item))]
            return Listing(
                [stored for stored in found if not _is_partial(stored)],
                is_encrypted=mode not in _CLEAR_MODES,
                partial=[stored for stored in found if _is_partial(stored)],
                foreign=[str(item["name"]) for item in marked if not _parse(item)],
            )
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise self._unknown("list") from error

    def store_tree(
        self,
        directory: Path,
        new: NewTree,
        parent: StoredObject | None,
    ) -> StoredObject:
        """Store `tree` of a directory; hard links change a file's ctime, and nothing else."""
        # The cache has the inodes of the last tree that this computer stored from here.
        known = "mtime,size,inode" if parent else "rechunk,mtime"
        options = ["--chunker-params", _CHUNKS, "--files-cache", known]
        return self._store(options, [TREE], new.name, labels_of(new), directory=directory)

    def store_file(self, content: bytes, name: str, after: int = 0) -> StoredObject:
        """Store a small file."""
        options = ["--stdin-name", name]
        labels = labels_of_file(content, name, after)
        return self._store(options, ["-"], name, labels, content=content)

    @contextlib.contextmanager
    def begun_file(
        self, content: bytes, name: str, after: int = 0
    ) -> Iterator[Callable[[], StoredObject]]:
        """Begin nothing: a run would lock the repository, which the others need."""
        yield lambda: self.store_file(content, name, after)

    def read_file(self, stored: StoredObject) -> bytes:
        """Return the content of a file that is stored alone."""
        arguments = ["extract", "--stdout", f"::{stored.engine_id}", f"pp:{stored.name}"]
        return self._run(arguments, most_bytes=MOST_FILE_BYTES).output

    def restore(
        self,
        stored: StoredObject,
        paths: Sequence[str] | None,
        target: Path,
        bounds: Bounds | None = None,
    ) -> None:
        """Write a tree, or files of it, below a directory."""
        # Not `pf:`: borg 1.2 warns that a path of this kind never matched, although it does.
        chosen = [f"pp:{TREE}/{path}" for path in paths or ()]
        arguments = ["extract", f"::{stored.engine_id}", *chosen]
        self._run(arguments, directory=target, bounds=bounds)

    def forget(self, stored: Iterable[StoredObject]) -> None:
        """Remove archives."""
        first, *others = [item.engine_id for item in stored] or [""]
        if first:
            self._run(["delete", f"::{first}", *others])

    def reclaim(self) -> None:
        """Remove data that no archive needs."""
        self._run(["compact"])

    def _store(
        self,
        options: Sequence[str],
        paths: Sequence[str],
        name: str,
        labels: Sequence[str],
        *,
        directory: Path | None = None,
        content: bytes | None = None,
    ) -> StoredObject:
        now = datetime.now(timezone.utc)
        # An archive's name is unique, and an object is replaced before the earlier one is deleted.
        engine_id = f"{name}~{now.strftime(_MOMENT)}"
        comment = " ".join((MARK, *labels))
        arguments = ["create", *options, "--comment", comment, f"::{engine_id}", *paths]
        self._run(arguments, directory=directory, content=content)
        stored = labelled(engine_id, parse_labels(labels), now)
        if stored is None:
            raise OpsError(f"borg: no name of an object: {shown(name)}")
        return stored

    def _run(self, arguments: Sequence[str], **options: Any) -> Finished:
        command, *others = arguments
        common = ["--log-json", "--lock-wait", _LOCK_SECONDS, *self.limits]
        return self._check(run_engine(self.access, [command, *common, *others], **options))

    def _explain(self, finished: Finished) -> tuple[Sequence[str], type[OpsError] | None]:
        parsed = [_text(line) for line in finished.messages]
        # Warnings come first, and are not the cause.
        messages = [text for text, _name in sorted(parsed, key=lambda line: not line[1])]
        names = [name for _text, name in parsed if name]
        kind = next((ours for word, ours in _WORDS.items() for name in names if word in name), None)
        return messages, kind


def _parse(item: Any) -> StoredObject | None:
    """Return an archive; None for one that this program did not store."""
    labels, engine_id = _labels_of(item), item["name"]
    if labels is None:
        return None
    named = parse_labels(labels)
    match = _ENGINE_ID.fullmatch(engine_id)
    if not match or match[1] != named.get("name"):
        return None
    try:  # what borg lists is of the local zone, in which an hour comes twice
        moment = datetime.strptime(match[2], _MOMENT).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return labelled(engine_id, named, moment)


def _labels_of(item: Any) -> list[str] | None:
    """Return the labels of an archive; None for one without the mark of this program."""
    mark, *labels = item["comment"].split(" ")
    return labels if mark == MARK else None


def _is_partial(stored: StoredObject) -> bool:
    """Return whether an archive is a checkpoint."""
    return ".checkpoint" in stored.engine_id.rpartition("~")[2]


def _text(line: str) -> tuple[str, str]:
    """Return the text of a line on stderr, and the name of the error."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return line, ""
    if not isinstance(message, dict):
        return line, ""
    text = str(message.get("message") or line)
    if "Traceback" in text:
        text = next(filter(_CAUSE.match, reversed(text.splitlines())), text)
        return text, "Exception"
    if text in _NO_CAUSES:
        return text, ""
    return text, str(message.get("msgid") or "")
