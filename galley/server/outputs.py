"""Outputs of several prompts of one call: merged as they come, or awaited all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from galley.request import RequestOutput


class Stream(Protocol):
    """The outputs of one prompt; closing it before its end aborts the request."""

    def __aiter__(self) -> Stream: ...
    async def __anext__(self) -> RequestOutput: ...
    async def aclose(self) -> None: ...


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
