"""`DraftCounts`: drafts that were computed and accepted, by their place behind the known tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, StepPlan, StepResult, drafts_among
from galley.messages import DraftStats


class DraftCounts:
    """Counts since the last `take`.

    Attributes:
        num_accepted, num_rejected: since the engine's start.
    """

    def __init__(self) -> None:
        self.num_accepted = self.num_rejected = 0
        self._rows = self._tokens = 0
        #: [k] rows that accepted exactly k drafts
        self._exactly: NDArray[np.int64] = np.zeros(1, np.int64)

    def add(self, plan: StepPlan, result: StepResult) -> I32:
        """Count a step with drafts; returns the computed and accepted ones of each row, [n, 2]."""
        sampled = result.num_sampled
        if len(result.num_forced):
            sampled = sampled - result.num_forced
        drafts, accepted = plan.num_drafts, drafts_among(sampled)
        right = int(accepted.sum())
        self.num_accepted += right
        self.num_rejected += len(plan.draft_ids) - right
        self._rows += int(np.count_nonzero(drafts))
        self._tokens += len(plan.draft_ids)
        longest = int(drafts.max())
        if longest >= len(self._exactly):
            self._exactly = np.pad(self._exactly, (0, longest + 1 - len(self._exactly)))
        self._exactly += np.bincount(accepted, minlength=len(self._exactly))
        each = np.empty((len(drafts), 2), np.int32)
        each[:, 0], each[:, 1] = drafts, accepted
        return each

    def take(self) -> DraftStats | None:
        """The counts; None if there are none."""
        if not self._tokens:
            return None
        # A row that accepts k drafts accepts those at places 0 … k - 1.
        accepted = self._exactly[::-1].cumsum()[::-1][1:]
        taken = DraftStats(self._rows, self._tokens, accepted.tolist())
        self._rows = self._tokens = 0
        self._exactly[:] = 0
        return taken
