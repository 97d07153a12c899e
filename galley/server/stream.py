"""Answers on their way out: outputs of one or several prompts, awaited whole or sent as events.

Whatever runs here ends when its client goes away, and closing an output stream ends its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from galley.errors import GalleyError
from galley.request import RequestOutput
from galley.server.errors import ClientDisconnected

T = TypeVar("T")

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it when the client disconnects.

    The request's body must have been read. `work` has ended in every case when this returns.

    Raises:
        ClientDisconnected: the client went first.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Stream(Protocol):
    """The outputs of one prompt; closing it before its end aborts the request."""

    def __aiter__(self) -> Stream: ...
    async def __anext__(self) -> RequestOutput: ...
    async def aclose(self) -> None: ...


async def start_all(starting: Iterable[Coroutine[Any, Any, Stream]]) -> list[Stream]:
    """Start several requests one after another, or none: one's failure takes back the others."""
    streams: list[Stream] = []
    try:
        for coroutine in starting:
            streams.append(await coroutine)
    except BaseException:
        for stream in streams:
            await stream.aclose()
        raise
    return streams


async def merge(streams: list[Stream]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Outputs as they come, each with its prompt's index.

    Closing the merged stream closes all; the failure of one ends all and is raised here.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for output in stream:
                yield 0, output
        return
    # Bounded, so that a slow reader is felt by the streams, which then merge their news.
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue(1)

    async def pump(index: int, stream: Stream) -> None:
        try:
            async with aclosing(stream):
                async for output in stream:
                    await queue.put((index, output))
            await queue.put((index, None))
        except Exception as error:  # noqa: BLE001 - raised again by the reader
            await queue.put((index, error))

    pumps = [asyncio.ensure_future(pump(i, s)) for i, s in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            index, item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def collect(streams: list[Stream]) -> list[RequestOutput]:
    """The last output of each stream. The failure of one ends all and is raised here."""
    last: list[RequestOutput | None] = [None] * len(streams)
    async with aclosing(merge(streams)) as merged:
        async for index, output in merged:
            last[index] = output
    assert all(output is not None for output in last), "a stream ended without an output"
    return [output for output in last if output is not None]


class Events(Protocol):
    """Turns outputs into events; one object a stream."""

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new of prompt `index`; may be empty."""

    def last(self) -> bytes:
        """All that follows the last output."""

    def failed(self, error: GalleyError) -> bytes:
        """All that follows when the outputs end with an error."""


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
            end = self._events.failed(error)
        if not self._started:
            await self._start(send)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _start(self, send: Send) -> None:
        self._started = True
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})
