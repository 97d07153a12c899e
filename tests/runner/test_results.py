"""Samples become tokens, errors and logprob columns of the right rows and positions."""

from __future__ import annotations

import numpy as np
import pytest

from galley.batch import StepPlan
from galley.kernels.sampling import Samples
from galley.kernels.sampling_reference import logprobs_row
from galley.request import Failure, SamplingParams
from galley.runner.results import NOTHING_TO_SAMPLE, SampledStep, step_result
from galley.runner.sampled_rows import sampled_rows
from tests.runner.rows import VOCAB, new_row, tables

TOP = 20


def plan_of(slots, num_new, num_logits, num_sampled):
    return StepPlan(
        step=4,
        slots=np.array(slots, np.int32),
        num_new=np.array(num_new, np.int32),
        num_logits=np.array(num_logits, np.int32),
        num_sampled=np.array(num_sampled, np.int32),
    )


def sampled_step(plan, table, tokens, seed=0, failed=None):
    """The sampling kernel's results for random logits and these tokens, one per logit row."""
    count = int(plan.num_logits.sum())
    assert len(tokens) == count
    logits = np.random.default_rng(seed).normal(size=(count, VOCAB)).astype(np.float32)
    rows = [logprobs_row(x, max(t, 0), TOP) for x, t in zip(logits, tokens, strict=True)]
    samples = Samples(
        token_ids=np.array(tokens, np.int32),
        logprobs=np.array([r.logprob for r in rows], np.float32),
        ranks=np.array([r.rank for r in rows], np.int32),
        top_ids=np.array([r.top_ids for r in rows], np.int32).reshape(count, TOP),
        top_logprobs=np.array([r.top_logprobs for r in rows], np.float32).reshape(count, TOP),
    )
    return SampledStep(plan, sampled_rows(plan, table), samples, logits, failed or {})


def entries(columns):
    """(row, position, rank, [(token, logprob) …]) of each entry."""
    out = []
    for i, row in enumerate(columns.rows.tolist()):
        at = slice(columns.indptr[i], columns.indptr[i + 1])
        pairs = list(
            zip(columns.token_ids[at].tolist(), columns.logprobs[at].tolist(), strict=True)
        )
        out.append((row, int(columns.positions[i]), int(columns.ranks[i]), pairs))
    return out


def test_rows_that_sample_yield_one_token_each():
    table, sampling = tables(*(new_row(i, SamplingParams()) for i in range(4)))
    plan = plan_of([3, 0, 2], [1, 5, 1], [1, 0, 1], [1, 0, 1])
    result = step_result(sampled_step(plan, table, [42, 17]), table, sampling)
    assert result.step == 4
    assert result.num_sampled.tolist() == [1, 0, 1]
    assert result.token_ids.tolist() == [42, 17]
    assert result.logprobs is None
    assert result.prompt_logprobs is None
    assert result.errors == {}


def test_tokens_do_not_change_with_the_kernel_s_next_step():
    table, sampling = tables(new_row(0, SamplingParams(logprobs=1)))
    step = sampled_step(plan_of([0], [1], [1], [1]), table, [5])
    result = step_result(step, table, sampling)
    step.samples.token_ids[:] = 0
    step.samples.ranks[:] = 0
    assert result.token_ids.tolist() == [5]
    assert result.logprobs.ranks[0] > 0


def test_a_row_that_cannot_sample_fails_alone():
    table, sampling = tables(*(new_row(i, SamplingParams()) for i in range(4)))
    plan = plan_of([1, 2, 3], [1, 1, 1], [1, 1, 1], [1, 1, 1])
    result = step_result(
        sampled_step(plan, table, [8, -1, 9], failed={2: "it broke"}), table, sampling
    )
    assert result.num_sampled.tolist() == [1, 0, 0]
    assert result.token_ids.tolist() == [8]
    assert result.errors == {2: Failure(NOTHING_TO_SAMPLE), 3: Failure("it broke")}


def test_logprobs_begin_with_the_token_and_go_on_with_the_top():
    table, sampling = tables(
        new_row(0, SamplingParams(logprobs=2)),
        new_row(1, SamplingParams()),
        new_row(2, SamplingParams(logprobs=0), tokens=(1, 2, 3, 4)),
        new_row(3, SamplingParams(logprobs=5)),
    )
    plan = plan_of([0, 1, 2, 3], [1] * 4, [1] * 4, [1] * 4)
    step = sampled_step(plan, table, [10, 11, 12, 13])
    got = entries(step_result(step, table, sampling).logprobs)
    assert [(row, position, len(pairs)) for row, position, _, pairs in got] == [
        (0, 3, 3),
        (2, 4, 1),
        (3, 3, 6),
    ]
    for row, _, rank, pairs in got:
        want = logprobs_row(step.logits[row], 10 + row, len(pairs) - 1)
        assert rank == want.rank
        assert pairs[0] == (10 + row, np.float32(want.logprob))
        assert [p[0] for p in pairs[1:]] == want.top_ids.tolist()
        assert [p[1] for p in pairs[1:]] == want.top_logprobs.tolist()


@pytest.mark.parametrize("k", [TOP + 1, -1])
def test_more_logprobs_than_the_kernel_lists_come_from_the_logits(k):
    table, sampling = tables(
        new_row(0, SamplingParams(logprobs=k)), new_row(1, SamplingParams(logprobs=3))
    )
    step = sampled_step(plan_of([0, 1], [1, 1], [1, 1], [1, 1]), table, [10, 11])
    got = entries(step_result(step, table, sampling).logprobs)
    count = VOCAB if k == -1 else k
    assert [len(pairs) for *_, pairs in got] == [count + 1, 4]
    for row, (*_, pairs) in enumerate(got):
        want = logprobs_row(step.logits[row], 10 + row, len(pairs) - 1)
        assert [p[0] for p in pairs[1:]] == want.top_ids.tolist()
        assert np.allclose([p[1] for p in pairs[1:]], want.top_logprobs, atol=1e-6)


def test_prompt_logprobs_are_of_the_next_prompt_token():
    prompt = (1, 2, 3, 4, 5, 6, 7)
    table, sampling = tables(
        new_row(0, SamplingParams(), tokens=prompt, num_prompt=7),
        new_row(1, SamplingParams(prompt_logprobs=1), tokens=prompt, num_prompt=7),
    )
    table.num_computed[1] = 2
    # Row 1 computes positions 2 and 3, whose logits are of the tokens at 3 and 4.
    plan = plan_of([0, 1], [7, 2], [1, 2], [1, 0])
    result = step_result(sampled_step(plan, table, [50, 4, 5]), table, sampling)
    got = entries(result.prompt_logprobs)
    assert [(row, position, pairs[0][0], len(pairs)) for row, position, _, pairs in got] == [
        (1, 3, 4, 2),
        (1, 4, 5, 2),
    ]
    assert result.num_sampled.tolist() == [1, 0]


def test_the_last_prompt_position_is_the_output_s():
    table, sampling = tables(
        new_row(0, SamplingParams(prompt_logprobs=0, logprobs=1), tokens=(1, 2, 3), num_prompt=3)
    )
    plan = plan_of([0], [3], [3], [1])
    result = step_result(sampled_step(plan, table, [2, 3, 77]), table, sampling)
    assert result.token_ids.tolist() == [77]
    assert [(p, pairs[0][0]) for _, p, _, pairs in entries(result.prompt_logprobs)] == [
        (1, 2),
        (2, 3),
    ]
    assert [(p, pairs[0][0]) for _, p, _, pairs in entries(result.logprobs)] == [(3, 77)]


def test_decoding_gives_no_more_prompt_logprobs():
    table, sampling = tables(
        new_row(0, SamplingParams(prompt_logprobs=1), tokens=(1, 2, 3, 4), num_prompt=3)
    )
    table.num_computed[0] = 3
    result = step_result(sampled_step(plan_of([0], [1], [1], [1]), table, [7]), table, sampling)
    assert result.prompt_logprobs is None
