"""Durations of putting engines to sleep and waking them up, under vLLM's names."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, Histogram

Operation = Literal["sleep", "release_kv_cache_memory", "wake"]
BUCKETS = (0.01, 0.1, 1, 10, 30, 60, 120, 300, 600)


class SleepMetrics:
    """Sleep-mode operations requested of one front end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "vllm:sleep_mode_operation_duration_seconds",
            "Duration of one sleep-mode operation.",
            ["operation"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "vllm:sleep_mode_operations_in_flight",
            "Sleep-mode operations under way.",
            ["operation"],
            multiprocess_mode="livesum",
            registry=registry,
        )

    @contextmanager
    def record(self, operation: Operation) -> Iterator[None]:
        """Measure the duration of the block, whether it succeeds or not."""
        in_flight, begin = self._in_flight.labels(operation), time.perf_counter()
        in_flight.inc()
        try:
            yield
        finally:
            in_flight.dec()
            self._seconds.labels(operation).observe(time.perf_counter() - begin)
