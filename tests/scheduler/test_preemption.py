"""Preemption by recomputation: behaviours 8 to 12."""

from __future__ import annotations

import pytest

from tests.scheduler.fakes import (
    Collected,
    assert_all_free,
    expected,
    make_core,
    request,
    run,
    step,
)


def running(core) -> list[int]:
    return core.scheduler.table.handles[core.scheduler.running.order].tolist()


def waiting(core) -> list[int]:
    return [seq.request.handle for seq in core.scheduler.queue]


def grow_until_preemption(core, got: Collected) -> None:
    for _ in range(500):
        if core.scheduler.counters.num_preemptions:
            return
        step(core, got)
    raise AssertionError("nothing was preempted")


def test_08_fcfs_preempts_the_most_recently_admitted() -> None:
    core = make_core(num_blocks=1 + 8, max_model_len=128, prefix_caching=False)
    for h in (1, 2, 3):
        core.add([request(h, [h] * 30, max_tokens=60)])
    core.add([request(4, [4] * 90, max_tokens=5)])
    got = Collected()
    step(core, got)
    assert running(core) == [1, 2, 3]
    grow_until_preemption(core, got)
    assert running(core) == [1, 2]
    assert waiting(core) == [3, 4], "the preempted one is at the front"
    run(core, got)
    for h in (1, 2, 3):
        assert got.tokens[h] == expected([h] * 30, 60)
    assert [e.resumed for e in got.started[3]] == [False, *[True] * (len(got.started[3]) - 1)]
    assert_all_free(core)


def test_08_priority_preempts_the_least_important_then_the_latest() -> None:
    core = make_core(
        num_blocks=1 + 8, max_model_len=128, prefix_caching=False, policy="priority", budget=96
    )
    got = Collected()
    lengths = {1: 20, 2: 28, 3: 20, 4: 22}  # 2 is the first to need a block
    for h, priority in ((1, 7), (2, 0), (3, 7), (4, 0)):
        core.add([request(h, [h] * lengths[h], max_tokens=60, priority=priority)])
    step(core, got)
    assert sorted(running(core)) == [1, 2, 3, 4]
    grow_until_preemption(core, got)
    assert waiting(core) == [3]
    assert sorted(running(core)) == [1, 2, 4]
    run(core, got)
    for h in (1, 2, 3, 4):
        assert got.tokens[h] == expected([h] * lengths[h], 60)
    assert list(got.ends)[:2] == [2, 4], "the important ones were never held up"


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_09_outputs_are_those_of_a_large_pool_and_nothing_is_said_twice(
    prefix_caching: bool, policy: str
) -> None:
    outputs = []
    for num_blocks in (200, 1 + 16):
        core = make_core(num_blocks=num_blocks, prefix_caching=prefix_caching, policy=policy)
        for h in range(1, 12):
            prompt = [h % 3, *range(h, 40 + h)]
            core.add([request(h, prompt, max_tokens=100, priority=h % 4, logprobs=0)])
        got = run(core)
        outputs.append(got.tokens)
        assert (core.scheduler.counters.num_preemptions > 0) == (num_blocks == 17)
        for h, positions in got.logprob_positions.items():
            assert positions == list(range(41, 141)), h
        assert_all_free(core)
    assert outputs[0] == outputs[1]
    assert outputs[0][5] == expected([2, *range(5, 45)], 100)


def test_09_a_resumed_request_hits_what_it_computed_before() -> None:
    core = make_core(num_blocks=1 + 10, max_model_len=160)
    core.add(request(h, [h] * 40, max_tokens=70) for h in (1, 2))
    got = Collected()
    grow_until_preemption(core, got)
    run(core, got)
    assert got.started[2][1].num_cached_tokens > 0
    assert got.tokens[2] == expected([2] * 40, 70)


def test_09_prompt_logprobs_are_reported_once() -> None:
    core = make_core(num_blocks=1 + 10, max_model_len=160, budget=16)
    core.add(request(h, [h] * 60, max_tokens=60, prompt_logprobs=0) for h in (1, 2, 3))
    got = run(core)
    assert core.scheduler.counters.num_preemptions > 0
    for h in (1, 2, 3):
        assert got.prompt_positions[h] == list(range(1, 60))
        assert got.tokens[h] == expected([h] * 60, 60)


def test_11_nothing_is_preempted_while_space_is_available() -> None:
    core = make_core(policy="priority", num_blocks=1 + 24, max_model_len=128, max_num_seqs=3)
    got = Collected()
    for h in range(1, 10):
        core.add([request(h, [h] * 60, max_tokens=60, priority=-h)])
        step(core, got)
    run(core, got)
    assert core.scheduler.counters.num_preemptions == 0
    assert len(got.ends) == 9


def test_12_a_preemption_does_not_cost_another_its_step() -> None:
    core = make_core(num_blocks=1 + 8, max_model_len=128, policy="priority", budget=64)
    got = Collected()
    # The least important one is admitted first, so it is served before those that displace it.
    core.add([request(1, [1] * 20, max_tokens=60, priority=9)])
    step(core, got)
    core.add(request(h, [h] * 20, max_tokens=60, priority=0) for h in (2, 3))
    while not core.scheduler.counters.num_preemptions:
        before = set(running(core))
        step(core, got)
    rows = core.trace.rows_of(core.trace.last)
    assert set(rows.handles.tolist()) == before - {1}
    assert core.trace.records[core.trace.last]["preemptions"] == 1
    run(core, got)
    for h in (1, 2, 3):
        assert got.tokens[h] == expected([h] * 20, 60)


def test_a_prompt_is_not_begun_if_its_end_would_not_fit_beside_the_running() -> None:
    core = make_core(num_blocks=1 + 8, max_model_len=128, budget=32, prefix_caching=False)
    core.add([request(1, [1] * 30, max_tokens=5), request(2, [2] * 120, max_tokens=2)])
    got = Collected()
    step(core, got)
    step(core, got)
    assert waiting(core) == [2]
    run(core, got)
    assert core.scheduler.counters.num_preemptions == 0
    assert got.tokens[2] == expected([2] * 120, 2)


def test_preempting_many_in_one_step_keeps_their_order() -> None:
    core = make_core(num_blocks=1 + 12, max_model_len=192, prefix_caching=False, budget=256)
    core.add(request(h, [h] * 31, max_tokens=100) for h in range(1, 7))
    got = Collected()
    step(core, got)
    step(core, got)
    step(core, got)
    assert running(core) == [1, 2, 3, 4]
    assert waiting(core) == [5, 6]
    assert list(run(core, got).ends) == [1, 2, 3, 4, 5, 6]


def test_prompt_logprobs_are_reported_once_after_a_preemption_in_the_prompt() -> None:
    core = make_core(budget=32, num_blocks=1 + 16, prefix_caching=False)
    core.add([request(1, [1] * 200, max_tokens=3, prompt_logprobs=0)])
    got = Collected()
    for _ in range(3):
        step(core, got)
    assert 0 < len(got.prompt_positions[1]) < 199
    core.reset_prefix_cache(reset_running_requests=True)
    run(core, got)
    assert core.scheduler.counters.num_preemptions == 1
    assert got.prompt_positions[1] == list(range(1, 200))


def test_a_request_that_is_aborted_twice_in_flight_ends_once() -> None:
    """A stop string and a client that leaves, in the same step."""
    core = make_core()
    core.add([request(1, [1] * 5, logprobs=0), request(2, [2] * 5, logprobs=0)])
    got = Collected()
    step(core, got)

    def abort_twice() -> None:
        core.abort([1])
        core.abort([1])

    core.while_waiting = abort_twice
    step(core, got)
    core.while_waiting = None
    run(core, got)
    assert got.tokens[2] == expected([2] * 5, 4)
    assert len(got.tokens[1]) == len(got.logprob_positions[1]) == 1, "nothing of the last step"
    assert_all_free(core)
