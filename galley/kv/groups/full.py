"""Full attention: every block is needed until the sequence ends."""

from __future__ import annotations

import numpy as np

from galley.batch import I32, GroupSpec
from galley.kv.groups.policy import Lookup, N


class FullPolicy:
    """A block for every `block_size` tokens (`GroupPolicy`)."""

    caches_prefixes = True
    frees_early = False
    caches_when_computed = False

    def __init__(self, spec: GroupSpec, max_chunk: int) -> None:
        self.block_size = spec.block_size
        self._shift = spec.block_size.bit_length() - 1  # a power of two

    def needed(self, totals: N) -> N:
        needed: N = (totals + (self.block_size - 1)) >> self._shift
        return needed

    def longest_hit(self, lookup: Lookup, limit: int) -> list[int]:
        blocks: list[int] = []
        for i in range(limit):
            block = lookup(i)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def full_blocks(self, entries: int) -> int:
        return entries

    def key_of(self, entry: int) -> tuple[int, int]:
        return entry, 0

    def most_held(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def first_live(self, num_computed: I32) -> I32:
        return np.zeros_like(num_computed)
