"""`Acceptance`: how often drafts turn out to be right, by sequence and by evidence.

A draft needs not be computed for that. What was proposed is compared with the tokens that come, so
where drafts do not pay, and none are computed, it is still known when they would.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.batch import RequestTable
from galley.spec.proposer import NUM_LEVELS, Drafts

F64 = NDArray[np.float64]

#: The weight of a try after the next one: of a sequence, and of all with the same evidence.
_DECAY, _LEVEL_DECAY = 0.93, 0.99
#: Tries that the evidence of all sequences counts for in the estimate of one.
_PRIOR_TRIES = 3.0
#: Before anything is known: chance of the first draft, and of one behind a right one.
_PRIOR = (0.5, 0.8)


class Acceptance:
    """Chances of drafts. Index 0 is the first draft of a sequence, 1 each later one, given that the
    one before is right.

    Args:
        width: most drafts of a sequence.
    """

    def __init__(self, num_slots: int, width: int) -> None:
        self._hits: F64 = np.zeros((num_slots, 2))
        self._tries: F64 = np.zeros((num_slots, 2))
        self._level_hits: F64 = np.tile(np.array(_PRIOR) * 2, (NUM_LEVELS, 1))
        self._level_tries: F64 = np.full((NUM_LEVELS, 2), 2.0)
        #: what was proposed last: ids, from where on, how many, how many of them are compared
        self._ids = np.zeros((num_slots, width), np.int32)
        self._start = np.zeros(num_slots, np.int32)
        self._counts = np.zeros(num_slots, np.int32)
        self._compared = np.zeros(num_slots, np.int32)
        self._levels = np.zeros(num_slots, np.int32)
        self._ahead = np.arange(width, dtype=np.int32)

    def clear(self, slots: NDArray[np.intp]) -> None:
        """Sequences leave their slots."""
        self._hits[slots] = self._tries[slots] = 0
        self._counts[slots] = 0

    def observe(self, table: RequestTable, slots: NDArray[np.intp]) -> None:
        """Compare what was proposed for `slots` with their tokens now."""
        slots = slots[self._counts[slots] > 0]
        if not len(slots):
            return
        start, counts, compared = self._start[slots], self._counts[slots], self._compared[slots]
        known = np.minimum(table.num_tokens[slots] - start, counts)
        ahead = self._ahead[: int(known.max(initial=0))]
        new = (ahead >= compared[:, None]) & (ahead < known[:, None])
        positions = np.minimum(start[:, None] + ahead, table.max_len - 1)
        right = table.token_ids[slots[:, None], positions] == self._ids[slots, : len(ahead)]
        run = np.logical_and.accumulate(right | ~new, axis=1)
        hits = new & run
        tries = new.copy()
        tries[:, 1:] &= run[:, :-1]
        for part, columns in enumerate((slice(0, 1), slice(1, None))):
            self._count(part, slots, hits[:, columns].sum(1), tries[:, columns].sum(1))
        done = (known >= counts) | ~run.all(1)
        self._counts[slots[done]] = 0
        self._compared[slots] = known

    def _count(self, part: int, slots: NDArray[np.intp], hits: F64, tries: F64) -> None:
        keep = _DECAY**tries
        self._hits[slots, part] = self._hits[slots, part] * keep + hits
        self._tries[slots, part] = self._tries[slots, part] * keep + tries
        levels, total = self._levels[slots], tries.sum()
        if not total:
            return
        by_level = np.bincount(levels, tries, NUM_LEVELS)
        level_keep = _LEVEL_DECAY**by_level
        found = np.bincount(levels, hits, NUM_LEVELS)
        self._level_hits[:, part] = self._level_hits[:, part] * level_keep + found
        self._level_tries[:, part] = self._level_tries[:, part] * level_keep + by_level

    def remember(self, table: RequestTable, slots: NDArray[np.intp], drafts: Drafts) -> None:
        """Keep what is proposed, except where an earlier proposal is not yet refuted."""
        new = np.flatnonzero(self._counts[slots] == 0)
        slots = slots[new]
        self._ids[slots] = drafts.ids[new]
        self._counts[slots] = drafts.counts[new]
        self._levels[slots] = drafts.levels[new]
        self._start[slots] = table.num_tokens[slots]
        self._compared[slots] = 0

    def chances(self, slots: NDArray[np.intp], drafts: Drafts) -> F64:
        """Estimated chance that each draft is accepted, float64 [n, width]; 0 where is none."""
        levels = drafts.levels
        level = self._level_hits[levels] / self._level_tries[levels]
        tries = self._tries[slots] + _PRIOR_TRIES
        each = (self._hits[slots] + _PRIOR_TRIES * level) / tries
        chances: F64 = each[:, :1] * each[:, 1:] ** self._ahead
        chances[self._ahead >= drafts.counts[:, None]] = 0
        return chances
