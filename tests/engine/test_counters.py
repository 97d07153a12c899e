"""The engine's counters over several clients: each growth is sent once, and all of them add up."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple
from prometheus_client import CollectorRegistry

from galley.engine.outputs import EngineId, build_stats_updates
from galley.messages import Counters, Outputs, Stats, exposed_counters
from galley.observability.metrics import EngineMetrics
from tests.scheduler.fakes import make_core, request


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=12))
def test_growth_goes_to_the_first_client_of_each_step_and_adds_up(
    requests: list[tuple[int, int]],
) -> None:
    core = make_core(num_blocks=1 + 10, max_model_len=160)
    core.add(
        request(handle, [handle % 3] * 40, max_tokens=n, client_index=client)
        for handle, (client, n) in enumerate(requests, 1)
    )
    sums = [0] * len(astuple(Counters()))
    while core.has_work:
        messages = core.step()
        growths = [out.stats.counters for _, out in messages if out.stats is not None]
        assert len(growths) == len(messages), "every message has the state"
        assert [g is not None for g in growths] == [True, *[False] * (len(growths) - 1)]
        assert [client for client, _ in messages] == sorted(client for client, _ in messages)
        if growths and growths[0] is not None:
            sums = [a + b for a, b in zip(sums, astuple(growths[0]), strict=True)]
    assert sums == list(astuple(core.counters))
    assert core.counters.num_steps == core.scheduler.step


def test_steps_without_a_message_are_sent_with_the_next() -> None:
    core = make_core()
    core.add([request(1, [1] * 5)])
    core.step()
    core.counters.num_steps += 5
    sent = [out.stats.counters.num_steps for _, out in core.stats_updates([3])]
    assert sent == [5]


def test_statistics_are_made_only_for_a_recipient() -> None:
    def stats() -> Stats:
        raise AssertionError("statistics without a recipient")

    assert build_stats_updates([], stats, EngineId()) == []


def test_block_times_go_to_the_first_client_alone() -> None:
    stats = Stats(num_running=7, counters=Counters(num_steps=1), block_times=[b"once"])
    messages = build_stats_updates([5, 2, 9], lambda: stats, EngineId())
    parts = [(client, out.stats) for client, out in messages]
    assert [client for client, _ in parts] == [2, 5, 9]
    assert [s.block_times for _, s in parts if s] == [[b"once"], [], []]
    assert [s.num_running for _, s in parts if s] == [7, 7, 7]


def test_every_exposed_counter_is_in_the_metrics_and_adds_up() -> None:
    """A new field of `Counters` needs nothing else."""
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry, "m", max_model_len=64)
    fields = exposed_counters()
    assert set(fields) < set(Counters.__struct_fields__)
    for _ in range(2):
        growth = Counters(**{field: i for i, field in enumerate(fields, 1)})
        metrics.outputs(Outputs(1, 1, 0, 0.0, stats=Stats(counters=growth)))
        metrics.outputs(Outputs(1, 1, 0, 0.0, stats=Stats()))
    for i, (name, _) in enumerate(fields.values(), 1):
        labels = {"model_name": "m", "engine": "0"}
        assert registry.get_sample_value(f"{name}_total", labels) == 2 * i, name
