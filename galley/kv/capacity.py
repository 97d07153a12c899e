"""How many tokens and sequences a pool of blocks has room for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from galley.kv.groups import GroupPolicy


def most_held(groups: Sequence[GroupPolicy], num_tokens: int) -> int:
    """The most blocks that one sequence of that many tokens holds at any time."""
    return sum(group.most_held(num_tokens) for group in groups)


def longest_sequence(groups: Sequence[GroupPolicy], num_blocks: int, limit: int) -> int:
    """The most tokens, up to `limit`, that one sequence can have in `num_blocks` blocks."""
    lengths = range(1, limit + 1)
    return bisect_right(lengths, num_blocks, key=lambda n: most_held(groups, n))


def tokens_that_fit(groups: Sequence[GroupPolicy], num_blocks: int, length: int) -> int:
    """Tokens of context in a pool that is full of sequences of `length` tokens."""
    return num_blocks * length // most_held(groups, length)
