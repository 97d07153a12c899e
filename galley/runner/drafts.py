"""Draft tokens: guesses at the continuation of a sequence, which the next step verifies.

A draft is accepted if it is the very token that is sampled at its position, so a proposer never
changes an answer, only how many steps it takes. `verify` decides; `propose` asks a proposer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable, StepPlan


class Proposer(Protocol):
    """Proposes drafts for sequences that have just sampled a token."""

    def propose(self, table: RequestTable, slots: NDArray[np.intp]) -> tuple[I32, I32]:
        """Drafts of each slot's next tokens: counts [n] and token ids [sum(counts)].

        Args:
            table: with the tokens just sampled; known are token_ids[slot, : num_tokens[slot]].
        """


def verify(plan: StepPlan, token_ids: I32) -> tuple[I32, NDArray[np.bool_]]:
    """Which of the sampled tokens count.

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


def propose(
    proposer: Proposer, table: RequestTable, slots: NDArray[np.intp], eligible: NDArray[np.bool_]
) -> tuple[I32, I32]:
    """`drafts_indptr` and `drafts_ids` of a result whose rows are `slots`.

    Args:
        eligible: [n] rows that may get drafts.
    """
    rows = np.flatnonzero(eligible)
    counts, ids = proposer.propose(table, slots[rows])
    assert len(counts) == len(rows)
    assert len(ids) == counts.sum()
    indptr = np.zeros(len(slots) + 1, np.int32)
    indptr[rows + 1] = counts
    np.cumsum(indptr, out=indptr)
    return indptr, ids
