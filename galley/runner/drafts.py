"""Verification of draft tokens: guesses at the continuation of a sequence (`galley.spec`).

A draft is accepted if it is the very token that is sampled at its position, so a proposer never
changes an answer, only how many steps it takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, StepPlan


def verify(plan: StepPlan, token_ids: I32) -> tuple[I32, NDArray[np.bool_]]:
    """The sampled tokens that are accepted.

    A row's samples count up to and including the first that differs from its draft:

        drafts     a b c
        samples    a x c d     →  a x

    Args:
        token_ids: [s] sampled, ragged by `plan.num_sampled`; -1 = no token could be sampled.

    Returns:
        num_accepted [n], which is 0 where a row's first sample is -1, and a mask [s].
    """
    counts = plan.num_sampled
    sampling = np.flatnonzero(counts)
    starts = np.cumsum(counts) - counts
    last = np.zeros(len(token_ids), np.bool_)
    last[(starts + counts - 1)[sampling]] = True
    stops = last.copy()
    stops[~last] = token_ids[~last] != plan.draft_ids
    candidates = np.flatnonzero(stops)
    ends = candidates[np.searchsorted(candidates, starts[sampling])]
    num_accepted = np.zeros(len(counts), np.int32)
    # A row that fails at a draft's position ends before it; the next step finds out again.
    num_accepted[sampling] = ends - starts[sampling] + (token_ids[ends] >= 0)
    offsets = np.arange(len(token_ids)) - np.repeat(starts, counts)
    return num_accepted, offsets < np.repeat(num_accepted, counts)
