"""Logit rows of a step that are sampled: their plan row, place and position in the sequence.

Logit rows of a plan whose rows have num_logits 1, 3, 0, 2 and num_sampled 1, 1, 0, 2:

    | r0 | r1 r1 r1 | r3 r3 |      of a row's logit rows the last num_sampled are sampled, the
      ^           ^   ^  ^         others give prompt logprobs
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import EMPTY_I32, I32, RequestTable, StepPlan, ragged_positions


class SampledRows(msgspec.Struct, eq=False):
    """Sampled logit rows in order, [s] each.

    Attributes:
        rows: index into the plan's rows.
        logit_rows: index into the step's logit rows.
        slots: slot of each.
        positions: position of the token that is sampled: so many tokens come before it.
    """

    rows: NDArray[np.intp]
    logit_rows: NDArray[np.intp]
    slots: I32
    positions: I32

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> SampledRows:
        return SampledRows(
            self.rows[keep], self.logit_rows[keep], self.slots[keep], self.positions[keep]
        )


NO_ROWS = SampledRows(np.empty(0, np.intp), np.empty(0, np.intp), EMPTY_I32, EMPTY_I32)


def sampled_rows(plan: StepPlan, table: RequestTable) -> SampledRows:
    """The plan's sampled logit rows; `table` is as it was before the step."""
    counts = plan.num_sampled
    ends = np.cumsum(plan.num_logits, dtype=np.intp)
    if not len(plan.draft_ids):  # at most one each, of the last known token
        rows = np.flatnonzero(counts)
        slots = plan.slots[rows]
        return SampledRows(rows, ends[rows] - 1, slots, table.num_tokens[slots])
    rows = np.repeat(np.arange(len(counts)), counts)
    slots = plan.slots[rows]
    logit_rows = ragged_positions(counts, (ends - counts).astype(np.int32)).astype(np.intp)
    positions = ragged_positions(counts, table.num_tokens[plan.slots])
    return SampledRows(rows, logit_rows, slots, positions)
