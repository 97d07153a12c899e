"""Answers on their way out: outputs of one or several prompts, awaited whole or sent as events.

    engine client ── update ──▶ EventResponse ──▶ Relay ── once a step, all streams ──▶ Sink, socket
                                    │       text alone, as it comes ─▶ EventTap ─┘
                                    └── task: begins, waits for slow readers, ends

Whatever runs here ends when its client goes away, and closing an output stream ends its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from galley.errors import GalleyError
from galley.request import RequestOutput
from galley.server.errors import ClientDisconnected
from galley.server.http import SINK, Sink
from galley.server.response_builder import to_json

T = TypeVar("T")

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
#: What a reader of events skips.
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"


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


class OutputStream(Protocol):
    """The outputs of one prompt; closing it before its end aborts the request."""

    def __aiter__(self) -> OutputStream: ...
    async def __anext__(self) -> RequestOutput: ...
    async def aclose(self) -> None: ...
    def poll(self) -> RequestOutput | None: ...
    def set_tap(self, tap: EventTap | None) -> None: ...
    def on_update(self, notify: Callable[[], None]) -> None: ...


async def start_all(starting: Iterable[Coroutine[Any, Any, OutputStream]]) -> list[OutputStream]:
    """Start several requests one after another, or none: one's failure takes back the others."""
    streams: list[OutputStream] = []
    try:
        for coroutine in starting:
            streams.append(await coroutine)
    except BaseException:
        for stream in streams:
            await stream.aclose()
        raise
    return streams


async def merge(streams: list[OutputStream]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Outputs as they come, each with its prompt's index.

    Closing the merged stream closes all; the failure of one ends all and is raised here.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for output in stream:
                yield 0, output
        return
    # Bounded, so that a slow reader is felt by the streams, which then merge their updates.
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue(1)

    async def pump(index: int, stream: OutputStream) -> None:
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


async def collect(streams: list[OutputStream]) -> list[RequestOutput]:
    """The last output of each stream. The failure of one ends all and is raised here."""
    last: list[RequestOutput | None] = [None] * len(streams)
    async with aclosing(merge(streams)) as merged:
        async for index, output in merged:
            last[index] = output
    assert all(output is not None for output in last), "a stream ended without an output"
    return [output for output in last if output is not None]


class EventEncoder(Protocol):
    """Turns outputs into events; one object a stream."""

    def encode(self, index: int, output: RequestOutput) -> bytes:
        """Events for what is new of prompt `index`; may be empty."""

    def around_text(self, index: int) -> tuple[bytes, bytes] | None:
        """What stands before and after the text, as JSON, in an event of prompt `index` that has
        nothing else to tell, of which `encode` has had an output and will have the last: it is
        told of all tokens there. None where `encode` is always needed."""

    def last(self) -> bytes:
        """All that follows the last output."""

    def failed(self, error: GalleyError) -> bytes:
        """All that follows when the outputs end with an error."""


class EventTap:
    """Writes the text of one prompt as it comes: an event and a chunk of its own each time.

    This is once a token, with cold caches: one format, and no object that could be spared.
    """

    __slots__ = ("_chunk", "_sink", "_size")

    def __init__(self, sink: Sink, before: bytes, after: bytes) -> None:
        self._sink = sink
        self._size = len(before) + len(after)
        around = before.replace(b"%", b"%%"), after.replace(b"%", b"%%")
        self._chunk = b"%%x\r\n%b%%b%b\r\n" % around

    def write(self, text: str) -> bool:
        """False, and nothing is written, while the reader does not keep up."""
        sink = self._sink
        if not sink.open:
            return False
        body = to_json(text)
        size = self._size + len(body)
        sink.transport.write(self._chunk % (size, body))
        sink.written += size
        return True


class Relay:
    """Writes what is new in all streams, once a turn of the event loop.

    A step of an engine updates many streams at once: here they are encoded and written one
    after another, without waking a task for each.
    """

    def __init__(self) -> None:
        self._due: list[EventResponse] = []

    def add(self, response: EventResponse) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._write)
        self._due.append(response)

    def _write(self) -> None:
        due, self._due = self._due, []
        for response in due:
            response.push()


class EventResponse(Response):
    """Sends the outputs of `streams` as events.

    Nothing is sent before the first output, so that a request that fails at once gets a real
    status. A later failure is sent as an event. When the client leaves, the streams are closed,
    which ends their requests. While the client is slow its updates wait where they merge.

    Args:
        relay: None where all must pass through the application's layers.
        keep_alive: seconds of silence after which a comment is sent, also before the first
            output; 0: never.
    """

    def __init__(
        self,
        relay: Relay | None,
        streams: Sequence[OutputStream],
        events: EventEncoder,
        keep_alive: float = 0,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(HEADERS)
        self._relay = relay
        self._streams = streams
        self._events = events
        self._keep_alive = keep_alive
        self._left = len(streams)
        #: Prompts that have updates.
        self._updates: list[int] = []
        self._wake = asyncio.Event()
        #: Set while the task sleeps, and the relay may write.
        self._sink: Sink | None = None
        self._error: Exception | None = None
        #: Prompts that have had an output → where their text alone may go.
        self._begun: dict[int, EventTap | None] = {}
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            sink = None if self._relay is None else scope.get(SINK)
            await until_disconnect(receive, self._run(sink, send))
        except ClientDisconnected:
            # There is nobody to tell; an answer that had not begun still counts as failed.
            if not self._started:
                raise
        finally:
            for stream in self._streams:
                await stream.aclose()

    # ------------------------------------------------------------------ updates arrive

    def _on_update(self, index: int) -> None:
        self._updates.append(index)
        if self._sink is None:
            self._wake.set()
        elif len(self._updates) == 1 and self._relay is not None:
            self._relay.add(self)

    def push(self) -> None:
        """Write what is new, or wake the task where that is not all."""
        sink, updates = self._sink, self._updates
        if sink is None or not sink.ready:
            self._wake.set()
            return
        try:
            sink.write(self._take())
            self._set_taps(sink, updates)
        except Exception as error:  # noqa: BLE001 - raised again in the task
            self._error = error
        if not self._left or self._error is not None:
            self._wake.set()

    def _take(self) -> bytes:
        """Events for all updates. Raises what a request has ended with."""
        updates, self._updates = self._updates, []
        parts = []
        for index in updates:
            output = self._streams[index].poll()
            if output is not None:
                self._begun.setdefault(index, None)
                self._left -= output.finished
                parts.append(self._events.encode(index, output))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _set_taps(self, sink: Sink, indices: Iterable[int]) -> None:
        """From here on text alone need not come by."""
        for index in indices:
            if index not in self._begun:
                continue
            tap = self._begun[index]
            if tap is None:
                around = self._events.around_text(index)
                if around is None:
                    continue
                tap = self._begun[index] = EventTap(sink, *around)
            self._streams[index].set_tap(tap)

    # ------------------------------------------------------------------ the task

    async def _run(self, sink: Sink | None, send: Send) -> None:
        try:
            for index, stream in enumerate(self._streams):
                stream.on_update(partial(self._on_update, index))
            while self._left:
                await self._sleep(sink, send)
                await self._send_news(send)
            end = self._events.last()
        except GalleyError as error:
            if not self._started:
                raise
            end = self._events.failed(error)
        await self._start(send)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _sleep(self, sink: Sink | None, send: Send) -> None:
        """Return when there is something that the relay leaves to the task."""
        if self._updates:
            return
        self._wake.clear()
        if self._started and sink is not None:
            self._sink = sink
            if sink.ready:
                self._set_taps(sink, list(self._begun))
        try:
            while not await self._woken():
                await self._start(send)
                comment = {
                    "type": "http.response.body",
                    "body": KEEP_ALIVE_COMMENT,
                    "more_body": True,
                }
                await send(comment)
        finally:
            self._sink = None
            for index in self._begun:
                self._streams[index].set_tap(None)
        if self._error is not None:
            raise self._error

    async def _woken(self) -> bool:
        """Wait; False after a time in which nothing was sent."""
        if not self._keep_alive:
            return await self._wake.wait()
        while True:
            before = self._sink.written if self._sink else 0
            try:
                return await asyncio.wait_for(self._wake.wait(), self._keep_alive)
            except TimeoutError:
                if before == (self._sink.written if self._sink else 0):
                    return False

    async def _send_news(self, send: Send) -> None:
        if self._started:
            # Waits for a slow reader; what comes meanwhile is taken with the rest.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        body = self._take()
        if self._begun:
            await self._start(send)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _start(self, send: Send) -> None:
        if not self._started:
            self._started = True
            headers = self.raw_headers
            await send({"type": "http.response.start", "status": 200, "headers": headers})
