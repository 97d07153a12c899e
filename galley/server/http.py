"""uvicorn's HTTP/1.1 protocol with limits on what may come before a body."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HeaderLimitExceeded(Exception):
    """Ends the reading of a request; the parser turns it into a 400."""


def limited_protocol(max_bytes: int, max_count: int) -> type[HttpToolsProtocol]:
    """A protocol class that answers 400 to a request line and headers beyond the limits."""

    class LimitedProtocol(HttpToolsProtocol):
        _in_head = False
        _size = 0

        def on_message_begin(self) -> None:
            self._in_head, self._size = True, 0
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            self._size += len(name) + len(value)
            if self._size > max_bytes or len(self.headers) >= max_count:
                raise HeaderLimitExceeded
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                # One endless header is not told of until it is complete.
                self._size += len(data)
                if self._size > 2 * max_bytes and not self.transport.is_closing():
                    self.send_400_response("Request headers are too large.")

    return LimitedProtocol
