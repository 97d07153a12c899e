"""Operations of the next steps: what is timed, and when that ends."""

from __future__ import annotations

from typing import Any

from galley.engine.core import EngineCore
from tests.scheduler.fakes import make_core, request, run


def profiled(core: EngineCore, calls: list[Any]) -> None:
    """Note calls of the workers."""

    def rpc(method: str, *args: Any) -> list[Any]:
        calls.append((method, *args))
        return [[("linear", 1, 7)] if method == "timings" else None]

    core.executor.rpc = rpc


def test_sizes_of_the_steps() -> None:
    core, calls = make_core(budget=8), []
    profiled(core, calls)
    core.add([request(1, list(range(10)), max_tokens=3)])
    core.profile_operations(3)
    assert not core.has_timed_operations()
    run(core)
    assert core.has_timed_operations()
    assert calls == [("profile", True), ("timings",), ("profile", False)]
    times = core.operation_times()
    assert times is not None
    assert [(s.computed, s.new, s.logits) for s in times.steps] == [
        ([0], [8], 0),
        ([8], [2], 1),
        ([10], [1], 1),
    ]
    assert times.timings == [("linear", 1, 7)]
    assert core.operation_times() is None
    assert len(calls) == 3


def test_a_profile_is_ended_early_and_replaced() -> None:
    core, calls = make_core(), []
    profiled(core, calls)
    core.profile_operations(5)
    core.profile_operations(5)
    assert calls == [("profile", True), ("timings",), ("profile", False), ("profile", True)]
    times = core.operation_times()
    assert times is not None
    assert times.steps == []
    assert len(core.observers) == len(make_core().observers)
