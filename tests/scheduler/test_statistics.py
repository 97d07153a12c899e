"""Counters and gauges: behaviours 37 and 38."""

from __future__ import annotations

from tests.scheduler.fakes import Collected, make_core, request, run, step


def test_37_queries_and_hits_are_tokens_once_per_admission() -> None:
    core = make_core()
    prompt = list(range(100))
    core.add([request(1, prompt)])
    run(core)
    core.add([request(2, [*prompt, 1, 2, 3])])
    run(core)
    counters = core.counters
    assert (counters.prefix_queries, counters.prefix_hits) == (203, 96)


def test_37_a_request_that_had_to_wait_is_counted_once() -> None:
    core = make_core(num_blocks=1 + 10, max_model_len=160)
    core.add([request(1, [1] * 100, max_tokens=40), request(2, [2] * 100, max_tokens=2)])
    for _ in range(10):
        step(core)
    assert core.scheduler.num_waiting == 1
    assert core.counters.prefix_queries == 100
    run(core)
    assert core.counters.prefix_queries == 200


def test_37_resumptions_are_counted_apart() -> None:
    core = make_core(num_blocks=1 + 10, max_model_len=160)
    core.add(request(h, [h] * 40, max_tokens=70) for h in (1, 2))
    run(core)
    counters = core.counters
    assert counters.num_preemptions >= 1
    assert (counters.prefix_queries, counters.prefix_hits) == (80, 0)
    assert counters.resumed_queries > 40
    assert 0 < counters.resumed_hits < counters.resumed_queries


def test_38_gauges_match_the_queues_after_every_step() -> None:
    core = make_core(max_num_seqs=3, num_blocks=1 + 16)
    core.add(request(h, [h] * 50, max_tokens=60) for h in range(1, 9))
    unfinished = set(range(1, 9))
    got = Collected()
    while core.has_work:
        for _, out in step(core, got):
            unfinished -= set(got.ends)
            stats = out.stats
            assert stats.num_running == len(core.scheduler.running.order)
            assert stats.num_running + stats.num_waiting == len(unfinished)
            assert stats.waiting_by_reason.get("capacity", 0) == stats.num_waiting
            assert stats.counters.num_steps == 1
            assert stats.step_tokens == core.executor.plans[-1].num_new.sum()
            used = core.scheduler.kv.pool.num_used
            assert stats.kv_cache_usage == used / 16
    assert not unfinished
