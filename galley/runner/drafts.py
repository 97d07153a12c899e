"""Verification of draft tokens: guesses at the continuation of a sequence (`galley.spec`).

A draft is accepted if it is the very token that is sampled at its position, so a proposer never
changes an answer, only how many steps it takes.
"""

from __future__ import annotations

import itertools

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
    # Behind a forward pass, which has emptied the caches, a loop takes less time than arrays.
    samples, drafts = token_ids.tolist(), iter(plan.draft_ids.tolist())
    num_accepted: list[int] = []
    mask: list[bool] = []
    for count in plan.num_sampled.tolist():
        start, expected = len(mask), list(itertools.islice(drafts, max(count - 1, 0)))
        accepted = 0
        while accepted < len(expected) and samples[start + accepted] == expected[accepted]:
            accepted += 1
        # A row that fails at a draft's position ends before it; the next step finds out again.
        accepted += count > 0 and samples[start + accepted] >= 0
        num_accepted.append(accepted)
        mask += [True] * accepted + [False] * (count - accepted)
    return np.array(num_accepted, np.int32), np.array(mask, np.bool_)
