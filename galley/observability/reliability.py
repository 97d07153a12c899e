"""Galley's own metrics of its promises: restarts survived, and whether answers stand alone."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from galley.observability.observer import OutputsShape, ReadyShape
from galley.observability.registry import shares_metrics
from galley.request import FinishReason, Request

_LABELS = ["model_name", "engine"]


class ReliabilityMetrics:
    """A `RequestObserver` that counts incarnations of engines.

    Args:
        registry: where the metrics are registered, all zero.
    """

    def __init__(self, registry: CollectorRegistry, model_name: str, num_engines: int = 1) -> None:
        self._model_name = model_name
        self._restarts = _restarts(registry)
        self._invariant = Gauge(
            "galley:batch_invariant",
            "1 if an answer does not depend on what else is computed, 0 if it may or if no engine "
            "was up yet.",
            _LABELS,
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self._counted = [0] * num_engines
        for engine in range(num_engines):
            self._restarts.labels(model_name, str(engine))
            self._invariant.labels(model_name, str(engine))

    def ready(self, message: ReadyShape) -> None:
        engine = message.engine_index
        labels = self._model_name, str(engine)
        # An engine's first incarnation has epoch 1; a frontend may see a later one first.
        restarts = max(message.epoch - 1, self._counted[engine])
        self._restarts.labels(*labels).inc(restarts - self._counted[engine])
        self._counted[engine] = restarts
        self._invariant.labels(*labels).set(float(message.batch_invariant))

    def added(self, request: Request, index: int, n: int) -> None:
        """Nothing to count."""

    def outputs(self, message: OutputsShape) -> None:
        """Nothing to count."""

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        """Nothing to count."""


def _restarts(registry: CollectorRegistry) -> Counter | Gauge:
    help = "Times that the engine was started anew after its death."
    if not shares_metrics():
        return Counter("galley:engine_restarts", help, _LABELS, registry=registry)
    # Each process sees them all: told together, they are not a sum.
    name = "galley:engine_restarts_total"
    return Gauge(name, help, _LABELS, registry=registry, multiprocess_mode="max")
