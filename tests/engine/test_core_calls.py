"""A steady decode step costs the same number of function calls however many requests run."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from galley.batch import GroupSpec, StepPlan, StepResult
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.engine.build import build_core
from galley.engine.core import EngineCore
from tests.scheduler.fakes import request


class OneToken:
    """Yields token 5 for every row, in a fixed number of calls."""

    batch_invariant = True
    lookahead = 0

    def __init__(self, max_num_seqs: int, drafts: int = 0) -> None:
        self.drafts, self.max_drafts = drafts, drafts * max_num_seqs
        self.groups = [GroupSpec("full", 16, 64)]
        self.max_model_len = 128
        self.num_blocks = 1 + 8 * max_num_seqs

    def submit(self, plan: StepPlan) -> OneToken:
        self.plan = plan
        return self

    def sample(self, mask: Any = None) -> StepResult:
        counts = self.plan.num_sampled
        result = StepResult(self.plan.step, counts, np.full(counts.sum(), 5, np.int32))
        if self.drafts:
            ends = self.drafts * np.arange(len(counts) + 1)
            result.drafts_indptr = ends.astype(np.int32)
            result.drafts_ids = np.full(ends[-1], 5, np.int32)
        return result

    def rpc(self, method: str, *args: Any) -> list[Any]:
        return []

    def shutdown(self) -> None:
        pass


def decoding_core(n: int, clients: int, waiting: int, drafts: int = 0) -> EngineCore:
    """n requests in decode, their sequences between block borders; others wait for a slot."""
    config = EngineConfig(
        cache=CacheConfig(block_size=16),
        scheduler=SchedulerConfig(max_num_batched_tokens=8192, max_num_seqs=n),
    )
    core = build_core(config, OneToken(n, drafts))
    core.add(
        request(h, [h % 7] * 17, max_tokens=60, client_index=h % clients, eos=[2])
        for h in range(n + waiting)
    )
    core.step()
    core.step()
    assert core.scheduler.num_running == n
    assert core.scheduler.num_waiting == waiting
    return core


def calls_of_a_step(core: EngineCore) -> int:
    calls = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        core.step()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(("clients", "waiting"), [(1, 0), (1, 3), (2, 0)])
def test_calls_are_equal_at_8_and_256_running(clients: int, waiting: int) -> None:
    few, many = decoding_core(8, clients, waiting), decoding_core(256, clients, waiting)
    for _ in range(12):  # 18 … 30 tokens: no border, the last one fills no block
        counts = {calls_of_a_step(few), calls_of_a_step(many)}
        assert len(counts) == 1
        assert counts.pop() < 400
    assert many.trace.records[many.trace.last]["num_tokens"] == 256


def test_calls_are_equal_at_8_and_64_running_with_drafts() -> None:
    few, many = (decoding_core(n, 1, 0, drafts=2) for n in (8, 64))
    for _ in range(2):  # 21 … 27 tokens
        counts = {calls_of_a_step(few), calls_of_a_step(many)}
        assert len(counts) == 1
        assert counts.pop() < 500
    assert many.trace.records[many.trace.last]["num_tokens"] == 3 * 64


def test_the_count_does_see_work_per_request() -> None:
    few, many = decoding_core(8, 1, 0), decoding_core(256, 1, 0)
    few.abort(range(8))
    many.abort(range(256))
    assert calls_of_a_step(many) > calls_of_a_step(few)
