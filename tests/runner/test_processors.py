"""Custom logits processors: vLLM's forms, and failures that stay with their row."""

from __future__ import annotations

import numpy as np

from galley.request import SamplingParams
from galley.runner.processors import apply_processors
from galley.runner.sampled_rows import sampled_rows
from tests.runner.rows import VOCAB, new_row, step, tables


def run(*processors, tokens=(1, 2, 3, 4), num_prompt=3):
    params = SamplingParams(logits_processors=list(processors))
    table, sampling = tables(
        new_row(0, SamplingParams()), new_row(5, params, tokens=tokens, num_prompt=num_prompt)
    )
    plan = step([0, 5], num_logits=[2, 1])
    logits = np.zeros((3, VOCAB), np.float32)
    processed = sampling.processed(sampling.ruled(sampled_rows(plan, table)))
    assert processed.rows.tolist() == [1]
    return logits, apply_processors(processed, table, sampling, logits)


def test_two_arguments_are_output_tokens_and_logits():
    seen = []

    def processor(token_ids, logits):
        seen.append(token_ids)
        return logits + 1

    logits, failed = run(processor)
    assert failed == {}
    assert seen == [[4]]
    assert (logits[2] == 1).all()
    assert not logits[:2].any()


def test_three_arguments_begin_with_the_prompt():
    def processor(prompt, output, logits):
        logits[len(prompt)] = 5
        logits[output[-1]] = 7
        return logits

    logits, failed = run(processor)
    assert failed == {}
    assert logits[2, 3] == 5
    assert logits[2, 4] == 7


def test_processors_run_in_order():
    logits, _ = run(lambda _, row: row + 3, lambda _, row: row * 2)
    assert (logits[2] == 6).all()


def test_a_failing_processor_fails_its_row():
    _, failed = run(lambda _, row: row[:-1])
    assert "returned shape (199,)" in failed[1]
    _, failed = run(lambda _, row: 1 / 0)
    assert failed == {1: "a logits processor failed: ZeroDivisionError: division by zero"}
    _, failed = run(lambda _, row: None)
    assert 1 in failed


def test_rows_that_do_not_sample_are_unchanged():
    params = SamplingParams(logits_processors=[lambda _, row: row])
    table, sampling = tables(new_row(5, params))
    plan = step([5], num_logits=[0], num_sampled=[0])
    assert not len(sampling.ruled(sampled_rows(plan, table)))
