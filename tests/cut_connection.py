"""A connection to a server that ends, or where something happens, at a chosen point."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from postgres_server import Server

COMMIT = b"COMMIT;"


@contextlib.contextmanager
def cutting(
    server: Server, end: int | bytes, instead: Callable[[], None] | None = None
) -> Iterator[int]:
    """Listen on a port, pass everything on to the server, and hang up at some point.

    Args:
        end: Behind so many bytes, or before the first piece with these in it.
        instead: Called at that point; then everything goes on.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", server.port)) as upstream:
            back = threading.Thread(target=pour, args=(upstream, client))
            back.start()
            with contextlib.suppress(OSError):
                forward(client, upstream)
            for each in (client, upstream):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            back.join()

    def forward(client: socket.socket, upstream: socket.socket) -> None:
        left = end if isinstance(end, int) else sys.maxsize
        while left > 0 and (content := client.recv(min(left, 65536))):
            if isinstance(end, bytes) and end in content:
                if not instead:
                    return
                instead()
            upstream.sendall(content)
            left -= len(content)

    def pour(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
            target.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join()
        listener.close()


def signal_self() -> None:
    """Ask this process to end, as `kill` does, and leave it the time to notice."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
