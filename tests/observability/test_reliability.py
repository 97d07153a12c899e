"""Restarts are counted over the engines' lives and never go back."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from galley.engine.messages import Ready
from galley.observability.reliability import ReliabilityMetrics


class Bench:
    def __init__(self, num_engines: int = 1) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ReliabilityMetrics(self.registry, "m", num_engines)

    def ready(self, epoch: int, engine: int = 0, invariant: bool = True) -> None:
        self.metrics.ready(Ready(engine, epoch, 1000, 9, 16, invariant))

    def value(self, name: str, engine: int = 0) -> float | None:
        labels = {"model_name": "m", "engine": str(engine)}
        return self.registry.get_sample_value(f"galley:{name}", labels)


def test_each_incarnation_but_the_first_is_a_restart() -> None:
    bench = Bench()
    assert bench.value("engine_restarts_total") == 0.0
    seen = []
    for epoch in (1, 2, 2, 3, 5):
        bench.ready(epoch)
        seen.append(bench.value("engine_restarts_total"))
    assert seen == [0.0, 1.0, 1.0, 2.0, 4.0]


def test_a_frontend_that_comes_late_knows_of_the_restarts_before() -> None:
    bench = Bench()
    bench.ready(4)
    assert bench.value("engine_restarts_total") == 3.0


def test_an_engine_in_this_process_has_no_incarnations() -> None:
    bench = Bench()
    bench.ready(0)
    assert bench.value("engine_restarts_total") == 0.0


def test_invariance_is_as_the_engine_says() -> None:
    bench = Bench(2)
    assert bench.value("batch_invariant") == 0.0
    bench.ready(1)
    assert (bench.value("batch_invariant"), bench.value("batch_invariant", 1)) == (1.0, 0.0)
    bench.ready(2, invariant=False)
    assert bench.value("batch_invariant") == 0.0
