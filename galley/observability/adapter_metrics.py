"""Requests by adapter: vLLM's `vllm:lora_requests_info`, and metrics of each adapter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily

from galley.messages import Outputs, Ready
from galley.observability.registry import shares_metrics
from galley.request import FinishReason, Request

_WAITING, _RUNNING = "galley:lora_requests_waiting", "galley:lora_requests_running"


class AdapterMetrics:
    """An observer (`observer.RequestObserver`).

    Args:
        max_loras: --max-loras.
        name_of: the name of a load.
    """

    def __init__(
        self, registry: CollectorRegistry, max_loras: int, name_of: Callable[[int], str]
    ) -> None:
        self._name_of = name_of
        self._names: dict[int, str] = {}  # by handle, of requests that have not ended
        self._waiting: set[int] = set()
        self._requests = Counter(
            "galley:lora_requests", "Requests by adapter.", ["adapter"], registry=registry
        )
        self._tokens = Counter(
            "galley:lora_generation_tokens", "Tokens by adapter.", ["adapter"], registry=registry
        )
        self._now_waiting, self._now_running = (
            Gauge(name, text, ["adapter"], registry=registry, multiprocess_mode="livesum")
            for name, text in (
                (_WAITING, "Requests that wait, by adapter."),
                (_RUNNING, "Requests that run, by adapter."),
            )
        )
        self.info = AdapterInfo(max_loras)
        if not shares_metrics():
            registry.register(_OfOneProcess(self._collect))  # type: ignore[arg-type]

    def ready(self, message: Ready) -> None:
        """Nothing of it is shown."""

    def added(self, request: Request, index: int, n: int) -> None:
        if request.adapter:
            name = self._names[request.handle] = self._name_of(request.adapter)
            self._waiting.add(request.handle)
            self._now_waiting.labels(adapter=name).inc()
            self._requests.labels(adapter=name).inc()

    def outputs(self, message: Outputs) -> None:
        if not self._waiting:
            return
        for started in message.started:
            if started.handle in self._waiting:
                self._waiting.remove(started.handle)
                name = self._names[started.handle]
                self._now_waiting.labels(adapter=name).dec()
                self._now_running.labels(adapter=name).inc()

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        name = self._names.pop(handle, None)
        if name is None:
            return
        is_waiting = handle in self._waiting
        self._waiting.discard(handle)
        gauge = self._now_waiting if is_waiting else self._now_running
        gauge.labels(adapter=name).dec()
        self._tokens.labels(adapter=name).inc(num_tokens)

    def _collect(self) -> Iterator[Metric]:
        yield self.info((*self._now_waiting.collect(), *self._now_running.collect()))


class AdapterInfo:
    """The adapters of waiting and of running requests, from the metrics above: of this process, or
    their sums over several.

    Args:
        max_loras: --max-loras.
    """

    def __init__(self, max_loras: int) -> None:
        self._max_loras = max_loras

    def __call__(self, metrics: Iterable[Metric]) -> Metric:
        names = {
            metric.name: sorted(s.labels["adapter"] for s in metric.samples if s.value > 0)
            for metric in metrics
            if metric.name in (_WAITING, _RUNNING)
        }
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Running stats on lora requests.",
            labels=["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        )
        shown = (",".join(names.get(kind, ())) for kind in (_WAITING, _RUNNING))
        family.add_metric([str(self._max_loras), *shown], time.time())
        return family


class _OfOneProcess:
    """Collected when the metrics are read."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self.collect = collect
