"""Recurrent state: what a layer keeps of all tokens so far, of one size whatever their number.

A state takes `width` blocks. The first entries of the block table hold the state after `interval`
tokens, the next ones that after twice as many, and so on; the last hold the newest state, which
each step updates in place. When it has reached its interval, the next step writes to new blocks:

    0 ........ interval ........ 2 interval ........ num_computed
    |   freed     |    freed          |    newest state      |
        cached: found by the hash of the tokens up to the end of the interval

So a prefix is found at multiples of the interval. An entry is cached when a later token has been
computed: the rows of a step read states while others write theirs, so no row may share what the
step computes. With interval 0 there is one entry and no prefix hits.

Rejected drafts are taken back from the newest state by the op that computes it (csrc/state.h). A
preempted sequence goes on from the last cached state.
"""

from __future__ import annotations

import numpy as np

from galley.batch import I32, GroupSpec
from galley.kv.groups.policy import Lookup, N
from galley.kv.pool import NULL_BLOCK


class StatePolicy:
    """`width` blocks for the newest state, and for each that a step passes (`GroupPolicy`)."""

    caches_when_computed = True
    frees_early = True

    def __init__(self, spec: GroupSpec, max_chunk: int) -> None:
        self.interval = spec.interval
        self.width = spec.width
        self.max_chunk = max_chunk
        self.caches_prefixes = spec.interval > 0
        self._blocks = spec.interval // spec.block_size

    def needed(self, totals: N) -> N:
        if not self.interval:
            return np.minimum(totals, 1) * np.int32(self.width)
        needed: N = (totals + (self.interval - 1)) // self.interval * self.width
        return needed

    def longest_hit(self, lookup: Lookup, limit: int) -> list[int]:
        if not self.interval:
            return []
        for state in range(limit // self._blocks - 1, -1, -1):
            start = state * self.width
            blocks = [lookup(entry) for entry in range(start, start + self.width)]
            found = [block for block in blocks if block is not None]
            if len(found) == self.width:
                return [NULL_BLOCK] * start + found
        return []

    def full_blocks(self, entries: int) -> int:
        return entries // self.width * self._blocks

    def key_of(self, entry: int) -> tuple[int, int]:
        state, part = divmod(entry, self.width)
        return (state + 1) * self._blocks - 1, part

    def most_held(self, num_tokens: int) -> int:
        if not self.interval:
            return min(num_tokens, 1) * self.width
        whole = -(-num_tokens // self.interval)
        return min(whole, -(-self.max_chunk // self.interval) + 1) * self.width

    def first_live(self, num_computed: I32) -> I32:
        if not self.interval:
            return np.zeros_like(num_computed)
        live: I32 = np.maximum(num_computed - 1, 0) // self.interval * self.width
        return live
