"""How many drafts a step takes: fixed, by the number of sequences, or what is fastest.

`AdaptiveLengths` weighs what drafts bring, the tokens expected of them, against what they cost: the
measured time of a step with as many tokens more, and that of proposing. It takes as many as give
the most tokens per second, those with the best chances first, whichever sequences they are of;
where none pay, none (csrc/draft_lengths.h).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable, StepPlan
from galley.kernels import _native
from galley.spec.proposer import NUM_LEVELS, Drafts, Proposer

#: Steps larger than this are not measured, and take no drafts.
MOST_TOKENS = 1024
#: A proposer that costs time is asked this often where its drafts do not pay: at first, and after
#: they have not paid for long.
_RETRY_STEPS, _MOST_RETRY_STEPS = 64, 512
#: One that is free is asked at each step, until a sequence has had no drafts for so many; then at
#: each step of this number.
_PATIENCE, _REST_STEPS = 16, 8


class Lengths(Protocol):
    """Decides how many of the proposed drafts are computed.

    `stepped` is given the time from a step's beginning to the next one's, but for that of
    proposing; `choose` that of proposing `drafts`.
    """

    def enter(self, slot: int) -> None: ...
    def clear(self, slots: NDArray[np.intp]) -> None: ...
    def rests(self) -> bool: ...
    def stepped(self, plan: StepPlan, seconds: float) -> None: ...
    def asks(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]: ...
    def most(self, table: RequestTable, slots: NDArray[np.intp], num_rows: int) -> I32: ...
    def choose(
        self,
        table: RequestTable,
        slots: NDArray[np.intp],
        drafts: Drafts,
        num_rows: int,
        seconds: float,
    ) -> I32: ...


class FixedLengths:
    """All drafts, up to a number that may depend on the number of sequences.

    Args:
        by_batch: (from, to, most): limits for steps of so many sequences.
    """

    def __init__(self, width: int, by_batch: tuple[tuple[int, int, int], ...] = ()) -> None:
        self._width, self._by_batch = width, by_batch

    def enter(self, slot: int) -> None:
        pass

    def clear(self, slots: NDArray[np.intp]) -> None:
        pass

    def rests(self) -> bool:
        return False

    def stepped(self, plan: StepPlan, seconds: float) -> None:
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
        self,
        table: RequestTable,
        slots: NDArray[np.intp],
        drafts: Drafts,
        num_rows: int,
        seconds: float,
    ) -> I32:
        return drafts.counts


class AdaptiveLengths:
    """See the module."""

    def __init__(
        self, proposer: Proposer, num_slots: int, by_batch: tuple[tuple[int, int, int], ...] = ()
    ) -> None:
        self._lengths = _native.DraftLengths(num_slots, proposer.width, NUM_LEVELS, MOST_TOKENS)
        self._limits = FixedLengths(proposer.width, by_batch)
        self._is_free = proposer.is_free
        self._proposing = _native.StepCosts(num_slots)
        self._pays = True
        self._skipped = 0
        self._retry_steps = _RETRY_STEPS
        #: [slots] whether the proposer was asked about them the last time that it was asked: then
        #: it had no more than a step's tokens to follow
        self._follows = np.zeros(num_slots, np.bool_)
        self._is_usual = True
        #: [slots] times that a sequence was asked about in a row and got none
        self._unpaid = np.zeros(num_slots, np.int32)
        #: slots of sequences that are asked about at each step
        self._awake: set[int] = set()
        self._turn = 0

    def enter(self, slot: int) -> None:
        """A sequence that may have drafts comes into a slot."""
        self._awake.add(slot)

    def clear(self, slots: NDArray[np.intp]) -> None:
        for slot in slots.tolist():
            self._lengths.clear(slot)
            self._awake.discard(slot)
        self._unpaid[slots] = 0
        self._follows[slots] = False

    def stepped(self, plan: StepPlan, seconds: float) -> None:
        """Measure a step that consists of decode rows."""
        tokens = int(plan.num_new.sum())
        if tokens == plan.num_sampled.sum():
            self._lengths.record(tokens, seconds, len(plan.draft_ids) > 0)

    def rests(self) -> bool:
        """Begin a step; whether the proposer is asked about no sequence in it."""
        self._turn = (self._turn + 1) % _REST_STEPS
        return self._is_free and self._turn != 0 and not self._awake

    def asks(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """[n] which of `slots` the proposer is asked about: none that has long had no drafts."""
        if not self._turn:
            return np.ones(len(slots), np.bool_)
        asked: NDArray[np.bool_] = self._unpaid[slots] < _PATIENCE
        return asked

    def most(self, table: RequestTable, slots: NDArray[np.intp], num_rows: int) -> I32:
        self._lengths.observe(
            table.addresses.token_ids,
            table.max_len,
            table.addresses.num_tokens,
            slots.ctypes.data,
            len(slots),
        )
        if not self._is_free and not self._pays:
            if self._skipped < self._retry_steps:
                self._skipped += 1
                return np.zeros(len(slots), np.int32)
            self._retry_steps = min(2 * self._retry_steps, _MOST_RETRY_STEPS)
            self._follows[:] = False
        self._skipped = 0
        return self._limits.most(table, slots, num_rows)

    def choose(
        self,
        table: RequestTable,
        slots: NDArray[np.intp],
        drafts: Drafts,
        num_rows: int,
        seconds: float,
    ) -> I32:
        """Drafts of each row for the next step, a part of those that are proposed."""
        if not self._is_free:
            self._is_usual = bool(self._follows[slots].all())
            self._follows[slots] = True
        if self._is_usual:
            self._proposing.record(len(slots), seconds, True)
        counts = np.ascontiguousarray(drafts.counts, np.int32)
        ids = np.ascontiguousarray(drafts.ids, np.int32)
        levels = np.ascontiguousarray(drafts.levels, np.int32)
        chosen: I32 = np.empty(len(slots), np.int32)
        taken = self._lengths.choose(
            table.addresses.num_tokens,
            slots.ctypes.data,
            len(slots),
            counts.ctypes.data,
            ids.ctypes.data,
            levels.ctypes.data,
            num_rows,
            self._proposing.known(len(slots)),
            chosen.ctypes.data,
        )
        if taken >= 0:
            self._pays = taken > 0 or not self._is_usual  # what it took is known the next time
        if taken > 0:
            self._retry_steps = _RETRY_STEPS
        if self._is_free:
            self._unpaid[slots] += 1
            if taken > 0:
                self._unpaid[slots[chosen > 0]] = 0
            asleep = self._unpaid[slots] >= _PATIENCE
            self._awake.difference_update(slots[asleep].tolist())
            self._awake.update(slots[~asleep].tolist())
        return chosen
