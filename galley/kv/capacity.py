"""The capacity of a pool of blocks, in tokens and sequences."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from galley.batch import GroupSpec
from galley.kv.groups import GroupPolicy, make_policies


def most_held(groups: Sequence[GroupPolicy], num_tokens: int) -> int:
    """The most blocks that one sequence of that many tokens holds at any time."""
    return sum(group.most_held(num_tokens) for group in groups)


def longest_sequence(groups: Sequence[GroupPolicy], num_blocks: int, limit: int) -> int:
    """The most tokens, up to `limit`, that one sequence can have in `num_blocks` blocks."""
    lengths = range(1, limit + 1)
    return bisect_right(lengths, num_blocks, key=lambda n: most_held(groups, n))


class Capacity(msgspec.Struct, frozen=True):
    """Sequences and tokens that fit into a pool full of sequences of one length.

    Attributes:
        sequences: how many of them.
        tokens: of context, in all of them together.
    """

    sequences: float
    tokens: int


def capacity(
    specs: Sequence[GroupSpec], num_blocks: int, max_model_len: int, max_chunk: int
) -> Capacity:
    """The capacity of a pool for sequences of the longest length.

    Args:
        num_blocks: blocks that can be allocated.
        max_chunk: most tokens that one sequence computes in a step.
    """
    block_size = specs[0].block_size
    length = -(-max_model_len // block_size) * block_size  # whole blocks
    sequences = num_blocks / most_held(make_policies(specs, max_chunk), length)
    return Capacity(sequences, int(sequences * length))
