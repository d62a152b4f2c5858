"""Two processes: one with the rights of a home's owner, and root's, which serves it.

When root works on another user's home, a child process does the work, which has taken the user's
rights for good (`process.privileges`). The parent keeps root's for what the user may not do: to
read the files that root named, and to change entries of directories that root alone can write, such
as a snapshot directory. The child sends each such operation of `fs.beneath` through a socket and
receives the result or a descriptor. The parent does not touch the home.

A message is its length, 4 bytes big-endian, and JSON: the name of a function and its arguments, or
a result. A descriptor accompanies the length.
"""

import contextlib
import errno
import json
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.fs import beneath
from sagewai_ops.fs.free_space import nearest_existing
from sagewai_ops.fs.given_files import resolve_given_path, route_given_files
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import socket

_LENGTH = struct.Struct(">I")
_FINISHED = "finished"
# The position of the paths among the arguments. An owner is never changed for the child.
_PATHS = {
    **dict.fromkeys(("open_directory", "open_file", "create_file", "make_directory"), (0,)),
    **dict.fromkeys(("unlink", "remove_directory", "remove_tree", "list_directory"), (0,)),
    **dict.fromkeys(("status", "make_link", "read_link", "set_mode", "set_times"), (0,)),
    "sync_directory": (0,),
    **dict.fromkeys(("rename", "exchange", "make_hard_link"), (0, 1)),
}
_READS = ("open_file", "status")


@dataclass(frozen=True, slots=True)
class Grant:
    """What the parent does for the child.

    Attributes:
        directories: Only root can write them; their entries may be changed. Absolute, resolved.
        files: They may be read.
    """

    directories: tuple[Path, ...] = ()
    files: frozenset[Path] = frozenset()

    def has_directory(self, path: Path) -> bool:
        """Return whether a path is one of the directories or below it."""
        return ".." not in path.parts and any(map(path.is_relative_to, self.directories))


def is_roots_alone(path: Path) -> bool:
    """Return whether only root can change the entries of a directory.

    Args:
        path: Absolute and resolved; of one that does not exist, its nearest parent decides.
    """
    status = os.lstat(nearest_existing(path))
    return (
        stat.S_ISDIR(status.st_mode)
        and not status.st_uid
        and not status.st_mode & beneath.OTHERS_WRITE
    )


def has_roots_path(path: Path) -> bool:
    """Return whether only root can change a directory and the ones above it.

    In a sticky directory such as /tmp, other users can create entries but not replace root's.
    """
    return is_roots_alone(path) and all(
        not (status := os.lstat(parent)).st_uid
        and (not status.st_mode & beneath.OTHERS_WRITE or status.st_mode & stat.S_ISVTX)
        for parent in path.parents
    )


def connect(connection: "socket.socket", grant: Grant) -> Callable[[Any], None]:
    """Send what is granted to the process at the other end, which runs `serve`, from here on.

    Returns:
        The function to call with the result at the end, a value of JSON.
    """
    client = _Client(connection)
    for path in (*grant.directories, *grant.files):
        beneath.route(path, client.call)

    def open_given(path: Path) -> int | None:
        absolute = Path(os.path.abspath(path))
        return client.call("open_file", absolute) if absolute in grant.files else None

    route_given_files(open_given)
    return lambda result: client.call(_FINISHED, result)


class _Client:
    """The child's end of the socket."""

    def __init__(self, connection: "socket.socket") -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def call(self, name: str, *arguments: Any) -> Any:
        """Perform an operation in the parent, and return its result.

        Raises:
            OSError: As the operation raises it.
        """
        with self._lock:
            _send(self._connection, [name, *map(_encode, arguments)])
            answer, descriptor = _receive(self._connection)
        if descriptor is not None:
            return descriptor
        if "error" in answer:
            number, text, *names = answer["error"]
            raise OSError(number, text, names[0], None, names[1])
        if "status" in answer:
            values, named = answer["status"]
            return os.stat_result(values, named)
        return answer.get("value")


def serve(connection: "socket.socket", grant: Grant) -> Any:
    """Serve the child until it has finished or ended; return its result, or None."""
    with contextlib.suppress(ConnectionError):
        while True:
            (name, *arguments), _none = _receive(connection)
            if name == _FINISHED:
                _send(connection, {})
                return arguments[0]
            descriptor = None
            try:
                value = _perform(grant, name, arguments)
                answer: dict[str, Any] = {"value": value}
                if isinstance(value, os.stat_result):
                    answer = {"status": value.__reduce__()[1]}
                elif isinstance(value, int) and not isinstance(value, bool):
                    answer, descriptor = {}, value
            except OSError as error:
                names = [error.filename, error.filename2]
                answer = {
                    "error": [error.errno, error.strerror, *map(_encode, names)],
                }
            try:
                _send(connection, answer, descriptor)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
    return None


def _perform(grant: Grant, name: str, arguments: list[Any]) -> Any:
    """Perform an operation on paths that are granted.

    Raises:
        OSError: EPERM for any other; else as the operation.
    """
    positions = _PATHS.get(name, ())
    paths = [Path(arguments[position]) for position in positions]
    if name in _READS and paths[0] in grant.files:
        arguments[:] = [resolve_given_path(paths[0])]
        paths = [arguments[0]]
    elif not paths or not all(map(grant.has_directory, paths)):
        raise OSError(errno.EPERM, "not granted", arguments[0] if arguments else None)
    for position, path in zip(positions, paths, strict=True):
        arguments[position] = path
    return getattr(beneath, name)(*arguments)


def _encode(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _send(connection: "socket.socket", message: Any, descriptor: int | None = None) -> None:
    content = json.dumps(message).encode()
    length = _LENGTH.pack(len(content))
    if descriptor is None:
        connection.sendall(length + content)
    else:
        import socket

        socket.send_fds(connection, [length], [descriptor])
        connection.sendall(content)


def _receive(connection: "socket.socket") -> tuple[Any, int | None]:
    """Receive a message and the descriptor that accompanies it.

    Raises:
        ConnectionError: The other process has ended.
    """
    import socket

    length, descriptors, _flags, _address = socket.recv_fds(connection, _LENGTH.size, 1)
    length += b"".join(_read(connection, _LENGTH.size - len(length)))
    content = b"".join(_read(connection, _LENGTH.unpack(length)[0]))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return json.loads(content), next(iter(descriptors), None)


def _read(connection: "socket.socket", count: int) -> Iterator[bytes]:
    while count:
        piece = connection.recv(min(count, 1 << 20))
        if not piece:
            raise ConnectionError("the other process has ended")
        count -= len(piece)
        yield piece
