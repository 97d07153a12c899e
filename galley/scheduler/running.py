"""The running sequences: slots, their order of admission, and the columns that end them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32
from galley.scheduler.end_rules import LengthLimit, StopTokens
from galley.scheduler.sequence import NO_SLOT, Sequence

#: Stop ids that are compared as columns; a sequence with more is `watched`.
STOP_COLUMNS = 8
NO_TOKEN = -1


class Running:
    """At most `num_slots` sequences, each in a slot.

    Attributes:
        order: [n] intp, slots in order of admission. Replaced, never written to.
        sequences: by slot.
        limits: [slots] number of tokens at which the sequence ends.
        num_drafts: [slots] draft tokens behind the known ones in the table, for the next step.
        has_drafts, had_drafts: whether a slot has drafts now, and whether one ever had.
        num_unsent: [slots] last tokens of a slot that the workers do not know; `has_unsent` whether
            there are any.
        stop_ids: [slots, STOP_COLUMNS] end-of-sequence and stop ids, NO_TOKEN where unused.
        watched: slots with end rules that no column stands for; they are checked at each token.
        pooling: slots that pool: they sample nothing.
        scoring: slots whose prompt logprobs are not complete.
        clients: [slots] client index.
        freed: slots emptied since the last plan.
    """

    def __init__(self, num_slots: int) -> None:
        self.order: NDArray[np.intp] = np.empty(0, np.intp)
        self.sequences: list[Sequence | None] = [None] * num_slots
        self.limits: I32 = np.zeros(num_slots, np.int32)
        self.num_drafts: I32 = np.zeros(num_slots, np.int32)
        self.has_drafts = self.had_drafts = False
        self.num_unsent: I32 = np.zeros(num_slots, np.int32)
        self.has_unsent = False
        self.stop_ids: I32 = np.full((num_slots, STOP_COLUMNS), NO_TOKEN, np.int32)
        self.watched: set[int] = set()
        self.pooling: set[int] = set()
        self.scoring: set[int] = set()
        self.clients: I32 = np.zeros(num_slots, np.int32)
        self.freed: list[int] = []
        self._empty = list(range(num_slots - 1, -1, -1))

    @property
    def has_room(self) -> bool:
        return bool(self._empty)

    @property
    def num_empty(self) -> int:
        return len(self._empty)

    def __len__(self) -> int:
        return len(self.order)

    def at(self, slot: int) -> Sequence:
        seq = self.sequences[slot]
        assert seq is not None, f"slot {slot} is empty"
        return seq

    def add(self, seq: Sequence) -> int:
        """Put `seq` into an empty slot, as the most recently admitted."""
        slot = self._empty.pop()
        seq.slot = slot
        self.sequences[slot] = seq
        self.order = np.append(self.order, slot)
        self.limits[slot] = seq.limit
        self.clients[slot] = seq.request.client_index
        if seq.pools:
            self.pooling.add(slot)
        self.stop_ids[slot] = NO_TOKEN
        for rule in seq.end_rules:
            if isinstance(rule, StopTokens) and len(rule.all_ids) <= STOP_COLUMNS:
                self.stop_ids[slot, : len(rule.all_ids)] = list(rule.all_ids)
            elif not isinstance(rule, LengthLimit):
                self.watched.add(slot)
        if seq.wants_prompt_logprobs:
            self.scoring.add(slot)
        return slot

    def remove(self, seq: Sequence) -> None:
        slot = seq.slot
        seq.slot = NO_SLOT
        self.sequences[slot] = None
        self.num_drafts[slot] = self.num_unsent[slot] = 0
        self.order = self.order[self.order != slot]
        self.watched.discard(slot)
        self.scoring.discard(slot)
        self.pooling.discard(slot)
        self.freed.append(slot)
        self._empty.append(slot)

    def set_drafts(self, slots: NDArray[np.intp], counts: I32) -> None:
        """Replace the drafts of `slots`."""
        self.num_drafts[slots] = counts
        self.has_drafts = bool(self.num_drafts.any())
        self.had_drafts |= self.has_drafts

    def drop_drafts(self) -> None:
        """Forget all drafts: their rows go on with one token each."""
        self.num_drafts[:] = 0
        self.has_drafts = False

    def set_unsent(self, slots: NDArray[np.intp], counts: I32) -> None:
        """The last counts[i] tokens of slots[i] are for the next plan to bring to the workers."""
        self.num_unsent[slots] = counts
        self.has_unsent = True

    def take_unsent(self) -> tuple[NDArray[np.intp], I32]:
        """Slots with such tokens and their counts; after that there are none."""
        slots = np.flatnonzero(self.num_unsent)
        counts = self.num_unsent[slots]
        self.num_unsent[slots] = 0
        self.has_unsent = False
        return slots, counts

    def take_freed(self) -> I32:
        freed = np.array(self.freed, np.int32)
        self.freed.clear()
        return freed
