"""restic, from version 0.14, as an engine."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

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
from sagewai_ops.engines.process import Finished, run_engine
from sagewai_ops.engines.program import EngineProgram
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    LockedError,
    NotFoundError,
    OpsError,
)
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.remote.store import TREE, Bounds

_ID = re.compile(r"[0-9a-f]{64}")
_SHORT_ID = re.compile(r"[0-9a-f]{8,64}")
_FRACTION = re.compile(r"\.\d+")  # nanoseconds, which Python 3.10 does not parse
_REFUSAL_SECONDS = 10.0  # of restic, at incomplete patterns
_PATTERN = b"[x]\n"  # no name of an object; its beginning is no pattern
_SPECIAL = re.compile(r"([\\*?\[\]])")  # in a pattern
# What a list may state with success: retries that may have succeeded, the cache, other programs.
_HARMLESS = re.compile(
    r"(Load|List|Stat)\(.*(returned error, retrying|operation successful after \d+ retries)"
    r"|unable to open cache|subprocess |rclone: "
)
# restic has decrypted it, so it is not damaged, but of another writer.
_MALFORMED = re.compile(
    r"(?:could not load|failed to load|ignoring)(?: snapshot)? \W?([0-9a-f]{8,64})\W+"
    r"(?:parsing time|json:|not supported encoding|encoding/hex|invalid length for ID"
    r"|invalid character)",
    re.IGNORECASE,
)
# Of restic 0.17 and newer; older ones exit with 1.
_CODES: dict[int, type[OpsError]] = {10: NotFoundError, 11: LockedError, 12: KeyMissingError}
_HINTS: dict[type[OpsError], str] = {
    LockedError: "restic -r {} unlock  # removes the locks of runs that have ended",
    DamagedError: "restic -r {} check --read-data",
    KeyMissingError: "RESTIC_PASSWORD_FILE=FILE, or --passphrase-file FILE",
}


class Restic(EngineProgram):
    """restic, from version 0.14."""

    __slots__ = ()

    version_word = "version"
    versions = ((0, 14), (1 << 30, 0), "0.14 or newer")
    init_words = ("init",)
    exists_word = "already"
    hints = _HINTS

    def list(self) -> Listing:
        """Return what this program stored; restic always encrypts."""
        finished = self._read(["snapshots", "--json", "--tag", MARK])
        # A snapshot that cannot be read is left out of the list, with success and a message.
        # A part of a list would make the cards, or the trees, of the others look like leftovers.
        messages = [_text(line) for line in finished.messages]
        foreign = [match[1] for line in messages if (match := _MALFORMED.match(line))]
        problems = [
            line for line in messages if not _HARMLESS.match(line) and not _MALFORMED.match(line)
        ]
        if problems:
            raise self._failure(finished, problems)
        listed = self._json(finished)
        if not isinstance(listed or [], list):
            raise self._unknown("snapshots")
        objects = []
        for item in listed or []:
            if found := self._parse(item):
                objects.append(found)
            else:
                foreign.append(str(item["id"]))
        return Listing(objects, foreign=foreign)

    def store_tree(
        self, directory: Path, new: NewTree, parent: StoredObject | None
    ) -> StoredObject:
        """Store `tree` of a directory; hard links change a file's ctime, and nothing else."""
        source = os.path.realpath(directory / TREE)
        # Without a parent restic chooses one, whose file of the same inode, size and time may have
        # been another file.
        arguments = ["--force"]
        if parent and parent.source == source:
            arguments = ["--ignore-ctime", "--parent", parent.engine_id]
        labels = labels_of(new)
        return self._store([*arguments, TREE], labels, source, directory=directory)

    def store_file(
        self, content: bytes, name: str, after: int = 0, patterns: int | None = None
    ) -> StoredObject:
        """Store a small file.

        Args:
            patterns: A descriptor with patterns of files to exclude.
        """
        arguments = ["--stdin", "--stdin-filename", name]
        passed = []
        if patterns is not None:
            arguments += ["--exclude-file", f"/dev/fd/{patterns}"]
            passed = [patterns]
        labels = labels_of_file(content, name, after)
        return self._store(arguments, labels, content=content, passed=passed)

    @contextlib.contextmanager
    def begun_file(
        self, content: bytes, name: str, after: int = 0
    ) -> Iterator[Callable[[], StoredObject]]:
        """Start restic, which waits for the end of the patterns in a pipe.

        It reads them once it has opened and locked the repository, which takes half a second. If
        this process ends before it has completed them, they are not valid, and restic refuses them.
        """
        with (
            ThreadPool(1, thread_name_prefix="file") as pool,
            _pipe() as (reading, writing),
        ):
            writing.write(_PATTERN[:1])
            run = pool.submit(self.store_file, content, name, after, reading)

            def complete() -> StoredObject:
                if run.done():  # with an error, before anything was stored
                    return self.store_file(content, name, after)
                writing.write(_PATTERN[1:])
                writing.close()
                return run.result()

            try:
                yield complete
            finally:
                writing.close()
                # It ends by itself and unlocks; a signal can meet it before it has noted its lock.
                wait([run], _REFUSAL_SECONDS)

    def read_file(self, stored: StoredObject) -> bytes:
        """Return the content of a file that is stored alone."""
        arguments = ["dump", stored.engine_id, f"/{stored.name}"]
        return self._read(arguments, most_bytes=MOST_FILE_BYTES).output

    def restore(
        self,
        stored: StoredObject,
        paths: Sequence[str] | None,
        target: Path,
        bounds: Bounds | None = None,
    ) -> None:
        """Write a tree, or files of it, below a directory."""
        arguments = ["restore", stored.engine_id, "--target", "."]
        for path in paths or ():
            escaped = _SPECIAL.sub(r"\\\1", f"/{TREE}/{path}")
            arguments += ["--include", escaped]
        self._read(arguments, directory=target, bounds=bounds)

    def forget(self, stored: Iterable[StoredObject]) -> None:
        """Remove snapshots."""
        ids = [item.engine_id for item in stored]
        if ids:
            self._run(["forget", *ids])

    def reclaim(self) -> None:
        """Remove data that no snapshot needs."""
        self._run(["prune"])

    def _store(
        self,
        arguments: Sequence[str],
        labels: Sequence[str],
        source: str = "",
        *,
        directory: Path | None = None,
        content: bytes | None = None,
        passed: Sequence[int] = (),
    ) -> StoredObject:
        tags = (MARK, *labels)
        finished = self._run(
            ["backup", "--json", "--host", socket.gethostname()]
            + [word for tag in tags for word in ("--tag", tag)]
            + list(arguments),
            directory=directory,
            content=content,
            passed=passed,
        )
        lines = finished.output.splitlines()
        summary = self._json(finished, lines[-1] if lines else b"")
        found = summary.get("snapshot_id") if isinstance(summary, dict) else None
        if not isinstance(found, str) or not _SHORT_ID.fullmatch(found):
            raise self._unknown("backup")
        stored = labelled(found, parse_labels(labels), datetime.now(timezone.utc), source)
        if stored is None:
            raise self._unknown("name")
        return stored

    def _read(self, arguments: Sequence[str], **options: Any) -> Finished:
        """Read without a lock, for which restic waits 0.2 s; after a failure, with one.

        A prune of another computer, which a lock prevents, can remove what is being read.
        """
        unlocked = [*self.limits, "--no-lock", *arguments]
        finished = run_engine(self.access, unlocked, **options)
        return self._run(arguments, **options) if finished.code else finished

    def _run(self, arguments: Sequence[str], **options: Any) -> Finished:
        return self._check(run_engine(self.access, [*self.limits, *arguments], **options))

    def _explain(self, finished: Finished) -> tuple[Sequence[str], type[OpsError] | None]:
        return [_text(line) for line in finished.messages], _CODES.get(finished.code)

    def _json(self, finished: Finished, text: bytes | None = None) -> Any:
        try:
            return json.loads(finished.output if text is None else text)
        except (ValueError, RecursionError) as error:
            raise self._unknown("output") from error

    def _parse(self, item: Any) -> StoredObject | None:
        """Return a snapshot; None for one that this program did not store.

        Raises:
            OpsError: It has another form.
        """
        try:
            engine_id, tags = item["id"], item.get("tags") or []
            labels = parse_labels(tags)
            time = _FRACTION.sub("", item["time"]).replace("Z", "+00:00")
            source = str((item.get("paths") or [""])[0])
            is_id = _ID.fullmatch(engine_id)
        except (TypeError, KeyError, AttributeError) as error:
            raise self._unknown("list") from error
        try:
            moment = datetime.fromisoformat(time).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            return None  # of another writer: restic stores any year that it is given
        return labelled(engine_id, labels, moment, source) if is_id else None


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, BinaryIO]]:
    reading, writing = os.pipe()
    with open(reading, "rb", 0), open(writing, "wb", 0) as stream:
        yield reading, stream


def _text(line: str) -> str:
    """Return the text of a line on stderr, which newer versions write as JSON."""
    if line.startswith("{"):
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return line
        if isinstance(message, dict):
            error = message.get("error")
            nested = error.get("message") if isinstance(error, dict) else None
            return str(message.get("message") or nested or line)
    return line
