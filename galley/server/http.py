"""uvicorn's HTTP/1.1 protocol with limits on what may come before a body and how long that may
take, and with a short way out for the parts of a stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: Key of a request's scope under which its `Sink` lies.
SINK = "galley.sink"
#: Seconds that a client gets to send a request's head.
HEAD_TIMEOUT = 30.0


class HeaderLimitExceeded(Exception):
    """Ends the reading of a request; the parser turns it into a 400."""


class Sink:
    """Writes parts of a body that has begun, past the layers of the application.

    Between two messages that the application itself sends; order is the writer's business.

    Attributes:
        open: the reader is there and keeps up.
        written: bytes that went this way.
        transport: where chunks go; who writes one there counts its part in `written`.
    """

    __slots__ = ("_cycle", "open", "transport", "written")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self.open = not cycle.flow.write_paused
        self.written = 0
        self.transport = cycle.transport

    @property
    def ready(self) -> bool:
        """A part may be written now: it is open, and the body has no length."""
        return self.open and bool(self._cycle.chunked_encoding)

    def write(self, part: bytes) -> None:
        if part and self.open:
            self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.written += len(part)


class LimitedProtocol(HttpToolsProtocol):
    """Answers 400 to a request line and headers beyond the limits, and closes connections that take
    longer than `head_timeout` seconds to send them.
    """

    max_bytes: int
    max_count: int
    head_timeout: float
    _in_head = False
    _size = 0
    _patience: asyncio.TimerHandle | None = None
    #: Of the requests that are not answered yet, which are answered one after another.
    _sinks: deque[Sink]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._sinks = deque()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        self._open_sinks(False)
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(self.head_timeout, self.transport.close)

    def _head_is_here(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def on_message_begin(self) -> None:
        self._in_head, self._size = True, 0
        self._wait_for_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if self._size > self.max_bytes or len(self.headers) >= self.max_count:
            raise HeaderLimitExceeded
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_is_here()
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            sink = Sink(self.cycle)
            self._sinks.append(sink)
            self.cycle.scope[SINK] = sink  # type: ignore[literal-required]

    def on_response_complete(self) -> None:
        if self._sinks:
            self._sinks.popleft()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._open_sinks(False)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._open_sinks(True)

    def _open_sinks(self, open: bool) -> None:
        for sink in self._sinks:
            sink.open = open

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            # One endless header is not told of until it is complete.
            self._size += len(data)
            if self._size > 2 * self.max_bytes and not self.transport.is_closing():
                self.send_400_response("Request headers are too large.")


def limited_protocol(
    max_bytes: int, max_count: int, head_timeout: float = HEAD_TIMEOUT
) -> type[LimitedProtocol]:
    """The protocol with these limits: uvicorn makes its instances without arguments of ours."""
    limits = {"max_bytes": max_bytes, "max_count": max_count, "head_timeout": head_timeout}
    return type("LimitedProtocol", (LimitedProtocol,), limits)
