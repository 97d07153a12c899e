"""A minimal HTTP/1.1 load client: one connection per request, bytes time-stamped on arrival.

While the load runs, each received piece costs one call and one list entry. Parsing starts after all
requests have ended, because the client shares the machine with the server. This module handles HTTP
framing only; `backends` parses the content.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

#: Request timeout in seconds (the same as vLLM's client).
TIMEOUT = 6 * 3600.0
_LAST_CHUNK = b"0\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_CHUNKED = re.compile(rb"^transfer-encoding:.*\bchunked\b", re.IGNORECASE | re.MULTILINE)

Mark = tuple[float, bytes]
"""`time.perf_counter()` and the bytes that arrived then."""


@dataclass
class Reply:
    """The raw answer to one request. Times are `time.perf_counter()` seconds."""

    sent: float
    marks: list[Mark] = field(default_factory=list)
    error: str = ""
    """Why the answer is incomplete; "" if it is complete."""


@dataclass(frozen=True)
class Target:
    """Destination of requests: a URL, parsed once."""

    host: str
    port: int
    path: str
    headers: bytes
    context: ssl.SSLContext | None

    @staticmethod
    def of(url: str, headers: Mapping[str, str], insecure: bool = False) -> Target:
        """Raises ValueError for a URL that is neither http nor https."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http(s) URL: {url!r}")
        context = None
        if parts.scheme == "https":
            context = ssl.create_default_context()
            if insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
        port = parts.port or (443 if context else 80)
        lines = [f"Host: {parts.hostname}:{port}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "".join(line + "\r\n" for line in lines).encode()
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        return Target(parts.hostname, port, path or "/", head, context)

    def request(self, body: bytes | None, request_id: str = "") -> bytes:
        """Bytes of a JSON POST, or of a GET if `body` is None."""
        lines = [f"{'GET' if body is None else 'POST'} {self.path} HTTP/1.1\r\n".encode()]
        lines.append(self.headers)
        if request_id:
            lines.append(f"X-Request-Id: {request_id}\r\n".encode())
        if body is not None:
            lines.append(b"Content-Type: application/json\r\n")
            lines.append(f"Content-Length: {len(body)}\r\n".encode())
        return b"".join([*lines, b"\r\n", body or b""])


class _Exchange(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, data: bytes, done: asyncio.Future[None]) -> None:
        self.data = data
        self.done = done
        self.reply = Reply(0.0)
        self.transport: asyncio.Transport | None = None
        self.left = -1
        """Body bytes not yet received, -1 while unknown."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        marks = self.reply.marks
        marks.append((time.perf_counter(), data))
        if len(marks) == 1:
            self.left = _content_length(data)
        elif self.left >= 0:
            self.left -= len(data)
        if self.left == 0 or data.endswith(_LAST_CHUNK):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.done.done():
            self.reply.error = f"connection lost: {exc}"
        self._end()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if self.transport is not None:
            self.transport.close()


def _content_length(data: bytes) -> int:
    """Body bytes that follow `data`, the start of an answer; -1 without a Content-Length."""
    head, separator, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n")[1:] if separator else ():
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return max(0, int(value) - len(body))
    return -1


async def send(target: Target, data: bytes) -> Reply:
    """Send a request and collect the answer until it ends. Never raises OSError: a failure is the
    reply's `error`."""
    loop = asyncio.get_running_loop()
    sent = time.perf_counter()
    exchange = _Exchange(data, loop.create_future())
    exchange.reply.sent = sent
    try:
        await loop.create_connection(lambda: exchange, target.host, target.port, ssl=target.context)
        await asyncio.wait_for(exchange.done, TIMEOUT)
    except (OSError, TimeoutError) as e:
        exchange.reply.error = str(e) or type(e).__name__
    finally:
        if exchange.transport is not None:
            exchange.transport.close()
    return exchange.reply


@dataclass(frozen=True)
class Answer:
    """A reply without HTTP framing: status, and the body's pieces with their times."""

    status: int
    pieces: list[Mark]

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)


def unframe(reply: Reply) -> Answer:
    """Remove the HTTP head and transfer coding. A chunk gets the arrival time of its last byte.

    Raises:
        ValueError: the bytes are not an HTTP answer, or it is incomplete.
    """
    buffer, marks = b"", iter(reply.marks)
    when = reply.sent
    while b"\r\n\r\n" not in buffer:
        mark = next(marks, None)
        if mark is None:
            raise ValueError("the server closed the connection without an answer")
        when, data = mark
        buffer += data
    head, _, rest = buffer.partition(b"\r\n\r\n")
    first = _STATUS.match(head)
    if first is None:
        raise ValueError(f"not an HTTP answer: {head[:40]!r}")
    following = [(when, rest), *marks]
    if _CHUNKED.search(head):
        return Answer(int(first[1]), _chunks(following))
    missing = _content_length(head + b"\r\n\r\n") - sum(len(data) for _, data in following)
    if missing > 0:
        raise ValueError(f"the answer breaks off {missing} bytes before its end")
    return Answer(int(first[1]), [(t, data) for t, data in following if data])


def _chunks(marks: list[Mark]) -> list[Mark]:
    """Payloads of HTTP chunks: `size in hex CRLF payload CRLF`, ended by size 0."""
    pieces: list[Mark] = []
    buffer = b""
    for when, data in marks:
        buffer += data
        offset = 0
        while (line_end := buffer.find(b"\r\n", offset)) >= 0:
            size = int(buffer[offset:line_end].split(b";")[0], 16)
            start = line_end + 2
            if size == 0:
                return pieces
            if len(buffer) < start + size + 2:
                break
            pieces.append((when, buffer[start : start + size]))
            offset = start + size + 2
        buffer = buffer[offset:]
    raise ValueError("the answer breaks off")
