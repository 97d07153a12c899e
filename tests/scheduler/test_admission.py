"""Admission, budget and chunks: behaviours 1 to 7, seen in plans and steps."""

from __future__ import annotations

import numpy as np
import pytest

from galley.engine.core import EngineCore
from galley.errors import ConfigError
from galley.request import FailureKind, FinishReason
from galley.scheduler import SchedulerLimits
from tests.scheduler.fakes import (
    Collected,
    assert_all_free,
    expected,
    make_core,
    request,
    run,
    step,
)


def handles_of(core: EngineCore) -> list[int]:
    """Handles of the running sequences in order of admission."""
    return core.scheduler.table.handles[core.scheduler.running.order].tolist()


def tokens_by_step(core: EngineCore) -> list[dict[int, int]]:
    """Per step: handle -> tokens computed."""
    found = []
    for n in range(1, core.trace.last + 1):
        rows = core.trace.rows_of(n)
        found.append(dict(zip(rows.handles.tolist(), rows.num_new.tolist(), strict=True)))
    return found


def test_01_a_short_request_does_not_overtake_a_waiting_long_one() -> None:
    core = make_core(budget=64, chunked=False, max_model_len=64)
    core.add([request(1, [1] * 40), request(2, [2] * 30), request(3, [3] * 5)])
    step(core)
    assert handles_of(core) == [1]  # 24 tokens are left: 3 would fit, but 2 is before it
    step(core)
    assert handles_of(core) == [1, 2, 3]
    run(core)


def test_02_at_most_max_num_seqs_run() -> None:
    core = make_core(max_num_seqs=3)
    core.add(request(h, [h, 1, 2]) for h in range(1, 8))
    got = Collected()
    while core.has_work:
        step(core, got)
        assert core.scheduler.num_running <= 3
    assert len(got.ends) == 7
    assert max(len(s) for s in tokens_by_step(core)) == 3


@pytest.mark.parametrize("budget", [16, 17, 50])
def test_03_a_step_never_exceeds_its_budget_and_serves_decodes_first(budget: int) -> None:
    core = make_core(budget=budget)
    for h in range(1, 7):
        core.add([request(h, list(range(h, h + 40)), max_tokens=20)])
        step(core)
    run(core)
    for n in range(1, core.trace.last + 1):
        new = core.executor.plans[n - 1].num_new.tolist()
        assert sum(new) <= budget
        decodes = core.trace.records[n]["num_decodes"]
        assert all(k == 1 for k in new[:decodes])
    steps = tokens_by_step(core)
    for h in range(1, 7):
        ran = [i for i, s in enumerate(steps) if h in s]
        decoding = ran[-19:]
        assert decoding == list(range(decoding[0], decoding[0] + 19)), "a decode missed a step"


def test_04_a_long_prompt_is_split_and_shares_steps_with_decodes() -> None:
    core = make_core(budget=66)
    core.add([request(1, [1, 2], max_tokens=10), request(2, [3, 4], max_tokens=10)])
    step(core)
    prompt = list(range(250))
    core.add([request(3, prompt, max_tokens=2)])
    got = Collected()
    counts = []
    for _ in range(4):
        step(core, got)
        counts.append(tokens_by_step(core)[-1])
    assert counts == [{1: 1, 2: 1, 3: 64}] * 3 + [{1: 1, 2: 1, 3: 58}]
    assert got.tokens[3] == expected(prompt, 1), "only the last chunk yields a token"
    assert len(got.tokens[1]) == 4
    run(core, got)
    assert got.tokens[3] == expected(prompt, 2)


def test_04_without_chunks_a_prompt_runs_whole_or_not_in_this_step() -> None:
    core = make_core(budget=128, chunked=False, max_model_len=128)
    core.add([request(1, [1] * 100), request(2, [2] * 100)])
    run(core)
    prefills = [s for s in tokens_by_step(core) if max(s.values()) > 1]
    assert prefills == [{1: 100}, {1: 1, 2: 100}]


def test_04_without_chunks_the_budget_must_hold_the_longest_prompt() -> None:
    with pytest.raises(ConfigError, match=r"--max-num-batched-tokens \(64\).*\(256\)"):
        make_core(budget=64, chunked=False, max_model_len=256)


def test_05_the_threshold_caps_a_chunk_only_beside_others() -> None:
    core = make_core(budget=128, threshold=10)
    core.add([request(1, [1] * 100)])
    step(core)
    assert tokens_by_step(core) == [{1: 100}]
    core.add([request(2, [2] * 100), request(3, [3] * 5)])
    step(core)
    assert tokens_by_step(core)[-1] == {1: 1, 2: 10, 3: 5}
    run(core)
    alone = make_core(budget=128, threshold=10)
    alone.add([request(1, [1] * 100), request(2, [2] * 3)])
    step(alone)
    assert tokens_by_step(alone) == [{1: 10, 2: 3}], "another is waiting"


def test_an_adaptive_threshold_is_at_least_a_fair_share() -> None:
    core = make_core(budget=120, threshold=10, adaptive=True)
    core.add([request(1, [1] * 100, max_tokens=9), request(2, [2] * 100, max_tokens=9)])
    step(core)
    core.add([request(3, [3] * 100, max_tokens=9)])
    step(core)
    run(core)
    # A half of the budget for each of two, a third for each of three.
    assert tokens_by_step(core)[:2] == [{1: 60, 2: 60}, {1: 40, 2: 40, 3: 40}]


def test_prompts_share_a_cap_only_in_steps_in_which_others_decode() -> None:
    core = make_core(budget=64, mixed=10)
    core.add([request(1, [1] * 40, max_tokens=6), request(2, [2] * 30, max_tokens=3)])
    run(core)
    # Alone they fill the budget; from then on 1 decodes, and 2 gets its last tokens by tens; when
    # 1 has ended, 2 decodes alone.
    assert tokens_by_step(core)[:3] == [{1: 40, 2: 24}, {1: 1, 2: 6}, {1: 1, 2: 1}]
    core = make_core(budget=64, mixed=10)
    core.add([request(1, [1] * 4, max_tokens=9)])
    step(core)
    core.add([request(2, [2] * 14), request(3, [3] * 14)])
    run(core)
    assert tokens_by_step(core)[:4] == [
        {1: 4},
        {1: 1, 2: 10},
        {1: 1, 2: 4, 3: 6},
        {1: 1, 2: 1, 3: 8},
    ]


def test_a_cap_for_prompts_cannot_starve_them_behind_many_decodes() -> None:
    core = make_core(budget=64, mixed=4, max_num_seqs=20)
    core.add(request(h, [h], max_tokens=30) for h in range(1, 16))
    step(core)
    core.add([request(99, [9] * 8, max_tokens=2)])
    step(core)
    step(core)
    assert [s.get(99) for s in tokens_by_step(core)] == [None, 4, 4]
    run(core)


def test_06_priority_orders_admission_then_arrival() -> None:
    core = make_core(max_num_seqs=1, policy="priority")
    for handle, priority in ((1, 5), (2, 1), (3, 5), (4, 0), (5, 1)):
        core.add([request(handle, [handle], max_tokens=2, priority=priority)])
    assert [s.request.handle for s in core.scheduler.queue] == [4, 2, 5, 1, 3]
    got = run(core)
    assert list(got.ends) == [4, 2, 5, 1, 3]


def test_06_fcfs_ignores_priorities() -> None:
    core = make_core(max_num_seqs=1)
    core.add(request(h, [h], max_tokens=2, priority=-h) for h in (1, 2, 3))
    assert list(run(core).ends) == [1, 2, 3]


def test_07_an_abort_removes_a_waiting_or_running_request_at_once() -> None:
    core = make_core(max_num_seqs=1)
    core.add([request(1, [1] * 40, max_tokens=50), request(2, [2] * 40), request(3, [3])])
    step(core)
    assert (core.scheduler.num_running, core.scheduler.num_waiting) == (1, 2)
    core.abort([2, 99])
    assert (core.scheduler.num_running, core.scheduler.num_waiting) == (1, 1)
    core.abort([1])
    assert (core.scheduler.num_running, core.scheduler.num_waiting) == (0, 1)
    assert core.scheduler.kv.pool.num_used == 0
    got = run(core)
    assert {h: e.reason for h, e in got.ends.items()} == {
        1: FinishReason.ABORT,
        2: FinishReason.ABORT,
        3: FinishReason.LENGTH,
    }
    assert 2 not in got.tokens
    assert_all_free(core)


def test_an_abort_without_anything_to_run_is_reported() -> None:
    core = make_core()
    core.add([request(1, [1])])
    core.abort([1])
    assert core.has_work
    got = Collected()
    step(core, got)
    assert got.ends[1].reason == FinishReason.ABORT
    assert not core.has_work
    assert core.trace.last == 0


def test_a_queue_of_ten_thousand_with_aborts_in_its_middle() -> None:
    for policy in ("fcfs", "priority"):
        core = make_core(max_num_seqs=2, policy=policy)
        for h in range(1, 10_001):
            core.scheduler.add(request(h, [h % 7, 1], max_tokens=1))
        core.abort(range(3, 9_990))
        assert core.scheduler.num_waiting == 13
        assert list(run(core).ends)[-1] == 10_000


@pytest.mark.parametrize("num_prompt", [0, 256, 300])
def test_a_request_that_can_never_run_ends_with_an_error(num_prompt: int) -> None:
    core = make_core(max_model_len=256)
    core.add([request(1, [5] * num_prompt), request(2, [5] * 10)])
    got = run(core)
    assert got.ends[1].reason == FinishReason.ERROR
    assert "prompt" in got.ends[1].error.message
    assert got.ends[1].error.kind == FailureKind.REQUEST
    assert got.ends[2].reason == FinishReason.LENGTH
    assert_all_free(core)


def test_a_bounded_queue_turns_requests_away() -> None:
    core = make_core(max_num_seqs=1)
    limits = core.scheduler.limits
    core.scheduler.limits = SchedulerLimits(
        limits.max_num_batched_tokens, 1, limits.max_model_len, max_waiting=2
    )
    core.add(request(h, [h]) for h in range(1, 5))
    got = run(core)
    assert [h for h, e in got.ends.items() if e.reason == FinishReason.ERROR] == [3, 4]
    assert "2 requests are waiting" in got.ends[3].error.message
    assert got.ends[3].error.kind == FailureKind.LOAD


@pytest.mark.parametrize("name", ["max_num_batched_tokens", "max_num_seqs", "max_model_len"])
def test_limits_below_one_are_refused_by_flag(name: str) -> None:
    numbers = {"max_num_batched_tokens": 8, "max_num_seqs": 8, "max_model_len": 8, name: 0}
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        SchedulerLimits(**numbers)


def test_rows_of_logits_are_capped_by_splitting_prompts_that_want_logprobs() -> None:
    core = make_core(budget=1024, max_model_len=1024, num_blocks=256, max_num_seqs=8)
    prompts = {h: [h] * 600 for h in (1, 2)}
    core.add(request(h, p, max_tokens=3, prompt_logprobs=0) for h, p in prompts.items())
    core.add([request(3, [3] * 20, max_tokens=3)])
    got = run(core)
    assert core.scheduler.limits.max_num_logits == 256
    assert max(int(p.num_logits.sum()) for p in core.executor.plans) == 256
    for h, prompt in prompts.items():
        assert got.prompt_positions[h] == list(range(1, 600))
        assert got.tokens[h] == expected(prompt, 3)


def test_prompt_logprobs_split_a_prompt_even_without_chunked_prefill() -> None:
    core = make_core(
        budget=1024, max_model_len=1024, num_blocks=256, chunked=False, prefix_caching=False
    )
    core.add([request(1, [1] * 700, max_tokens=2, prompt_logprobs=0), request(2, [2] * 500)])
    got = run(core)
    assert got.prompt_positions[1] == list(range(1, 700))
    assert tokens_by_step(core)[:3] == [{1: 256}, {1: 256}, {1: 188, 2: 500}]


def test_columns_of_a_plan_agree() -> None:
    core = make_core(budget=40)
    core.add(request(h, [h] * (5 * h), max_tokens=12) for h in range(1, 9))
    run(core)
    for plan in core.executor.plans:
        n = len(plan.slots)
        assert len(plan.num_new) == len(plan.num_logits) == len(plan.num_sampled) == n
        assert (plan.num_new >= 1).all()
        assert len(np.unique(plan.slots)) == n
        for column in (plan.slots, plan.num_new, plan.num_logits, plan.block_ids):
            assert column.dtype == np.int32


def test_39_a_parked_request_blocks_none_behind_it() -> None:
    core = make_core(max_num_seqs=2)
    core.scheduler.add(request(1, [1] * 5), parked="grammar")
    assert not core.has_work, "nothing to compute"
    core.add([request(2, [2] * 5), request(3, [3] * 5)])
    got = run(core)
    assert set(got.ends) == {2, 3}
    assert core.stats().waiting_by_reason == {"grammar": 1}
    assert core.stats().num_waiting == 1
    core.scheduler.unpark(1)
    run(core, got)
    assert got.tokens[1] == expected([1] * 5, 4)
    assert_all_free(core)


def test_a_parked_request_can_be_aborted() -> None:
    core = make_core()
    core.scheduler.add(request(1, [1] * 5), parked="grammar")
    core.abort([1])
    core.scheduler.unpark(1)
    got = run(core)
    assert got.ends[1].reason == FinishReason.ABORT
    assert_all_free(core)
