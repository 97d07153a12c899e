"""Speculation in the scheduler: behaviours 42 to 45, and what drafts may not do."""

from __future__ import annotations

import numpy as np
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


def decode_steps(core):
    """Steps of a core until its work is done; the plan of each that had drafts."""
    got = Collected()
    while core.has_work:
        step(core, got)
        if len(core.executor.plans[-1].draft_ids):
            yield core.executor.plans[-1]
    assert_all_free(core)


@pytest.mark.parametrize("drafts", ["right", "wrong", "random"])
def test_only_known_tokens_are_found(drafts: str) -> None:
    """A block of drafts is not in the index, and drafts never enter the hash chain."""
    core = make_core(block_size=4, num_blocks=80, drafts=drafts)
    kv, table = core.scheduler.kv, core.scheduler.table
    core.add([request(1, [5, 6, 7, 8, 9], max_tokens=40)])
    planned = 0
    submit = core.executor.submit

    def look(plan):
        nonlocal planned
        if len(plan.draft_ids):
            planned += 1
            known = table.token_ids[0, : table.num_tokens[0]].tolist()
            ids = np.array([*known, *plan.draft_ids.tolist(), 0], np.int32)
            hit = kv.find_hit(kv.new_chain(None, None), ids)
            assert hit.num_tokens == len(known) // 4 * 4
        return submit(plan)

    core.executor.submit = look
    got = run(core)
    assert planned > 3
    assert got.tokens[1] == expected([5, 6, 7, 8, 9], 40)
    answer = [5, 6, 7, 8, 9, *got.tokens[1]]
    core.add([request(2, [*answer, 1], max_tokens=1)])
    run(core, got)
    assert got.started[2][0].num_cached_tokens == 44, "the blocks of the answer are found"


@pytest.mark.parametrize("budget", [3, 5, 16])
def test_42_drafts_count_towards_the_budget(budget: int) -> None:
    core = make_core(budget=budget, max_num_seqs=3, drafts="right")
    core.add([request(h, [h] * 7, max_tokens=20) for h in (1, 2, 3)])
    for plan in decode_steps(core):
        assert plan.num_new.sum() <= budget
    assert core.executor.num_accepted > 0


def test_43_no_drafts_in_prefill_and_45_none_past_the_length() -> None:
    core = make_core(budget=8, max_model_len=64, drafts="right")
    core.add([request(1, [1] * 40, max_tokens=100), request(2, [2] * 30, max_tokens=9)])
    table = core.scheduler.table
    for plan in decode_steps(core):
        assert len(plan.draft_ids) == plan.num_drafts.sum()
        assert (table.num_tokens <= 64).all()
    assert core.executor.num_accepted > 0


def test_44_rejected_drafts_are_rolled_back() -> None:
    core = make_core(drafts="wrong")
    core.add([request(1, [1] * 5, max_tokens=20)])
    table = core.scheduler.table
    lengths = []
    for _ in decode_steps(core):
        if core.scheduler.num_running:
            assert table.num_computed[0] == table.num_tokens[0] - 1
            lengths.append(int(table.num_tokens[0]))
    assert lengths == list(range(7, 25))
    assert core.executor.num_accepted == 0


def test_drafts_cause_no_preemption() -> None:
    """Two sequences that fill the pool exactly: drafts have to do without blocks."""
    core = make_core(block_size=16, max_model_len=64, num_blocks=1 + 8, drafts="wrong")
    core.add([request(h, [h] * 20, max_tokens=44) for h in (1, 2)])
    got = run(core)
    assert core.executor.num_rejected > 0
    assert core.scheduler.counters.num_preemptions == 0
    assert [got.tokens[h] for h in (1, 2)] == [expected([h] * 20, 44) for h in (1, 2)]
