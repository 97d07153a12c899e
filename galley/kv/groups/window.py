"""Sliding-window attention: position p reads positions p - window + 1 … p.

0 ......... first_live * block_size ...... num_computed - window + 1 ...... num_computed
|  freed (null block in the table)  |            held                                  |
"""

from __future__ import annotations

import numpy as np

from galley.batch import I32, GroupSpec
from galley.kv.groups.policy import Lookup, N
from galley.kv.pool import NULL_BLOCK


class WindowPolicy:
    """A block for every `block_size` tokens, freed when it has left the window (`GroupPolicy`)."""

    caches_prefixes = True
    frees_early = True
    caches_when_computed = False

    def __init__(self, spec: GroupSpec, max_chunk: int) -> None:
        self.block_size = spec.block_size
        self._shift = spec.block_size.bit_length() - 1  # a power of two
        self.window = spec.window
        self.max_chunk = max_chunk

    def needed(self, totals: N) -> N:
        needed: N = (totals + (self.block_size - 1)) >> self._shift
        return needed

    def longest_hit(self, lookup: Lookup, limit: int) -> list[int]:
        # The next position reads window - 1 tokens back: a run of that many blocks is enough.
        enough = -(-(self.window - 1) // self.block_size)
        run: list[int] = []
        for i in range(limit - 1, -1, -1):
            if len(run) >= enough:
                return [NULL_BLOCK] * (i + 1) + run[::-1]
            block = lookup(i)
            if block is None:
                run = []
            else:
                run.append(block)
        return run[::-1]

    def full_blocks(self, entries: int) -> int:
        return entries

    def key_of(self, entry: int) -> tuple[int, int]:
        return entry, 0

    def most_held(self, num_tokens: int) -> int:
        whole = -(-num_tokens // self.block_size)
        return min(whole, -(-(self.window - 1 + self.max_chunk) // self.block_size) + 1)

    def first_live(self, num_computed: I32) -> I32:
        live: I32 = np.maximum(num_computed - self.window + 1, 0) >> self._shift
        return live
