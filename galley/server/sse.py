"""Server-sent events of a generation: engine outputs in, bytes on the socket out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from galley.errors import GalleyError
from galley.request import RequestOutput
from galley.server.disconnect import ClientDisconnected, until_disconnect
from galley.server.errors import error_event

DONE = b"data: [DONE]\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Events(Protocol):
    """Turns outputs into events; one object a stream."""

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new of prompt `index`; may be empty."""

    def last(self) -> bytes:
        """Events after the last output, before [DONE]."""


class EventResponse(Response):
    """Streams `outputs` as events.

    Nothing is sent before the first output, so that a request that fails at once gets a real
    status. A later failure is sent as an event with an error object. When the client leaves, the
    outputs are closed, which ends their request.
    """

    def __init__(self, outputs: AsyncIterator[tuple[int, RequestOutput]], events: Events) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(HEADERS)
        self._outputs = outputs
        self._events = events
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._stream(send))
        except ClientDisconnected:
            # There is nobody to tell; an answer that had not begun still counts as failed.
            if not self._started:
                raise

    async def _stream(self, send: Send) -> None:
        encode = self._events.encode
        try:
            async for index, output in self._outputs:
                body = encode(index, output)
                if not self._started:
                    await self._start(send)
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            end = self._events.last()
        except GalleyError as error:
            if not self._started:
                raise
            end = b"data: " + error_event(error) + b"\n\n"
        if not self._started:
            await self._start(send)
        await send({"type": "http.response.body", "body": end + DONE, "more_body": False})

    async def _start(self, send: Send) -> None:
        self._started = True
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})
