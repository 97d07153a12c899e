"""Blocks and prefix cache through the whole core: behaviours 21 to 36, and sharing by families."""

from __future__ import annotations

import pytest

from galley.batch import GroupSpec
from galley.errors import ConfigError
from galley.request import FinishReason
from tests.scheduler.fakes import (
    Collected,
    assert_all_free,
    expected,
    make_core,
    request,
    run,
    step,
)

HYBRID = [GroupSpec("full", 16, 64), GroupSpec("window", 16, 64, window=40)]


def cached_tokens(core, handle: int, prompt: list[int], **kwargs) -> int:
    """Run one request alone; how many of its tokens came from the cache."""
    got = Collected()
    core.add([request(handle, prompt, **kwargs)])
    run(core, got)
    assert got.tokens[handle] == expected(prompt, 4)
    return got.started[handle][0].num_cached_tokens


def test_21_blocks_are_allocated_lazily() -> None:
    core = make_core(budget=20, prefix_caching=False)
    core.add([request(1, [1] * 50, max_tokens=40)])
    slot = None
    while core.has_work:
        before = core.scheduler.kv.pool.num_allocated
        step(core)
        if core.scheduler.num_running:
            slot = int(core.scheduler.running.order[0])
            computed = int(core.scheduler.table.num_computed[slot])
            assert core.scheduler.kv.pool.num_used == -(-computed // 16)
            if computed > 50 and computed % 16 != 1:
                assert core.scheduler.kv.pool.num_allocated == before, "only a border takes a block"
    assert slot is not None
    assert core.scheduler.kv.pool.num_allocated == 6


@pytest.mark.parametrize(
    ("first", "second", "hit"),
    [
        (48, 48, 32),  # an exact repeat of k full blocks hits k - 1
        (47, 47, 32),
        (49, 49, 48),
        (16, 16, 0),
        (48, 100, 48),
        (15, 40, 0),
    ],
)
def test_22_23_only_full_blocks_hit_and_one_token_is_left(
    first: int, second: int, hit: int
) -> None:
    core = make_core()
    prompt = list(range(100))
    assert cached_tokens(core, 1, prompt[:first], max_tokens=4) == 0
    # The first request's own output may fill a block; only its prompt is repeated here.
    assert cached_tokens(core, 2, prompt[:second]) == hit


def test_24_blocks_in_use_are_shared() -> None:
    core = make_core(budget=256)
    prompt = list(range(64))
    core.add([request(1, prompt, max_tokens=30)])
    step(core)
    used = core.scheduler.kv.pool.num_used
    core.add([request(2, [*prompt, 1], max_tokens=30)])
    step(core)
    # One block for the new token of each: 4 are shared.
    assert core.scheduler.kv.pool.num_used == used + 2
    core.abort([1])
    assert core.scheduler.kv.pool.num_used == 5
    got = run(core)
    assert got.tokens[2][-1:] == expected([*prompt, 1], 30)[-1:]
    assert_all_free(core)


def test_26_shared_prefixes_outlive_tails() -> None:
    core = make_core(num_blocks=1 + 16, max_model_len=256)
    shared = list(range(32))
    assert cached_tokens(core, 1, [*shared, *[1] * 90]) == 0
    # A stranger needs 12 blocks: the last two of the 7 cached go first, the head stays.
    assert cached_tokens(core, 2, [5] * 180) == 0
    assert cached_tokens(core, 3, [*shared, *[2] * 20]) == 32


def test_28_a_failed_allocation_changes_nothing() -> None:
    core = make_core(num_blocks=1 + 10, max_model_len=160, budget=256)
    prefix = list(range(48))
    cached_tokens(core, 1, prefix)
    core.add([request(2, [9] * 110, max_tokens=2)])
    step(core)
    pool = core.scheduler.kv.pool
    state = list(pool.refs), dict(pool.index), pool.num_free, list(pool._cached)
    core.add([request(3, [*prefix, *[3] * 60])])
    core.scheduler._admit(core.scheduler._grant())
    assert (list(pool.refs), dict(pool.index), pool.num_free, list(pool._cached)) == state
    assert core.scheduler.num_waiting == 1
    got = run(core)
    assert got.started[3][0].num_cached_tokens == 48
    assert got.tokens[3] == expected([*prefix, *[3] * 60], 4)


def test_29_different_salts_never_share() -> None:
    core = make_core()
    prompt = list(range(80))
    assert cached_tokens(core, 1, prompt, cache_salt="a") == 0
    assert cached_tokens(core, 2, prompt) == 0
    assert cached_tokens(core, 3, prompt, cache_salt="b") == 0
    assert cached_tokens(core, 4, prompt, cache_salt="a") == 64
    assert cached_tokens(core, 5, prompt) == 64


def test_29_different_adapters_never_share() -> None:
    """The key is in every block, and is the number of the load."""
    core = make_core()
    prompt = list(range(80))
    assert cached_tokens(core, 1, prompt, adapter=1) == 0
    assert core.executor.plans[0].new_rows[0].adapter == 1
    assert cached_tokens(core, 2, prompt) == 0
    assert cached_tokens(core, 3, prompt, adapter=2) == 0, "the same adapter, loaded again"
    assert cached_tokens(core, 4, prompt, adapter=1) == 64
    assert cached_tokens(core, 5, prompt, adapter=1, cache_salt="a") == 0
    assert cached_tokens(core, 6, prompt) == 64


def test_30_prompt_logprobs_do_not_read_the_cache_but_fill_it() -> None:
    core = make_core()
    prompt = list(range(80))
    assert cached_tokens(core, 1, prompt, prompt_logprobs=0) == 0
    assert cached_tokens(core, 2, prompt) == 64
    queries = core.scheduler.kv.counters.prefix_queries
    got = Collected()
    core.add([request(3, prompt, prompt_logprobs=0)])
    run(core, got)
    assert got.started[3][0].num_cached_tokens == 0
    assert got.prompt_positions[3] == list(range(1, 80))
    assert core.scheduler.kv.counters.prefix_queries == queries


def test_31_a_second_turn_hits_the_first_answer() -> None:
    core = make_core()
    prompt = list(range(40))
    got = Collected()
    core.add([request(1, prompt, max_tokens=30)])
    run(core, got)
    second = [*prompt, *got.tokens[1], 7, 7, 7]
    # The last token of the answer was never computed: 69 tokens are 4 full blocks.
    assert cached_tokens(core, 2, second) == 64


@pytest.mark.parametrize("budget", [256, 50])
def test_32_identical_prompts_arriving_together_are_computed_once(budget: int) -> None:
    core = make_core(budget=budget)
    prompt = list(range(70))
    core.add(request(h, prompt) for h in (1, 2, 3))
    got = run(core)
    assert [got.started[h][0].num_cached_tokens for h in (1, 2, 3)] == [0, 64, 64]
    if budget == 256:
        assert core.executor.plans[0].num_new.tolist() == [70, 6, 6]
    for h in (1, 2, 3):
        assert got.tokens[h] == expected(prompt, 4)
    assert_all_free(core)


def test_33_without_caching_there_are_neither_hits_nor_statistics() -> None:
    core = make_core(prefix_caching=False)
    prompt = list(range(80))
    assert cached_tokens(core, 1, prompt) == 0
    assert cached_tokens(core, 2, prompt) == 0
    assert (core.counters.prefix_queries, core.counters.prefix_hits) == (0, 0)
    assert not core.scheduler.kv.pool.index


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_children_of_one_parent_share_its_prompt(prefix_caching: bool) -> None:
    core = make_core(prefix_caching=prefix_caching, budget=256)
    prompt = list(range(100))
    core.add(request(h, prompt, share_group=5, max_tokens=20) for h in (1, 2, 3, 4))
    core.add([request(9, prompt, max_tokens=20)])
    got = Collected()
    step(core, got)
    # 6 full blocks of the prompt once, a partial one for each of the four; without caching the
    # stranger has 7 of its own.
    assert core.scheduler.kv.pool.num_used == 6 + 4 + (1 if prefix_caching else 7)
    run(core, got)
    for h in (1, 2, 3, 4, 9):
        assert got.tokens[h] == expected(prompt, 20)
    if not prefix_caching:
        assert core.counters.prefix_hits == 0
        assert all(s.num_cached_tokens == 0 for starts in got.started.values() for s in starts)
    assert_all_free(core)


def test_families_of_different_clients_do_not_meet() -> None:
    core = make_core(prefix_caching=False, budget=256)
    prompt = list(range(33))
    core.add(request(1, prompt, share_group=5, client_index=c) for c in (0, 1))
    step(core)
    assert core.scheduler.kv.pool.num_used == 6


def test_34_reset_fails_while_blocks_are_in_use() -> None:
    core = make_core()
    prompt = list(range(80))
    cached_tokens(core, 1, prompt)
    core.add([request(2, [1], max_tokens=50)])
    step(core)
    assert not core.reset_prefix_cache()
    run(core)
    assert cached_tokens(core, 3, prompt) == 64
    assert core.reset_prefix_cache()
    assert cached_tokens(core, 4, prompt) == 0


def test_34_reset_with_running_requests_sends_them_back_in_their_order() -> None:
    core = make_core(max_num_seqs=3)
    prompts = {h: [h] * 30 for h in range(1, 6)}
    core.add(request(h, p, max_tokens=10) for h, p in prompts.items())
    got = Collected()
    step(core, got)
    step(core, got)
    assert core.reset_prefix_cache(reset_running_requests=True)
    assert [s.request.handle for s in core.scheduler.queue] == [1, 2, 3, 4, 5]
    assert not core.scheduler.kv.pool.index
    run(core, got)
    assert list(got.ends) == [1, 2, 3, 4, 5]
    for h, prompt in prompts.items():
        assert got.tokens[h] == expected(prompt, 10)
    assert_all_free(core)


def test_35_blocks_that_have_left_the_window_are_freed() -> None:
    core = make_core(groups=[GroupSpec("window", 16, 64, window=40)], loopback=True)
    core.add([request(1, [1] * 100, max_tokens=100)])
    got = Collected()
    most = 0
    while core.has_work:
        step(core, got)
        if len(got.tokens.get(1, ())) > 2:
            most = max(most, core.scheduler.kv.pool.num_used)
    assert most == 4  # 40 tokens touch at most 4 blocks
    assert got.tokens[1] == expected([1] * 100, 100)
    assert_all_free(core)


@pytest.mark.parametrize("num_blocks", [200, 1 + 24])
def test_35_hybrid_groups_hit_only_what_all_hold(num_blocks: int) -> None:
    core = make_core(groups=HYBRID, num_blocks=num_blocks, max_model_len=200, loopback=True)
    prompts = {h: [*range(70), *[h] * 40] for h in range(1, 9)}
    got = Collected()
    core.add([request(1, prompts[1], max_tokens=60)])
    run(core, got)
    core.add(request(h, p, max_tokens=60) for h, p in prompts.items() if h > 1)
    run(core, got)
    for h, prompt in prompts.items():
        assert got.tokens[h] == expected(prompt, 60)
    if num_blocks == 200:
        assert got.started[2][0].num_cached_tokens == 64
    else:
        assert core.scheduler.counters.num_preemptions > 0
    assert_all_free(core)


@pytest.mark.parametrize("how", ["stop", "length", "abort", "error", "preempted and aborted"])
def test_36_after_any_end_all_blocks_are_free_and_nothing_is_left(how: str) -> None:
    core = make_core(num_blocks=1 + 10, max_model_len=160)
    core.executor.scripted[1] = [5] * 20 + [7]
    core.add([request(1, [1] * 40, max_tokens=60, eos=[7] if how == "stop" else [])])
    core.add([request(2, [1] * 40, max_tokens=60)])
    for _ in range(10):
        step(core)
    if how == "abort":
        core.abort([1, 2])
    elif how == "error":
        core.executor.failing = {1: "x", 2: "y"}
    elif how == "preempted and aborted":
        core.reset_prefix_cache(reset_running_requests=True)
        core.abort([2])
    got = run(core)
    reasons = {h: FinishReason(end.reason).name for h, end in got.ends.items()}
    assert (
        reasons
        == {
            "stop": {1: "STOP", 2: "LENGTH"},
            "length": {1: "LENGTH", 2: "LENGTH"},
            "abort": {1: "ABORT", 2: "ABORT"},
            "error": {1: "ERROR", 2: "ERROR"},
            "preempted and aborted": {1: "LENGTH", 2: "ABORT"},
        }[how]
    )
    assert_all_free(core)


def test_a_pool_too_small_for_one_sequence_states_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"8 blocks of 16 .* 256 tokens needs 16.* to 128"):
        make_core(num_blocks=1 + 8, max_model_len=256)


def test_groups_of_different_block_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="one block size"):
        make_core(groups=[GroupSpec("full", 16, 64), GroupSpec("full", 32, 64)])


def test_a_step_that_failed_does_not_leave_its_blocks_findable() -> None:
    core = make_core()
    core.executor.failing[1] = "poison"
    prompt = list(range(50))
    core.add([request(1, prompt)])
    run(core)
    computed = cached_tokens(core, 2, prompt)
    assert computed == 48, "the step itself has run: its keys and values are there"
