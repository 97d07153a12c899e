"""The interface between the KV cache manager and a group of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from galley.batch import I32, GroupSpec

#: Index of a block in the sequence -> id of the cached block with that content, or None.
Lookup = Callable[[int], int | None]


class GroupPolicy(Protocol):
    """How one group uses blocks. All counts are in blocks unless said otherwise.

    Attributes:
        caches_prefixes: whether full blocks can be shared. If one group of a model cannot,
            the model has no prefix hits at all.
        frees_early: whether `first_live` can be above 0.
        can_rewind: whether the last computed tokens can be discarded, as rejected drafts are.
    """

    caches_prefixes: bool
    frees_early: bool
    can_rewind: bool

    def __init__(self, spec: GroupSpec, max_chunk: int) -> None: ...

    def needed(self, totals: I32) -> I32:
        """[n] entries of the block table for sequences of `totals` [n] tokens, freed ones
        included."""

    def longest_hit(self, lookup: Lookup, limit: int) -> list[int]:
        """Ids of the longest usable cached prefix of at most `limit` blocks.

        Entries that the group does not read are the null block.
        """

    def most_held(self, num_tokens: int) -> int:
        """The most blocks that a sequence of that many tokens holds at any time."""

    def first_live(self, num_computed: I32) -> I32:
        """[n] index of the first entry that positions >= num_computed [n] still read."""
