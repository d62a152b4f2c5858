"""A proxy for HTTP that fails on purpose: a connection cut, an error, a wrong or an old answer.

It runs in a thread with an event loop of its own. A test adds rules; the first that matches a
request is used, as often as it allows, and all others are passed on unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Rule:
    """What happens to requests.

    Attributes:
        method: Of the requests.
        target: A pattern that is searched in path and query.
        times: How often it applies; later requests are passed on.
        skip: How many requests that match are passed on first.
        status: Answered instead of asking the server.
        cut_request_after: Close after this many bytes of the request's content.
        cut_answer_after: Close after this many bytes of the answer's content.
        delay_seconds: Before the request is passed on.
        silent: Never answer.
        length_change: Added to the answer's Content-Length.
        replace_body: The content of the answer instead of the server's, of any length.
        alter: Applied to the content of the answer, whose length it must keep.
        headers: Of the answer, replaced.
        swallow: Pass the request on, and close without its answer.
    """

    method: str = ""
    target: str = ""
    times: int = 1_000_000
    skip: int = 0
    status: int = 0
    cut_request_after: int | None = None
    cut_answer_after: int | None = None
    delay_seconds: float = 0.0
    silent: bool = False
    length_change: int = 0
    replace_body: bytes | None = None
    flip_byte: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    swallow: bool = False

    def applies(self, method: str, target: str) -> bool:
        """Return whether it applies to a request, and count it."""
        if (self.method and self.method != method) or not re.search(self.target, target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return self.times >= 0


class FaultProxy:
    """The proxy in front of a port of 127.0.0.1.

    Attributes:
        port: Of the proxy.
        requests: Method and target of each request so far.
        rules: To be changed by the test.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.port = 0
        self.requests: list[tuple[str, str]] = []
        self.rules: list[Rule] = []
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait(10)

    def stop(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        while tasks := asyncio.all_tasks(self._loop):  # a connection may just have begun
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            while await self._answer(reader, writer):
                pass
        await _close(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handle one request; return whether the connection goes on."""
        request = await reader.readuntil(b"\r\n\r\n")
        method, target, _version = request.split(b"\r\n", 1)[0].decode().split(" ", 2)
        self.requests.append((method, target))
        rule = next((rule for rule in self.rules if rule.applies(method, target)), Rule())
        length = int(_header(request, b"content-length") or 0)
        if rule.cut_request_after is not None:
            await reader.readexactly(min(length, rule.cut_request_after))
            return False
        body = await reader.readexactly(length)
        if rule.silent:
            await asyncio.sleep(3600)
        await asyncio.sleep(rule.delay_seconds)
        if rule.status:
            content = b"<Error><Code>Injected</Code><Message>by the test</Message></Error>"
            head = f"HTTP/1.1 {rule.status} Injected\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + (b"" if method == "HEAD" else content))
            await writer.drain()
            return True
        answer_head, content = await self._ask(method, request + body)
        if rule.swallow:
            return False
        if rule.replace_body is not None:
            content = rule.replace_body
            answer_head = _with_header(answer_head, "Content-Length", str(len(content)))
        if rule.flip_byte is not None:
            flipped = bytearray(content)
            flipped[rule.flip_byte] ^= 1
            content = bytes(flipped)
        if rule.length_change:
            length = len(content) + rule.length_change
            answer_head = _with_header(answer_head, "Content-Length", str(length))
        for name, value in rule.headers.items():
            answer_head = _with_header(answer_head, name, value)
        writer.write(answer_head)
        if rule.cut_answer_after is not None:
            writer.write(content[: rule.cut_answer_after])
            await writer.drain()
            return False
        writer.write(content)
        await writer.drain()
        return not rule.length_change

    async def _ask(self, method: str, request: bytes) -> tuple[bytes, bytes]:
        """Return the head and the content of the server's answer."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.upstream_port, limit=1 << 20
        )
        try:
            return await self._exchange(method, request, reader, writer)
        finally:
            await _close(writer)

    async def _exchange(
        self,
        method: str,
        request: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[bytes, bytes]:
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        content = b""
        status = int(head.split(b" ", 2)[1])
        if method == "HEAD" or status in (204, 304):
            pass
        elif (_header(head, b"transfer-encoding") or b"").lower() == b"chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                content += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
            head = re.sub(rb"(?i)\r\ntransfer-encoding:[^\r]*", b"", head)
            head = _with_header(head, "Content-Length", str(len(content)))
        else:
            content = await reader.readexactly(int(_header(head, b"content-length") or 0))
        return head, content


@contextlib.contextmanager
def fault_proxy(upstream_port: int) -> Iterator[FaultProxy]:
    """Run a proxy in front of a port of 127.0.0.1."""
    proxy = FaultProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.stop()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()


def _header(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"(?i)\r\n" + name + rb": *([^\r]*)", head)
    return found[1] if found else None


def _with_header(head: bytes, name: str, value: str) -> bytes:
    without = re.sub(rb"(?i)\r\n" + name.encode() + rb":[^\r]*", b"", head)
    return without[:-4] + f"\r\n{name}: {value}\r\n\r\n".encode()
