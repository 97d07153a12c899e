"""Streams of outputs: of one or several prompts, awaited whole or merged, and turned into events.

Closing an output stream aborts its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.types import Receive

from galley.errors import GalleyError
from galley.outputs import RequestOutput
from galley.server.errors import ClientDisconnected

T = TypeVar("T")


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


class TextTap(Protocol):
    """Where the text of a stream goes without becoming an output."""

    def write(self, text: str) -> bool:
        """False: not now, nor until the tap is set again."""


class OutputStream(Protocol):
    """The outputs of one prompt; closing it before its end aborts the request.

    `set_tap` sends text that comes alone to the tap; None: it becomes outputs again.
    """

    def __aiter__(self) -> OutputStream: ...
    async def __anext__(self) -> RequestOutput: ...
    async def aclose(self) -> None: ...
    def poll(self) -> RequestOutput | None: ...
    def set_tap(self, tap: TextTap | None) -> None: ...
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
        """Bytes before and after the JSON text in an event of prompt `index` that holds text alone;
        None: every event needs `encode`.

        With a pair, events of text alone may be written without `encode`, between the first
        output of the prompt and its last, which counts their tokens.
        """

    def last(self) -> bytes:
        """All that follows the last output."""

    def failed(self, error: GalleyError) -> bytes:
        """All that follows when the outputs end with an error."""


class PendingOutputs:
    """Deltas of one answer's streams that are not written yet.

    Attributes:
        updated: prompts that may have outputs.
        begun: prompts that have had one.
        left: prompts that have not ended.
    """

    def __init__(self, streams: Sequence[OutputStream], encoder: EventEncoder) -> None:
        self.streams = streams
        self.encoder = encoder
        self.updated: list[int] = []
        self.begun: set[int] = set()
        self.left = len(streams)

    def take(self) -> bytes:
        """Events for all updates. Raises what a request has ended with."""
        updated, self.updated = self.updated, []
        parts = []
        for index in updated:
            output = self.streams[index].poll()
            if output is not None:
                self.begun.add(index)
                self.left -= output.finished
                parts.append(self.encoder.encode(index, output))
        return parts[0] if len(parts) == 1 else b"".join(parts)
