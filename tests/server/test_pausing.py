"""The routes that pause, and their calls to the engines."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from galley.server.routes.pausing import pause_engines


class Engines:
    """Two engines, the second of which takes a while to drain."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._left = 3

    async def call(self, method: str, *args: Any) -> list[bool]:
        if method == "drained":
            self._left -= 1
            return [True, self._left <= 0]
        self.calls.append((method, *args))
        return [True, True]


@pytest.mark.parametrize("clear_cache", [True, False])
@pytest.mark.parametrize("mode", ["abort", "keep", "wait"])
def test_a_pause_clears_the_cache_when_asked(mode: Any, clear_cache: bool) -> None:
    """After a wait too: what the requests computed meanwhile is in it."""
    engines = Engines()
    context: Any = SimpleNamespace(engine=engines)
    asyncio.run(pause_engines(context, mode, clear_cache))
    assert engines.calls[0] == ("pause", mode, clear_cache)
    assert engines.calls[1:] == ([("pause", "keep", clear_cache)] if mode == "wait" else [])
