"""Steps sized by time: the pace itself, and the scheduler with a machine whose steps take a known
time.
"""

import pytest

from galley.scheduler.pace import MOST_TARGETS, SLOWEST, START, UNIT, StepPace
from tests.scheduler.fakes import Collected, make_core, request, run, step

#: Of the machine: a decoding row, a token of a prompt.
ROW, TOKEN = 0.0005, 0.0008


def take(pace: StepPace, num_decode: int, seconds_per_token: float, steps: int) -> list[int]:
    """Steps as `pace` sizes them; returns their prompt tokens."""
    sizes = []
    for _ in range(steps):
        sizes.append(pace.prompt_tokens(num_decode, 1))
        pace.record(num_decode, sizes[-1], num_decode * ROW + sizes[-1] * seconds_per_token)
    return sizes


def test_a_step_is_filled_up_to_its_time():
    pace = StepPace(0.060)
    assert pace.prompt_tokens(10, 1) == 0
    for _ in range(3):
        pace.record(10, 0, 10 * ROW)
    assert pace.prompt_tokens(10, 1) == START
    # (60 ms - 5 ms) / 0.8 ms = 68 tokens, in units of 16
    assert take(pace, 10, TOKEN, 12)[-1] == 64
    assert take(pace, 10, TOKEN / 4, 12)[-1] == 272
    assert take(pace, 10, TOKEN, 12)[-1] == 64


def test_slow_decoding_leaves_prompts_their_part():
    pace = StepPace(0.060)
    pace.record(10, 0, 0.2)
    for _ in range(8):
        size = pace.prompt_tokens(10, 1)
        pace.record(10, size, 0.2 + size * TOKEN)
    assert pace.prompt_tokens(10, 1) == int((SLOWEST - 1) * 0.2 / TOKEN) // UNIT * UNIT
    for _ in range(20):
        pace.record(10, pace.prompt_tokens(10, 1), 100.0)
    assert pace.prompt_tokens(10, 1) == UNIT


def test_prompts_keep_their_part_while_their_rows_begin_to_decode():
    """As after a restart, when no step is without prompts by itself."""
    pace = StepPace(0.060)
    pace.record(0, 512, 512 * TOKEN)
    rows, row = 4, 5 * ROW
    sizes, decoding = [], 0.0
    while rows < 60:
        sizes.append(pace.prompt_tokens(rows, 1))
        pace.record(rows, sizes[-1], rows * row + sizes[-1] * TOKEN)
        decoding += rows * row
        rows = 4 + sum(sizes) // 128
    assert sum(sizes) * TOKEN > 0.6 * (SLOWEST - 1) * decoding
    assert sizes.count(0) < len(sizes) / 10


def test_a_step_takes_longer_where_several_wait():
    pace = StepPace(0.060)
    pace.record(0, 512, 512 * TOKEN)
    pace.record(4, 0, 4 * ROW)
    sizes = [pace.prompt_tokens(4, n) * TOKEN + 4 * ROW for n in (1, 4, 8, 16, 100)]
    limits = [0.060 * n for n in (1, 1.75, 2.75, MOST_TARGETS, MOST_TARGETS)]
    assert sizes == pytest.approx(limits, abs=UNIT * TOKEN)


def test_the_time_of_decoding_rows_is_measured_again():
    pace = StepPace(0.060)
    pace.record(4, 0, 4 * ROW)
    assert 0 in take(pace, 4, TOKEN, 100)
    pace.record(4, 0, 4 * ROW)
    assert pace.prompt_tokens(5, 1)
    assert pace.prompt_tokens(40, 1) == 0


def test_a_pause_of_the_machine_counts_little():
    pace = StepPace(0.060)
    pace.record(10, 0, 10 * ROW)
    before = take(pace, 10, TOKEN, 8)[-1]
    pace.record(10, before, 9.0)
    assert pace.prompt_tokens(10, 1) >= before / 2
    pace.record(10, 0, 9.0)
    assert take(pace, 10, TOKEN, 8)[-1] == pytest.approx(before, rel=0.5)


@pytest.fixture
def core(monkeypatch):
    core = make_core(budget=256, max_num_seqs=8, max_model_len=2048, num_blocks=600, target_itl=60)
    record = core.scheduler._pace.record
    monkeypatch.setattr(
        core.scheduler._pace, "record", lambda d, p, s: record(d, p, d * ROW + p * TOKEN)
    )
    return core


def test_no_step_is_longer_than_the_target_while_others_decode(core):
    core.add([request(i, [i, 1, 2], 40) for i in range(4)])
    got = Collected()
    for _ in range(4):
        step(core, got)
    core.add([request(9, list(range(1000)), 4)])
    longest = total = steps = 0
    while not got.tokens.get(9):
        step(core, got)
        num_decode, num_prompt = core.scheduler._planned
        if num_decode:
            longest = max(longest, num_decode * ROW + num_prompt * TOKEN)
            total += num_prompt
            steps += 1
    assert longest <= 0.060
    assert total / steps >= UNIT
    run(core, got)
    assert len(got.ends) == 5


def test_without_others_a_prompt_has_the_whole_budget(core):
    core.add([request(9, list(range(1000)), 4)])
    step(core)
    assert core.scheduler._planned == (0, 256)


def test_short_prompts_overtake_a_long_one_and_leave_it_half(core):
    got = Collected()
    core.add([request(0, [1, 2, 3], 200)])
    step(core, got)
    core.add([request(1, list(range(1500)), 4)])
    step(core, got)
    core.add([request(2, list(range(1400)), 4), request(3, [5] * 20, 4), request(4, [6] * 30, 4)])
    # One of like length waits; both short ones have their first token after one step, or two.
    before = 1500 - core.scheduler.table.num_computed[1]
    step(core, got)
    step(core, got)
    assert got.tokens.get(3)
    assert got.tokens.get(4)
    assert not got.tokens.get(1)
    assert not got.tokens.get(2)
    after = 1500 - core.scheduler.table.num_computed[1]
    assert before - after >= START // 2
    run(core, got)
    assert sorted(got.ends) == [0, 1, 2, 3, 4]


def test_equal_prompts_go_in_order(core):
    got = Collected()
    core.add([request(0, [1, 2, 3], 200)])
    step(core, got)
    core.add([request(i, [i] * 300, 2) for i in range(1, 5)])
    run(core, got)
    firsts = {handle: starts[0].scheduled_time for handle, starts in got.started.items()}
    assert sorted(firsts, key=firsts.__getitem__) == [0, 1, 2, 3, 4]


def test_none_overtakes_a_more_important_prompt():
    core = make_core(
        budget=64,
        max_num_seqs=8,
        max_model_len=2048,
        num_blocks=600,
        policy="priority",
        target_itl=60,
    )
    got = Collected()
    core.add([request(1, list(range(1500)), 4, priority=1)])
    step(core, got)
    core.add([request(2, [5] * 20, 4, priority=2), request(3, [6] * 20, 4, priority=1)])
    step(core, got)
    assert got.tokens.get(3)
    while not got.tokens.get(1):
        assert not got.tokens.get(2)
        step(core, got)
    run(core, got)
    assert sorted(got.ends) == [1, 2, 3]


def test_a_short_prompt_that_has_no_blocks_costs_the_long_one_nothing(monkeypatch):
    core = make_core(budget=64, max_num_seqs=8, max_model_len=1120, num_blocks=72, target_itl=60)
    got = Collected()
    core.add([request(1, list(range(1040)), 40)])
    step(core, got)
    core.add([request(2, [5] * 300, 4)])
    with monkeypatch.context() as patch:
        patch.setattr(core.scheduler.kv, "can_admit", lambda hit, num_tokens: False)
        for chunk in range(2, 6):
            step(core, got)
            assert core.scheduler.table.num_computed[0] == 64 * chunk
    step(core, got)
    assert core.scheduler.table.num_computed[0] == 64 * 5 + 32
    run(core, got)
    assert sorted(got.ends) == [1, 2]
