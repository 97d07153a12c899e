"""The interface between the KV cache manager and a group of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from galley.batch import I32, GroupSpec

#: Entry of the block table -> id of the cached block with that content, or None.
Lookup = Callable[[int], int | None]
#: One number, or a column.
N = TypeVar("N", int, I32)


class GroupPolicy(Protocol):
    """How one group uses blocks. All counts are in blocks unless said otherwise.

    Attributes:
        caches_prefixes: whether full blocks can be shared. If one group of a model cannot,
            the model has no prefix hits at all.
        frees_early: whether `first_live` can be above 0.
        caches_when_computed: whether a block can be shared only after the step that fills it;
            otherwise rows of the same step may share it. Then `frees_early` is true as well.
    """

    caches_prefixes: bool
    frees_early: bool
    caches_when_computed: bool

    def __init__(self, spec: GroupSpec, max_chunk: int) -> None: ...

    def needed(self, totals: N) -> N:
        """Entries of the block table for a sequence of `totals` tokens, or [n] of several; freed
        ones included."""

    def longest_hit(self, lookup: Lookup, limit: int) -> list[int]:
        """The first entries of the block table with the longest usable cached prefix of at most
        `limit` blocks of tokens.

        Entries that the group does not read are the null block.
        """

    def full_blocks(self, entries: int) -> int:
        """Blocks of tokens that so many first entries of the block table hold."""

    def key_of(self, entry: int) -> tuple[int, int]:
        """The key of an entry of the block table: a block of tokens, whose hash covers all
        tokens up to its end, and the number of the entry among those with this hash."""

    def most_held(self, num_tokens: int) -> int:
        """The most blocks that a sequence of that many tokens holds at any time."""

    def first_live(self, num_computed: I32) -> I32:
        """[n] index of the first entry that positions >= num_computed [n] still read."""
