"""How a KV group uses blocks: what a prefix hit needs, how many it may hold, what it lets go.

One small class per kind of `GroupSpec`; the pool and the scheduler know none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from galley.batch import I32, GroupSpec
from galley.errors import ConfigError
from galley.kv.pool import NULL_BLOCK

Find = Callable[[int], int | None]


class Group(Protocol):
    """A group's answers; all counts are in blocks unless said otherwise."""

    def longest_hit(self, find: Find, limit: int) -> list[int]:
        """Block ids of the longest usable prefix of at most `limit` blocks.

        `find(i)` is the cached block of the sequence's i-th block; holes are the null block.
        """

    def most_held(self, num_tokens: int) -> int:
        """The most blocks that a sequence of that many tokens holds at any time."""

    def first_live(self, num_computed: I32) -> I32:
        """[n] index of the first block that positions >= num_computed [n] still read."""


class FullGroup:
    """Full attention: every block is needed until the sequence ends."""

    def __init__(self, spec: GroupSpec) -> None:
        self.block_size = spec.block_size

    def longest_hit(self, find: Find, limit: int) -> list[int]:
        blocks: list[int] = []
        for i in range(limit):
            block = find(i)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def most_held(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def first_live(self, num_computed: I32) -> I32:
        return np.zeros_like(num_computed)


class WindowGroup:
    """Sliding window: position p reads positions p - window + 1 … p.

    0 ......... first_live * block_size ...... num_computed - window + 1 ...... num_computed
    |  let go (null block in the table)  |           held                                  |
    """

    def __init__(self, spec: GroupSpec, max_chunk: int) -> None:
        self.block_size = spec.block_size
        self.window = spec.window
        self.max_chunk = max_chunk

    def longest_hit(self, find: Find, limit: int) -> list[int]:
        # The next position reads window - 1 tokens back: a run of that many blocks is enough.
        enough = -(-(self.window - 1) // self.block_size)
        run: list[int] = []
        for i in range(limit - 1, -1, -1):
            block = find(i)
            if block is None:
                run = []
                continue
            run.append(block)
            if len(run) >= enough or i == 0:
                return [NULL_BLOCK] * i + run[::-1]
        return []

    def most_held(self, num_tokens: int) -> int:
        whole = -(-num_tokens // self.block_size)
        return min(whole, -(-(self.window - 1 + self.max_chunk) // self.block_size) + 1)

    def first_live(self, num_computed: I32) -> I32:
        live: I32 = np.maximum(num_computed - self.window + 1, 0) // self.block_size
        return live


def make_group(spec: GroupSpec, max_chunk: int) -> Group:
    """The policy of a spec; `max_chunk` is the most tokens one sequence computes in a step.

    Raises:
        ConfigError: no policy for this kind of group yet.
    """
    if spec.kind == "full":
        return FullGroup(spec)
    if spec.kind == "window":
        return WindowGroup(spec, max_chunk)
    raise ConfigError(f"KV groups of kind {spec.kind!r} are not supported yet.")
