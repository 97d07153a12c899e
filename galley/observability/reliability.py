"""Galley's own reliability metrics: engine restarts, batch invariance, and load shedding."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from galley.messages import Outputs, Ready
from galley.observability.registry import shares_metrics
from galley.request import FinishReason, Request

_LABELS = ["model_name", "engine"]


class ReliabilityMetrics:
    """A `RequestObserver` that exposes what engines report about themselves.

    Args:
        registry: where the metrics are registered, all zero.
    """

    def __init__(self, registry: CollectorRegistry, model_name: str, num_engines: int = 1) -> None:
        self._model_name = model_name
        self._restarts = _restarts(registry)
        #: engine → its restarts in the metric
        self._reported: dict[int, int] = {}
        #: engine → what it last reported of its memory
        self._memory: dict[int, tuple[bool, int]] = {}
        self._invariant = _gauge(
            registry,
            "galley:batch_invariant",
            "1 if an answer does not depend on what else is computed, 0 if it may or if no engine "
            "was up yet.",
        )
        self._short = _gauge(
            registry,
            "galley:memory_short",
            "1 while load is shed, as the machine's memory runs short: less KV cache, a longer "
            "queue.",
        )
        self._withheld = _gauge(
            registry,
            "galley:kv_blocks_withheld",
            "KV blocks that no request gets, as there is no memory for them now.",
        )
        for engine in range(num_engines):
            for metric in (self._restarts, self._invariant, self._short, self._withheld):
                metric.labels(model_name, str(engine))

    def ready(self, message: Ready) -> None:
        engine = message.engine_index
        labels = self._model_name, str(engine)
        restarts = message.epoch - 1
        self._restarts.labels(*labels).inc(restarts - self._reported.get(engine, 0))
        self._reported[engine] = restarts
        self._invariant.labels(*labels).set(float(message.batch_invariant))

    def added(self, request: Request, index: int, n: int) -> None:
        """Nothing to count."""

    def outputs(self, message: Outputs) -> None:
        stats = message.stats
        if stats is None:
            return
        now = stats.memory_short, stats.reserved_blocks
        if self._memory.get(message.engine_index, (False, 0)) != now:
            self._memory[message.engine_index] = now
            labels = self._model_name, str(message.engine_index)
            self._short.labels(*labels).set(now[0])
            self._withheld.labels(*labels).set(now[1])

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        """Nothing to count."""


def _gauge(registry: CollectorRegistry, name: str, help: str) -> Gauge:
    return Gauge(name, help, _LABELS, registry=registry, multiprocess_mode="mostrecent")


def _restarts(registry: CollectorRegistry) -> Counter | Gauge:
    help = "Restarts of the engine after its death."
    if not shares_metrics():
        return Counter("galley:engine_restarts", help, _LABELS, registry=registry)
    # Each process counts all of them, so the sum over processes would be wrong.
    name = "galley:engine_restarts_total"
    return Gauge(name, help, _LABELS, registry=registry, multiprocess_mode="max")
