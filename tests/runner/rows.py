"""Rows, plans and tables for tests of what a runner does around its executable."""

from __future__ import annotations

import numpy as np

from galley.batch import EMPTY_I32, GroupSpec, NewRow, RequestTable, StepPlan
from galley.runner.sampler import SamplingTable

VOCAB = 200


def new_row(slot, params, tokens=(1, 2, 3), num_prompt=3, eos=(9,), bad=()):
    return NewRow(
        slot=slot,
        handle=slot + 100,
        token_ids=np.array(tokens, np.int32),
        num_prompt=num_prompt,
        num_computed=0,
        params=params,
        eos_token_ids=list(eos),
        bad_words_token_ids=[list(b) for b in bad],
    )


def step(slots, num_logits=None, num_sampled=None, grammar=()):
    n = len(slots)
    return StepPlan(
        step=1,
        slots=np.array(slots, np.int32),
        num_new=np.ones(n, np.int32),
        num_logits=np.array(num_logits or [1] * n, np.int32),
        num_sampled=np.array(num_sampled if num_sampled is not None else [1] * n, np.int32),
        masked_logits=np.array(grammar, np.int32) if len(grammar) else EMPTY_I32,
    )


def tables(*rows):
    table = RequestTable(8, 64, [GroupSpec("full", 16, 1)])
    sampling = SamplingTable(8, VOCAB, max_top=20)
    for row in rows:
        table.set_row(row)
        sampling.set_row(row)
    return table, sampling
