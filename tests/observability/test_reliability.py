"""Restarts, memory and invariance as engines report them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from galley.messages import Outputs, Ready, Stats
from galley.observability.reliability import ReliabilityMetrics


class Bench:
    def __init__(self, num_engines: int = 1) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ReliabilityMetrics(self.registry, "m", num_engines)

    def ready(self, engine: int = 0, invariant: bool = True, epoch: int = 1) -> None:
        self.metrics.ready(Ready(engine, epoch, 1000, 9, 16, invariant))

    def value(self, name: str, engine: int = 0) -> float | None:
        labels = {"model_name": "m", "engine": str(engine)}
        return self.registry.get_sample_value(f"galley:{name}", labels)


def test_restarts_are_counted_also_those_that_this_process_has_not_seen() -> None:
    bench = Bench(2)
    assert bench.value("engine_restarts_total") == 0.0
    for epoch, total in ((1, 0), (2, 1), (2, 1), (5, 4)):
        bench.ready(epoch=epoch)
        assert bench.value("engine_restarts_total") == total
    assert bench.value("engine_restarts_total", 1) == 0


def test_memory_is_as_the_engine_reports() -> None:
    bench = Bench(2)
    names = "memory_short", "kv_blocks_withheld"
    assert [bench.value(name, 1) for name in names] == [0.0, 0.0]
    for engine, short, withheld in ((0, True, 9), (0, False, 4), (1, True, 2), (0, False, 0)):
        stats = Stats(memory_short=short, reserved_blocks=withheld)
        bench.metrics.outputs(Outputs(1, 1, engine, 0.0))
        bench.metrics.outputs(Outputs(2, 1, engine, 0.0, stats=stats))
        assert [bench.value(name, engine) for name in names] == [short, withheld]
    assert bench.value("kv_blocks_withheld", 1) == 2.0


def test_invariance_is_as_the_engine_reports() -> None:
    bench = Bench(2)
    assert bench.value("batch_invariant") == 0.0
    bench.ready()
    assert (bench.value("batch_invariant"), bench.value("batch_invariant", 1)) == (1.0, 0.0)
    bench.ready(invariant=False)
    assert bench.value("batch_invariant") == 0.0
