"""The periodic line."""

from __future__ import annotations

from array import array

import pytest

from galley.messages import Counters, Outputs, Ready, Stats
from galley.observability.observer import Observers
from galley.observability.stats_line import StatsLine
from galley.request import FinishReason


def outputs(handles: list[int], stats: Stats) -> Outputs:
    return Outputs(
        step=1,
        epoch=1,
        engine_index=0,
        timestamp=0.0,
        handles=array("q", handles).tobytes(),
        stats=stats,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("galley.observability.stats_line.time.monotonic", lambda: now[0])
    return now


def test_throughput_queue_and_cache(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    line = StatsLine()
    observer = Observers(line)
    observer.ready(Ready(0, 1, 1024, 64, 16, True))
    growths = (
        Counters(prompt_tokens=30, prefix_queries=30, prefix_hits=10),
        Counters(prompt_tokens=20, prefix_queries=10),
        None,
    )
    gauges = {"num_running": 2, "num_waiting": 3, "kv_cache_usage": 0.25}
    first, second, third = (Stats(counters=growth, **gauges) for growth in growths)
    observer.outputs(outputs([1, 2], first))
    observer.outputs(outputs([1], second))
    observer.outputs(outputs([], third))
    observer.finished(1, FinishReason.STOP, 2)
    clock[0] += 10
    line.write()
    assert caplog.messages == [
        "Engine 000: Avg prompt throughput: 5.0 tokens/s, "
        "Avg generation throughput: 0.3 tokens/s, Running: 2 reqs, Waiting: 3 reqs, "
        "KV cache usage: 25.0%, Prefix cache hit rate: 25.0%"
    ]


def test_an_idle_engine_falls_silent_after_one_line(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    line = StatsLine()
    for _ in range(3):
        line.write()
    assert not caplog.messages
    for _ in range(2):
        caplog.clear()
        line.outputs(outputs([1], Stats()))
        for _ in range(5):
            clock[0] += 10
            line.write()
        assert len(caplog.messages) == 2
        assert "throughput: 0.0 tokens/s, Avg generation throughput: 0.0" in caplog.messages[1]
