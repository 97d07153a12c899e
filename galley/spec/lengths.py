"""How many drafts a step takes: fixed, by the number of sequences, or what is fastest.

`AdaptiveLengths` weighs what drafts bring, the tokens expected of them, against what they cost: the
measured time of a step with as many tokens more. It takes as many as give the most tokens per
second, those with the best chances first, whichever sequences they are of; where none pay, none.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable, StepPlan
from galley.spec.acceptance import Acceptance
from galley.spec.costs import StepCosts
from galley.spec.proposer import Drafts, Proposer

#: Drafts are taken where they promise so much more speed than none.
_MARGIN = 1.03
#: Steps larger than this are not measured, and take no drafts.
MOST_TOKENS = 1024
#: A proposer that costs time is asked this often where its drafts do not pay: at first, and after
#: they have not paid for long.
_RETRY_STEPS, _MOST_RETRY_STEPS = 64, 512
#: One that is free is asked at each step, until a sequence has had no drafts for so many; then at
#: each step of this number.
_PATIENCE, _REST_STEPS = 16, 8


class Lengths(Protocol):
    """Decides how many of the proposed drafts are computed."""

    def clear(self, slots: NDArray[np.intp]) -> None: ...
    def stepped(self, plan: StepPlan, seconds: float) -> None: ...
    def proposed(self, slots: NDArray[np.intp], seconds: float) -> None: ...
    def asks(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]: ...
    def most(self, table: RequestTable, slots: NDArray[np.intp], num_rows: int) -> I32: ...
    def choose(
        self, table: RequestTable, slots: NDArray[np.intp], drafts: Drafts, num_rows: int
    ) -> I32: ...


class FixedLengths:
    """All drafts, up to a number that may depend on the number of sequences.

    Args:
        by_batch: (from, to, most): limits for steps of so many sequences.
    """

    def __init__(self, width: int, by_batch: tuple[tuple[int, int, int], ...] = ()) -> None:
        self._width, self._by_batch = width, by_batch

    def clear(self, slots: NDArray[np.intp]) -> None:
        pass

    def stepped(self, plan: StepPlan, seconds: float) -> None:
        pass

    def proposed(self, slots: NDArray[np.intp], seconds: float) -> None:
        pass

    def asks(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        return np.ones(len(slots), np.bool_)

    def most(self, table: RequestTable, slots: NDArray[np.intp], num_rows: int) -> I32:
        return np.full(len(slots), self.limit(num_rows), np.int32)

    def limit(self, num_rows: int) -> int:
        """Most drafts of a sequence in a step of so many."""
        for first, last, most in self._by_batch:
            if first <= num_rows <= last:
                return min(most, self._width)
        return 0 if self._by_batch else self._width

    def choose(
        self, table: RequestTable, slots: NDArray[np.intp], drafts: Drafts, num_rows: int
    ) -> I32:
        return drafts.counts


class AdaptiveLengths:
    """See the module."""

    def __init__(
        self, proposer: Proposer, num_slots: int, by_batch: tuple[tuple[int, int, int], ...] = ()
    ) -> None:
        self._acceptance = Acceptance(num_slots, proposer.width)
        self._costs = StepCosts(MOST_TOKENS)
        self._limits = FixedLengths(proposer.width, by_batch)
        self._is_free = proposer.is_free
        self._proposing = StepCosts(num_slots)
        self._pays = True
        self._skipped = 0
        self._retry_steps = _RETRY_STEPS
        #: [slots] whether the proposer was asked about them the last time that it was asked: then
        #: it had no more than a step's tokens to follow
        self._follows = np.zeros(num_slots, np.bool_)
        self._is_usual = True
        #: [slots] times that a sequence was asked about in a row and got none
        self._unpaid = np.zeros(num_slots, np.int32)
        self._turn = 0

    def clear(self, slots: NDArray[np.intp]) -> None:
        self._acceptance.clear(slots)
        self._unpaid[slots] = 0
        self._follows[slots] = False

    def stepped(self, plan: StepPlan, seconds: float) -> None:
        """Measure a step that consists of decode rows."""
        sampled = plan.num_sampled
        if len(sampled) and (plan.num_new == sampled).all():
            self._costs.record(int(sampled.sum()), seconds)

    def proposed(self, slots: NDArray[np.intp], seconds: float) -> None:
        """Drafts for `slots` took so long to propose."""
        if self._is_free:
            return
        self._is_usual = bool(self._follows[slots].all())
        self._follows[slots] = True
        if self._is_usual:
            self._proposing.record(len(slots), seconds)

    def asks(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """[n] which of `slots` the proposer is asked about: none that has long had no drafts."""
        self._turn = (self._turn + 1) % _REST_STEPS
        if not self._turn:
            return np.ones(len(slots), np.bool_)
        asked: NDArray[np.bool_] = self._unpaid[slots] < _PATIENCE
        return asked

    def most(self, table: RequestTable, slots: NDArray[np.intp], num_rows: int) -> I32:
        self._acceptance.observe(table, slots)
        if not self._is_free and not self._pays:
            if self._skipped < self._retry_steps:
                self._skipped += 1
                return np.zeros(len(slots), np.int32)
            self._retry_steps = min(2 * self._retry_steps, _MOST_RETRY_STEPS)
            self._follows[:] = False
        self._skipped = 0
        return self._limits.most(table, slots, num_rows)

    def choose(
        self, table: RequestTable, slots: NDArray[np.intp], drafts: Drafts, num_rows: int
    ) -> I32:
        """Drafts of each row for the next step, a part of those that are proposed."""
        counts = self._chosen(table, slots, drafts, num_rows)
        if self._is_free:
            self._unpaid[slots] = np.where(counts > 0, 0, self._unpaid[slots] + 1)
        return counts

    def _chosen(
        self, table: RequestTable, slots: NDArray[np.intp], drafts: Drafts, num_rows: int
    ) -> I32:
        total = int(drafts.counts.sum())
        if not total:
            return drafts.counts
        self._acceptance.remember(table, slots, drafts)
        none = np.zeros_like(drafts.counts)
        if num_rows + total > MOST_TOKENS or not self._costs.is_fresh(num_rows):
            return none
        chances = self._acceptance.chances(slots, drafts)
        best = np.sort(chances, axis=None)[::-1][:total]
        tokens = num_rows + np.concatenate((np.zeros(1), np.cumsum(best)))
        seconds = self._costs.curve(num_rows, total)
        speeds = tokens / (seconds + self._proposing.known(len(slots)))
        taken = int(speeds.argmax())
        pays = bool(taken and speeds[taken] >= _MARGIN * num_rows / seconds[0])
        self._pays = pays or not self._is_usual  # what it took to propose is known the next time
        if not pays:
            return none
        self._retry_steps = _RETRY_STEPS
        counts: I32 = (chances >= best[taken - 1]).sum(1, dtype=np.int32)
        return np.minimum(counts, drafts.counts)
