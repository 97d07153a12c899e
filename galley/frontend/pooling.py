"""A request that pools, as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from galley.frontend.output_processor import RequestState
from galley.outputs import PoolingRequestOutput


class PendingVector:
    """The vector of a prompt that an engine computes. `close` before its end aborts the request."""

    def __init__(self, state: RequestState, cancel: Callable[[RequestState], None]) -> None:
        self._state = state
        self._cancel = cancel
        self._ended = asyncio.Event()
        state.notify = self._ended.set

    async def output(self) -> PoolingRequestOutput:
        """Wait for the vector. Raises the error with which the request ended."""
        output = self._state.take_pooled()
        while output is None:
            await self._ended.wait()
            output = self._state.take_pooled()
        return output

    def close(self) -> None:
        """Abort the request unless it has ended; safe to call again."""
        if not self._state.ended:
            self._cancel(self._state)
