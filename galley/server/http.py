"""uvicorn's HTTP/1.1 protocol with limits on the size of a request's head and on its time."""

from __future__ import annotations

import asyncio
from typing import Any

from galley.server.fast_stream import SinkProtocol

#: Seconds that a client gets to send a request's head.
HEAD_TIMEOUT = 30.0


class HeaderLimitExceeded(Exception):
    """Ends the reading of a request; the parser turns it into a 400."""


class LimitedProtocol(SinkProtocol):
    """Answers 400 to a request line and headers beyond the limits, and closes connections that take
    longer than `head_timeout` seconds to send them.
    """

    max_bytes: int
    max_count: int
    head_timeout: float
    _in_head = False
    _size = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.access_log = False  # `AccessLog` writes it.
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_message_begin(self) -> None:
        self._in_head, self._size = True, 0
        self._start_timer()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if self._size > self.max_bytes or len(self.headers) >= self.max_count:
            raise HeaderLimitExceeded
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            # The parser reports a header when it is complete, so an endless one is counted here.
            self._size += len(data)
            if self._size > 2 * self.max_bytes and not self.transport.is_closing():
                self.send_400_response("Request headers are too large.")


def limited_protocol(
    max_bytes: int, max_count: int, head_timeout: float = HEAD_TIMEOUT
) -> type[LimitedProtocol]:
    """The protocol with these limits: uvicorn makes its instances without arguments of ours."""
    limits = {"max_bytes": max_bytes, "max_count": max_count, "head_timeout": head_timeout}
    return type("LimitedProtocol", (LimitedProtocol,), limits)
