"""The periodic log line: throughput, queue and cache of each engine, while it is active."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from galley.messages import Outputs, Ready, Stats
from galley.request import FinishReason, Request

logger = logging.getLogger("galley.stats")


@dataclass(slots=True)
class _Engine:
    """One engine's counts since the last line."""

    generated: int = 0
    prompt: int = 0
    last: Stats | None = None
    queries: int = 0
    hits: int = 0
    quiet: bool = True


class StatsLine:
    """A `RequestObserver` that writes a line for each engine when `write` is called.

    An idle engine gets one more line, with zeros, and then none until it works again.
    """

    def __init__(self, num_engines: int = 1) -> None:
        self._engines = [_Engine() for _ in range(num_engines)]
        self._since = time.monotonic()

    def ready(self, message: Ready) -> None:
        """Nothing to count."""

    def added(self, request: Request, index: int, n: int) -> None:
        """Nothing to count."""

    def outputs(self, message: Outputs) -> None:
        engine = self._engines[message.engine_index]
        if message.counts:
            engine.generated += sum(memoryview(message.counts).cast("i"))
        else:
            engine.generated += len(message.handles) // 8
        if message.stats is not None:
            engine.last = message.stats
            if message.stats.counters is not None:
                engine.prompt += message.stats.counters.prompt_tokens
                engine.queries += message.stats.counters.prefix_queries
                engine.hits += message.stats.counters.prefix_hits

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        """Nothing to count."""

    def write(self) -> None:
        """Log what happened since the last call."""
        now = time.monotonic()
        seconds, self._since = max(now - self._since, 1e-9), now
        for index, engine in enumerate(self._engines):
            busy = bool(engine.generated or engine.prompt)
            if engine.last is not None and (busy or not engine.quiet):
                logger.info("%s", self._line(index, engine, engine.last, seconds))
            engine.quiet = not busy
            engine.generated = engine.prompt = engine.queries = engine.hits = 0

    @staticmethod
    def _line(index: int, engine: _Engine, stats: Stats, seconds: float) -> str:
        return (
            f"Engine {index:03}: "
            f"Avg prompt throughput: {engine.prompt / seconds:.1f} tokens/s, "
            f"Avg generation throughput: {engine.generated / seconds:.1f} tokens/s, "
            f"Running: {stats.num_running} reqs, Waiting: {stats.num_waiting} reqs, "
            f"KV cache usage: {stats.kv_cache_usage:.1%}, "
            f"Prefix cache hit rate: {engine.hits / max(engine.queries, 1):.1%}"
        )
