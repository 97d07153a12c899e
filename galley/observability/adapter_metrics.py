"""Requests by adapter: vLLM's `vllm:lora_requests_info`, and counters of each adapter."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily

from galley.messages import Outputs, Ready
from galley.request import FinishReason, Request


class AdapterMetrics:
    """An observer (`observer.RequestObserver`).

    Args:
        max_loras: --max-loras.
        name_of: the name of a load.
    """

    def __init__(
        self, registry: CollectorRegistry, max_loras: int, name_of: Callable[[int], str]
    ) -> None:
        self._max_loras = max_loras
        self._name_of = name_of
        self._names: dict[int, str] = {}  # by handle, of requests that have not ended
        self._waiting: set[int] = set()
        self._requests = prometheus_client.Counter(
            "galley:lora_requests", "Requests by adapter.", ["adapter"], registry=registry
        )
        self._tokens = prometheus_client.Counter(
            "galley:lora_generation_tokens", "Tokens by adapter.", ["adapter"], registry=registry
        )
        registry.register(_Info(self))  # type: ignore[arg-type]

    def ready(self, message: Ready) -> None:
        """Nothing of it is shown."""

    def added(self, request: Request, index: int, n: int) -> None:
        if request.adapter:
            name = self._names[request.handle] = self._name_of(request.adapter)
            self._waiting.add(request.handle)
            self._requests.labels(adapter=name).inc()

    def outputs(self, message: Outputs) -> None:
        if self._waiting:
            self._waiting.difference_update(started.handle for started in message.started)

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        name = self._names.pop(handle, None)
        if name is not None:
            self._waiting.discard(handle)
            self._tokens.labels(adapter=name).inc(num_tokens)

    def info(self) -> Metric:
        """The adapters of waiting and of running requests."""
        waiting = Counter(self._names[handle] for handle in self._waiting)
        running = Counter(self._names.values()) - waiting
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Running stats on lora requests.",
            labels=["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        )
        labels = [str(self._max_loras), ",".join(sorted(waiting)), ",".join(sorted(running))]
        family.add_metric(labels, time.time())
        return family


class _Info:
    """Collected when the metrics are read."""

    def __init__(self, metrics: AdapterMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield self._metrics.info()
