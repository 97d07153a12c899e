"""The response that sends outputs as server-sent events.

Two writers take turns: the response's task writes through ASGI, and while it sleeps the fast path
(`fast_stream`) writes to the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from galley.errors import GalleyError
from galley.server.access_log import CLIENT_LEFT
from galley.server.errors import ClientDisconnected
from galley.server.fast_stream import SINK, FastPath, Relay
from galley.server.stream import EventEncoder, OutputStream, PendingOutputs, until_disconnect

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
#: Readers of events skip it.
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"


class EventResponse(Response):
    """Sends the outputs of `streams` as events.

    Nothing is sent before the first output, so that a request that fails at once gets a real
    status. A later failure is sent as an event. When the client leaves, the streams are closed,
    which aborts their requests. While the client is slow, its updates merge in the streams.

    Args:
        relay: None where all must pass through the application's layers.
        keep_alive: seconds of silence after which a comment is sent, also before the first
            output; 0: never.
    """

    def __init__(
        self,
        relay: Relay | None,
        streams: Sequence[OutputStream],
        encoder: EventEncoder,
        keep_alive: float = 0,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(HEADERS)
        self._relay = relay
        self._encoder = encoder
        self._keep_alive = keep_alive
        self._pending = PendingOutputs(streams, encoder)
        self._wake = asyncio.Event()
        self._fast: FastPath | None = None
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sink = scope.get(SINK)
        if self._relay is not None and sink is not None:
            self._fast = FastPath(self._relay, sink, self._pending, self._wake.set)
        try:
            await until_disconnect(receive, self._run(send))
        except ClientDisconnected:
            scope[CLIENT_LEFT] = True
            # An answer that had not begun counts as failed.
            if not self._started:
                raise
        finally:
            for stream in self._pending.streams:
                await stream.aclose()

    async def _run(self, send: Send) -> None:
        try:
            for index, stream in enumerate(self._pending.streams):
                stream.on_update(partial(self._on_update, index))
            while self._pending.left:
                await self._sleep(send)
                await self._send_pending(send)
            end = self._encoder.last()
        except GalleyError as error:
            if not self._started:
                raise
            end = self._encoder.failed(error)
        await self._start(send)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    def _on_update(self, index: int) -> None:
        self._pending.updated.append(index)
        if self._fast is None or not self._fast.notify():
            self._wake.set()

    async def _sleep(self, send: Send) -> None:
        """Return when there is something that the fast path leaves to the task."""
        if self._pending.updated:
            return
        self._wake.clear()
        fast = self._fast if self._started else None
        if fast is not None:
            fast.start()
        try:
            while not await self._woken(fast):
                await self._start(send)
                comment = {"type": "http.response.body", "body": KEEP_ALIVE_COMMENT}
                await send({**comment, "more_body": True})
        finally:
            if fast is not None:
                fast.stop()
        if fast is not None and fast.error is not None:
            raise fast.error

    async def _woken(self, fast: FastPath | None) -> bool:
        """Wait; False after a time in which nothing was sent."""
        if not self._keep_alive:
            return await self._wake.wait()
        while True:
            before = fast.written if fast else 0
            try:
                return await asyncio.wait_for(self._wake.wait(), self._keep_alive)
            except TimeoutError:
                if before == (fast.written if fast else 0):
                    return False

    async def _send_pending(self, send: Send) -> None:
        if self._started:
            # Waits for a slow reader; what comes meanwhile is taken with the rest.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        body = self._pending.take()
        if self._pending.begun:
            await self._start(send)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _start(self, send: Send) -> None:
        if not self._started:
            self._started = True
            headers = self.raw_headers
            await send({"type": "http.response.start", "status": 200, "headers": headers})
