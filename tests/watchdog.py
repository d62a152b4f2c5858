"""A watchdog on this machine that records its requests, and the ways in which it can fail."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Watchdog:
    """The requests: paths and bodies, in order."""

    url: str = ""
    output: list[tuple[str, str]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """What was asked for, without the bodies."""
        return [path for path, _body in self.output]


@contextlib.contextmanager
def watchdog(
    *, answer: int = 200, certificate: Path | None = None, location: str = ""
) -> Iterator[Watchdog]:
    """Run a watchdog that answers so for the length of the block.

    Args:
        certificate: A PEM file with a certificate and its key: it speaks TLS.
        location: Where its answer redirects to.
    """
    found = Watchdog()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.output.append((self.path, body.decode()))
            self.send_response(answer)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_words: None  # type: ignore[method-assign]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        scheme = "https" if certificate else "http"
        found.url = f"{scheme}://127.0.0.1:{server.server_port}/secret-uuid"
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def impostor(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the URL of a server that does something else than HTTP with one connection.

    Args:
        talk: Ends with an OSError at the latest when the other side hangs up.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _address = server.accept()
                with connection:
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/secret-uuid"
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes accept
            thread.join()
