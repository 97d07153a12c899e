"""The simulator runs the real scheduler: budgets hold, and what-ifs come out as they should."""

from __future__ import annotations

from typing import Any

import pytest

from galley.batch import GroupSpec
from galley.config.resolve import from_kwargs
from galley.planning.simulate import Simulation, StandIn, Workload, simulate
from galley.planning.step import StepLoad


def seconds(load: StepLoad) -> float:
    """A step of 10 ms, and 1 ms for each token beyond 16."""
    return 0.010 + 0.001 * max(load.tokens - 16, 0)


def run(
    workload: Workload,
    blocks: int = 1000,
    front_end: tuple[float, float] = (0.0, 0.0),
    **flags: Any,
) -> Simulation:
    config = from_kwargs({"max_num_seqs": 8, "max_model_len": 512, **flags}, "server", {})
    executor = StandIn([GroupSpec("full", 16, 64)], blocks, 8, 512)
    return simulate(config, executor, seconds, workload, *front_end, keep_steps=True)


def test_every_token_is_computed_once() -> None:
    done = run(Workload(100, 20, 4, requests=10))
    assert done.tokens == 10 * 20
    assert len(done.gaps) == 10 * 19
    assert sum(new for step in done.steps for _, _, new in step.rows) == 10 * (100 + 19)
    assert done.steps[-1].begin + done.steps[-1].seconds == pytest.approx(done.seconds)
    assert all(a <= f <= e for a, f, e in zip(done.arrivals, done.firsts, done.ends, strict=True))
    assert max(len(step.rows) for step in done.steps) == 4


def test_a_budget_of_128_splits_a_prompt() -> None:
    done = run(Workload(256, 8, 3, requests=6), max_num_batched_tokens=128)
    assert max(sum(new for _, _, new in step.rows) for step in done.steps) == 128
    assert [new for step in done.steps[:2] for row, _, new in step.rows if row == 0] == [128, 128]


def test_decodes_keep_their_pace_with_a_small_budget() -> None:
    load = Workload(256, 32, 4, rate=3.0, requests=12)
    small, large = (run(load, max_num_batched_tokens=n) for n in (64, 2048))
    assert max(small.gaps) < max(large.gaps) / 3


def test_static_batches_take_longer() -> None:
    """Answers of one length, but requests that arrive while a batch runs have to wait."""
    load = Workload(64, 32, 4, rate=8.0, requests=24)
    continuous = run(load)
    static = run(Workload(64, 32, 4, 8.0, requests=24, batching="static"))
    assert static.tokens == continuous.tokens
    first = [f - a for f, a in zip(static.firsts, static.arrivals, strict=True)]
    assert sum(first) > 3 * sum(
        f - a for f, a in zip(continuous.firsts, continuous.arrivals, strict=True)
    )
    for step in static.steps:  # all of a batch or none: nobody joins a running one
        assert len({before for _, before, _ in step.rows if before > 64}) <= 1


def test_a_front_end_takes_one_request_after_the_other() -> None:
    """Eight that come at once reach the engine 50 ms apart; their first tokens wait for that."""
    done = run(Workload(8, 4, 8, requests=8), front_end=(0.05, 0.0))
    assert done.arrivals == [0.0] * 8
    for number, first in enumerate(done.firsts, 1):
        assert 0.0099 < first - 0.05 * number < 0.0201


def test_requests_that_come_together_are_computed_together() -> None:
    """A delay is the same for all: one step has the prompts of eight that came at once."""
    done = run(Workload(64, 4, 8, requests=8), front_end=(0.0, 0.03), target_itl=0.0)
    assert done.arrivals == [0.0] * 8
    assert done.firsts == pytest.approx([0.03 + seconds(StepLoad.of([0] * 8, [64] * 8, 8))] * 8)


def test_the_scheduler_has_measured_a_decoding_row_before() -> None:
    """Prompts that came during the first one's step are computed in the second."""
    done = run(Workload(64, 4, 8, requests=8), front_end=(0.001, 0.0))
    assert [[new for _, _, new in step.rows] for step in done.steps[:2]] == [
        [64],
        [1] + [64] * 2 + [48],
    ]


def test_a_shared_beginning_is_found_in_the_cache() -> None:
    done = run(Workload(200, 4, 1, shared=160, requests=3))
    assert [step.rows[0][1] for step in done.steps if step.rows[0][2] > 1] == [0, 160, 160]


def test_too_few_blocks_cost_preemptions() -> None:
    assert run(Workload(32, 96, 8, requests=16), blocks=40).preemptions > 0
