"""The engines' live view as a stream of frames for all watchers.

One task asks the engines a few times a second and hands each answer to every watcher; it runs only
while there is one. A watcher that does not read misses frames, and sees by their steps which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from galley.errors import EngineDead, Overloaded
from galley.frontend.client import EngineClient

#: Seconds between two frames.
INTERVAL = 0.25
#: Frames that are kept for a watcher that does not read.
MOST_UNREAD = 8
MOST_WATCHERS = 16


class LiveFeed:
    """Frames are JSON objects: `{"engines": [LiveView, …]}`, or `{"down": reason, "now": seconds}`
    while an engine is down.
    """

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self._task: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raise Overloaded if there are as many watchers as are allowed."""
        if len(self._watchers) >= MOST_WATCHERS:
            raise Overloaded(f"{MOST_WATCHERS} browsers are watching already.")

    async def frames(self) -> AsyncIterator[bytes]:
        """Frames from now on; ends when no engine will come again."""
        unread: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_UNREAD)
        self._watchers.add(unread)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._watch())
        try:
            while (frame := await unread.get()) is not None:
                yield frame
        finally:
            self._watchers.discard(unread)
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _watch(self) -> None:
        epoch, step = 0, -1  # of the last view
        try:
            while True:
                try:
                    views = await self._engine.call("live_view", epoch, step)
                except EngineDead as e:
                    self._hand_out({"down": e.message, "now": time.time()})
                    await self._engine.wait_healthy()
                    continue
                self._hand_out({"engines": views})
                [view] = views  # there is one engine
                steps = view["columns"]["step"]
                step = steps[-1] if steps else step if view["epoch"] == epoch else 0
                epoch = view["epoch"]
                await asyncio.sleep(INTERVAL)
        except EngineDead:
            self._end()  # for good: the server shuts down, or has given up
        except Exception:
            self._end()
            raise
        # Cancelled: the last watcher has left, and the next one may be here, with its own task.

    def _end(self) -> None:
        for unread in self._watchers:
            _put(unread, None)

    def _hand_out(self, frame: object) -> None:
        encoded = msgspec.json.encode(frame)
        for unread in self._watchers:
            _put(unread, encoded)


def _put(unread: asyncio.Queue[bytes | None], frame: bytes | None) -> None:
    if unread.full():
        unread.get_nowait()
    unread.put_nowait(frame)
