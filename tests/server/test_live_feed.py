"""The feed of the live view: what watchers are told while an engine is down."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from galley.errors import EngineDead
from galley.frontend.client import EngineClient
from galley.server import live_feed


class DyingEngine:
    """Its answers are views of two incarnations; it is down between them, and then for good."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def call(self, method: str, *args: object) -> list[dict[str, Any]]:
        self.asked.append(args)
        match len(self.asked):
            case 1:
                return [{"epoch": 1, "columns": {"step": [3, 4]}}]
            case 3:
                return [{"epoch": 2, "columns": {"step": []}}]
            case _:
                raise EngineDead("killed")

    async def wait_healthy(self) -> None:
        if len(self.asked) > 3:
            raise EngineDead("given up")


def test_a_death_is_a_frame_and_the_next_incarnation_is_asked_for_all(monkeypatch) -> None:
    monkeypatch.setattr(live_feed, "INTERVAL", 0)
    engine = DyingEngine()

    async def watch() -> list[dict[str, Any]]:
        feed = live_feed.LiveFeed(cast(EngineClient, engine))
        return [json.loads(frame) async for frame in feed.frames()]

    first, death, second, end = asyncio.run(watch())
    assert (first["engines"][0]["epoch"], second["engines"][0]["epoch"]) == (1, 2)
    assert (death["down"], end["down"]) == ("killed", "killed")
    assert engine.asked == [(0, -1), (1, 4), (1, 4), (2, 0)]


class IdleEngine:
    async def call(self, method: str, *args: object) -> list[dict[str, Any]]:
        return [{"epoch": 1, "columns": {"step": []}}]


def test_a_watcher_that_comes_when_the_last_one_leaves_is_shown_frames() -> None:
    async def watch() -> list[bytes | None]:
        feed = live_feed.LiveFeed(cast(EngineClient, IdleEngine()))
        found = []
        for _ in range(3):
            frames = feed.frames()
            found.append(await anext(frames, None))
            await frames.aclose()
        return found

    assert all(asyncio.run(watch()))
