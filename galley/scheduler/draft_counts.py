"""`DraftCounts`: drafts that were computed and accepted, by their place behind the known tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, StepPlan, StepResult, accepted_drafts
from galley.messages import DraftStats


class DraftCounts:
    """Counts since the last `take`.

    Attributes:
        num_accepted, num_rejected: since the engine's start.
    """

    def __init__(self) -> None:
        self.num_accepted = self.num_rejected = 0
        self._rows = self._tokens = 0
        self._accepted: NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, plan: StepPlan, result: StepResult) -> I32:
        """Count a step with drafts; returns the computed and accepted ones of each row, [n, 2]."""
        drafts = np.diff(plan.draft_indptr)
        sampled = result.num_sampled
        if len(result.num_forced):
            sampled = sampled - result.num_forced
        accepted = accepted_drafts(plan, sampled)
        self.num_accepted += int(accepted.sum())
        self.num_rejected += int((drafts - accepted).sum())
        self._rows += int(np.count_nonzero(drafts))
        self._tokens += int(drafts.sum())
        longest = int(drafts.max())
        if longest > len(self._accepted):
            self._accepted = np.pad(self._accepted, (0, longest - len(self._accepted)))
        # A row that accepts k drafts accepts those at places 0 … k - 1.
        exactly = np.bincount(accepted, minlength=longest + 1)
        self._accepted[:longest] += exactly[::-1].cumsum()[::-1][1 : longest + 1]
        return np.stack((drafts, accepted), axis=1)

    def take(self) -> DraftStats | None:
        """The counts; None if there are none."""
        if not self._tokens:
            return None
        taken = DraftStats(self._rows, self._tokens, self._accepted.tolist())
        self._rows = self._tokens = 0
        self._accepted[:] = 0
        return taken
