"""Sampling columns change with rows, and only rows with rules have masks and biases."""

from __future__ import annotations

import numpy as np
import pytest

from galley.request import SamplingParams
from galley.runner import mask_rules
from galley.runner.mask_rules import TokenSets
from galley.runner.sampled_rows import sampled_rows
from tests.runner.rows import VOCAB, new_row, step, tables


def logit_masks(sampling, plan, table, grammar=None):
    return sampling.logit_masks(plan, sampling.ruled(sampled_rows(plan, table)), table, grammar)


def allowed(mask):
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[VOCAB:].any()
    return set(np.flatnonzero(bits).tolist())


def test_numbers_become_columns():
    params = SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-0.25,
        repetition_penalty=1.5,
        seed=-1,
        logprobs=3,
    )
    _, sampling = tables(new_row(2, params))
    got = {name: column[2] for name, column in sampling.columns.items()}
    assert got.pop("seed") == 2**64 - 1
    assert got == {
        "temperature": np.float32(0.7),
        "top_p": np.float32(0.9),
        "min_p": np.float32(0.1),
        "top_k": 5,
        "presence": np.float32(0.5),
        "frequency": np.float32(-0.25),
        "repetition": np.float32(1.5),
        "num_logprobs": 3,
    }
    assert not sampling.has_rules.any()


def test_off_values_are_the_kernel_s():
    _, sampling = tables(new_row(0, SamplingParams(temperature=1e-6, top_k=-1)))
    assert sampling.columns["temperature"][0] == 0
    assert sampling.columns["top_k"][0] == 0
    assert sampling.columns["num_logprobs"][0] == -1


def test_logprob_columns_hold_the_larger_request_and_the_whole_vocabulary():
    _, sampling = tables(
        new_row(0, SamplingParams(logprobs=2, prompt_logprobs=7)),
        new_row(1, SamplingParams(logprobs=-1)),
        new_row(2, SamplingParams(logprobs=0)),
    )
    assert sampling.columns["num_logprobs"].tolist()[:3] == [7, 20, 0]
    assert sampling.num_logprobs.tolist()[:3] == [2, VOCAB, 0]
    assert sampling.num_prompt_logprobs.tolist()[:3] == [7, -1, -1]


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.5},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"logprobs": 0},
        {"prompt_logprobs": 1},
        {"logprob_token_ids": [3]},
        {"logit_bias": {3: 1.0}},
        {"min_tokens": 2},
    ],
)
def test_a_row_is_greedy_where_only_its_largest_logit_counts(more):
    greedy = {"temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1}
    _, sampling = tables(
        new_row(0, SamplingParams(**greedy)), new_row(1, SamplingParams(**greedy | more))
    )
    assert sampling.greedy.tolist()[:3] == [True, False, False]
    sampling.clear(0)
    assert not sampling.greedy.any()


def test_rows_with_numbers_alone_have_no_masks():
    table, sampling = tables(*(new_row(i, SamplingParams(temperature=0.5)) for i in range(4)))
    assert logit_masks(sampling, step([0, 1, 2, 3]), table) is None


def test_allowed_token_ids_mask_only_their_row():
    table, sampling = tables(
        new_row(0, SamplingParams()),
        new_row(1, SamplingParams(allowed_token_ids=[0, 64, 199])),
    )
    masks = logit_masks(sampling, step([0, 1]), table)
    assert masks.of_row(0) is None
    assert allowed(masks.of_row(1)) == {0, 64, 199}
    assert masks.addresses.tolist() == [0, masks.of_row(1).ctypes.data]
    assert masks.bias_indptr.tolist() == [0, 0, 0]


def test_masks_are_at_sampled_logit_rows_alone():
    table, sampling = tables(
        new_row(0, SamplingParams(allowed_token_ids=[5], prompt_logprobs=1)),
        new_row(1, SamplingParams(allowed_token_ids=[6])),
    )
    masks = logit_masks(sampling, step([0, 1], num_logits=[3, 1]), table)
    assert [masks.of_row(i) is not None for i in range(4)] == [False, False, True, True]
    assert allowed(masks.of_row(3)) == {6}
    assert logit_masks(sampling, step([0, 1], [3, 0], num_sampled=[0, 0]), table) is None


def test_min_tokens_forbids_eos_and_stop_ids_until_enough_are_out():
    params = SamplingParams(min_tokens=2, stop_token_ids=[11, 5000])
    table, sampling = tables(new_row(0, params, eos=(9, 10)))
    masks = logit_masks(sampling, step([0]), table)
    assert allowed(masks.of_row(0)) == set(range(VOCAB)) - {9, 10, 11}
    table.num_tokens[0] += 1
    assert logit_masks(sampling, step([0]), table) is not None
    table.num_tokens[0] += 1
    assert logit_masks(sampling, step([0]), table) is None


def test_a_bad_word_s_last_token_is_forbidden_after_the_others():
    params = SamplingParams(bad_words=["a", "b c"])
    row = new_row(
        0, params, tokens=(7, 8, 7, 8), num_prompt=2, bad=[(3,), (7, 8, 4), (1, 8, 6), (VOCAB,)]
    )
    table, sampling = tables(row)
    masks = logit_masks(sampling, step([0]), table)
    assert allowed(masks.of_row(0)) == set(range(VOCAB)) - {3, 4}


def test_bad_words_look_at_output_tokens_only():
    row = new_row(
        0, SamplingParams(bad_words=["b c"]), tokens=(7, 8), num_prompt=2, bad=[(7, 8, 4), (8, 5)]
    )
    table, sampling = tables(row)
    assert logit_masks(sampling, step([0]), table) is None


def test_masks_combine_and_leave_the_allowed_set_as_it_was():
    params = SamplingParams(allowed_token_ids=[9, 20, 30], min_tokens=1)
    table, sampling = tables(new_row(0, params))
    for _ in range(2):
        masks = logit_masks(sampling, step([0]), table)
        assert allowed(masks.of_row(0)) == {20, 30}
    table.num_tokens[0] += 1
    assert allowed(logit_masks(sampling, step([0]), table).of_row(0)) == {9, 20, 30}


def test_biases_are_ragged_by_logit_row():
    table, sampling = tables(
        new_row(0, SamplingParams(logit_bias={4: 1.5, 7: -100.0})),
        new_row(1, SamplingParams()),
        new_row(2, SamplingParams(logit_bias={1: 2.0})),
    )
    masks = logit_masks(sampling, step([2, 1, 0]), table)
    assert masks.bias_indptr.tolist() == [0, 1, 1, 3]
    assert masks.bias_ids.tolist() == [1, 4, 7]
    assert masks.bias_values.tolist() == [2.0, 1.5, -100.0]
    assert not masks.addresses.any()


def test_a_grammar_mask_is_met_with_the_row_s_own():
    table, sampling = tables(
        new_row(0, SamplingParams(allowed_token_ids=[1, 33, 100])), new_row(1, SamplingParams())
    )
    bits = np.tile(TokenSets(VOCAB).only([33, 50, 100]), (2, 1))
    masks = logit_masks(sampling, step([0, 1], grammar=[0, 1]), table, bits)
    assert allowed(masks.of_row(0)) == {33, 100}
    assert allowed(masks.of_row(1)) == {33, 50, 100}
    first, second = masks.addresses.tolist()
    assert [first, second] == [bits[0].ctypes.data, bits[1].ctypes.data]


def test_a_minimum_of_tokens_yields_where_a_constraint_leaves_the_end_alone():
    table, sampling = tables(new_row(0, SamplingParams(min_tokens=9), eos=(7,)))
    for given, left in (([7], {7}), ([7, 9], {9})):
        bits = TokenSets(VOCAB).only(given)[None]
        masks = logit_masks(sampling, step([0], grammar=[0]), table, bits)
        assert allowed(masks.of_row(0)) == left


@pytest.mark.parametrize("leave", ["clear", "replace"])
def test_a_slot_keeps_nothing_of_its_last_request(leave):
    table, sampling = tables(new_row(3, SamplingParams(allowed_token_ids=[1])))
    assert sampling.has_rules[3]
    if leave == "clear":
        sampling.clear(3)
    else:
        sampling.set_row(new_row(3, SamplingParams()))
    assert not sampling.rules
    assert logit_masks(sampling, step([3]), table) is None


def test_a_temperature_beyond_single_precision_is_still_a_number():
    _, sampling = tables(new_row(3, SamplingParams(temperature=1e300)))
    assert sampling.columns["temperature"][3] == np.float32(1e30)


@pytest.mark.parametrize("top_k", [VOCAB, VOCAB + 1, 2**31, 2**63 - 1])
def test_more_candidates_than_tokens_are_all_of_them(top_k):
    _, sampling = tables(new_row(3, SamplingParams(top_k=top_k)))
    assert sampling.columns["top_k"][3] == VOCAB


class NotTwice:
    """A mask rule of a later feature: no token follows itself."""

    def __init__(self, sets):
        self.sets = sets

    def allowed(self, token_ids, num_prompt):
        return self.sets.all_but([int(token_ids[-1])])


def test_a_mask_rule_is_one_line_in_the_set(monkeypatch):
    monkeypatch.setattr(
        mask_rules, "MASK_RULES", (*mask_rules.MASK_RULES, lambda row, sets: NotTwice(sets))
    )
    table, sampling = tables(new_row(0, SamplingParams(allowed_token_ids=[9, 20])))
    last = int(table.token_ids[0, table.num_tokens[0] - 1])
    masks = logit_masks(sampling, step([0]), table)
    assert allowed(masks.of_row(0)) == {9, 20} - {last}
    table, sampling = tables(new_row(0, SamplingParams()))
    masks = logit_masks(sampling, step([0]), table)
    assert allowed(masks.of_row(0)) == set(range(VOCAB)) - {last}
