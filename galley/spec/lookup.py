"""Drafts that are looked up in text: the wrapper of the native index (csrc/draft_index.h)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, NewRow, RequestTable, StepPlan
from galley.kernels import _native
from galley.spec.proposer import NUM_LEVELS, Drafts


class Lookup:
    """Proposes what followed the last tokens where they occurred before.

    Args:
        num_slots: of the table.
        width: most drafts of a sequence.
        index: the native index.

    Attributes:
        scopes: [slots] of what other sequences' texts a slot may see.
    """

    is_free = True
    memory = 0

    def __init__(self, num_slots: int, width: int, index: _native.DraftIndex) -> None:
        self.width = width
        self.index = index
        self.scopes: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self._counts: I32 = np.zeros(num_slots, np.int32)
        self._matches: I32 = np.zeros(num_slots, np.int32)
        self._ids: I32 = np.zeros((num_slots, width), np.int32)
        self._scopes_at = self.scopes.ctypes.data
        self._results = [a.ctypes.data for a in (self._counts, self._matches, self._ids)]

    def enter(self, row: NewRow) -> None:
        pass

    def leave(self, table: RequestTable, slots: NDArray[np.intp]) -> None:
        for slot in slots.tolist():
            self.index.clear(slot)

    def stepped(self, plan: StepPlan) -> None:
        pass

    def propose(self, table: RequestTable, slots: NDArray[np.intp], most: I32) -> Drafts:
        n, most = len(slots), np.ascontiguousarray(most, np.int32)
        self.index.propose(
            table.addresses.token_ids,
            table.max_len,
            table.addresses.num_tokens,
            table.addresses.handles,
            self._scopes_at,
            slots.ctypes.data,
            n,
            most.ctypes.data,
            self.width,
            *self._results,
        )
        levels = np.minimum(self._matches[:n], NUM_LEVELS - 1)
        return Drafts(self._counts[:n], self._ids[:n], levels)
