"""The block pool: ids, reference counts, the free list and the prefix index. Ids only, no bytes.

Every id but 0 (the null block, never handed out) is in exactly one state:

    used      refs > 0
    plain     free without content worth finding: freed partial blocks
    fresh     free, and their memory was never touched, or has been given back
    cached    free but still findable by key, least recently freed first

Blocks are drawn in this order: plain from the end of the stack, so that what was freed is used
again before memory that was never touched; fresh; cached ones are evicted only when no other is
left. Where memory is short, some fresh blocks are withheld (`withhold`): nobody gets them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Protocol

NULL_BLOCK = 0


class BlockListener(Protocol):
    """Told what becomes findable, what ceases to be, and what is found (KV events, metrics)."""

    def stored(self, block: int, key: bytes) -> None: ...
    def removed(self, block: int, key: bytes) -> None: ...
    def shared(self, blocks: list[int]) -> None: ...
    def cleared(self) -> None: ...


class BlockPool:
    """Blocks 1 … num_blocks - 1, reference-counted, with an index from content key to block.

    Args:
        num_blocks: number of ids, the null block included.
        keep_cached: whether a free block stays findable. False where blocks are shared only
            among living requests.
        listener: told of changes of the index; the first of `listeners`.

    Attributes:
        withheld: blocks that nobody gets for now; as many are fresh.
    """

    def __init__(
        self, num_blocks: int, keep_cached: bool = True, listener: BlockListener | None = None
    ) -> None:
        self.num_blocks = num_blocks
        self.keep_cached = keep_cached
        self.listeners = [] if listener is None else [listener]
        self.refs = [0] * num_blocks
        self.keys: list[bytes | None] = [None] * num_blocks
        self.index: dict[bytes, int] = {}
        self.withheld = 0
        self._plain: list[int] = []
        self._fresh = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.num_taken = self.num_released = self.num_evicted = 0

    @property
    def num_free(self) -> int:
        """Blocks that `take` can give, cached ones included."""
        return len(self._plain) + len(self._fresh) + len(self._cached) - self.withheld

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - self.withheld - self.num_free

    @property
    def num_fresh(self) -> int:
        """Free blocks whose memory is not taken, withheld ones included."""
        return len(self._fresh)

    @property
    def usage(self) -> float:
        """Share in use of the blocks that may be had, 0 … 1."""
        return self.num_used / max(self.num_blocks - 1 - self.withheld, 1)

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` (found by key) are free, so that sharing them uses up free ones."""
        refs = self.refs
        return sum(1 for b in blocks if b != NULL_BLOCK and not refs[b])

    def take(self, n: int) -> list[int]:
        """Draw n free blocks, each with one reference. n must not exceed `num_free`."""
        assert n <= self.num_free
        plain, refs = self._plain, self.refs
        cut = max(len(plain) - n, 0)
        blocks = plain[cut:]
        blocks.reverse()
        del plain[cut:]
        if len(blocks) < n:
            untouched = min(n - len(blocks), len(self._fresh) - self.withheld)
            blocks += [self._fresh.pop() for _ in range(untouched)]
        while len(blocks) < n:
            block, _ = self._cached.popitem(last=False)
            self._unkey(block)
            self.num_evicted += 1
            blocks.append(block)
        for b in blocks:
            refs[b] = 1
        self.num_taken += n
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference on each block; free cached ones leave the free list."""
        refs = self.refs
        if self.listeners:
            blocks = list(blocks)
            for listener in self.listeners:
                listener.shared(blocks)
        for b in blocks:
            if b == NULL_BLOCK:
                continue
            if not refs[b]:
                del self._cached[b]
                self.num_taken += 1
            refs[b] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one reference on each; those released first are evicted first."""
        refs, keys = self.refs, self.keys
        for b in blocks:
            if b == NULL_BLOCK:
                continue
            left = refs[b] = refs[b] - 1
            if left:
                assert left > 0, f"block {b} released more often than taken"
                continue
            self.num_released += 1
            if keys[b] is None:
                self._plain.append(b)
            elif self.keep_cached:
                self._cached[b] = None
            else:
                self._unkey(b)
                self._plain.append(b)

    def find(self, key: bytes) -> int | None:
        """The block that holds this content, used or free."""
        return self.index.get(key)

    def enter(self, block: int, key: bytes) -> None:
        """Make a used block findable. The first block of a content keeps the key."""
        assert self.refs[block] > 0
        if self.keys[block] is None and self.index.setdefault(key, block) == block:
            self.keys[block] = key
            for listener in self.listeners:
                listener.stored(block, key)

    def forget(self, blocks: Iterable[int]) -> None:
        """Used blocks whose content turned out not to be what their key says."""
        for b in blocks:
            if self.keys[b] is not None:
                assert self.refs[b] > 0
                self._unkey(b)

    def restore(self, contents: Mapping[int, bytes]) -> set[int]:
        """Make blocks findable whose contents are older than this pool, which nobody has used yet.

        Returns those that are: none without `keep_cached`, and one per key.
        """
        assert not self.num_taken, "the pool is not fresh"
        for block, key in contents.items() if self.keep_cached else ():
            if NULL_BLOCK < block < self.num_blocks and key not in self.index:
                self.index[key] = block
                self.keys[block] = key
                self._cached[block] = None
        self._fresh = [b for b in self._fresh if b not in self._cached]
        return set(self._cached)

    def withhold(self, n: int) -> list[int]:
        """Keep n blocks from everybody, instead of as many as until now; n must not exceed the
        free and the withheld together.

        Returns the blocks that have become fresh by that, whose memory may be given back: plain
        ones first, then cached ones in the order of eviction.
        """
        assert n <= self.num_free + self.withheld
        given_back: list[int] = []
        while len(self._fresh) + len(given_back) < n:
            if self._plain:
                given_back.append(self._plain.pop())
                continue
            block, _ = self._cached.popitem(last=False)
            self._unkey(block)
            self.num_evicted += 1
            given_back.append(block)
        self._fresh += given_back
        self.withheld = n
        return given_back

    def clear_index(self) -> bool:
        """Forget all contents. False, and nothing changes, while blocks are in use."""
        if self.num_used:
            return False
        self._plain = sorted((*self._plain, *self._cached), reverse=True)
        self._cached.clear()
        self.index.clear()
        self.keys = [None] * self.num_blocks
        for listener in self.listeners:
            listener.cleared()
        return True

    def _unkey(self, block: int) -> None:
        key = self.keys[block]
        assert key is not None
        del self.index[key]
        self.keys[block] = None
        for listener in self.listeners:
            listener.removed(block, key)

    def check_integrity(self) -> None:
        """Prove that every block is in exactly one state; AssertionError otherwise. O(blocks)."""
        plain, cached = {*self._plain, *self._fresh}, set(self._cached)
        assert len(plain) == len(self._plain) + len(self._fresh), "a block is free twice"
        assert 0 <= self.withheld <= len(self._fresh), "blocks are withheld that are not fresh"
        assert not plain & cached, "a block is both plain and cached"
        assert NULL_BLOCK not in plain | cached, "the null block is free"
        assert self.refs[NULL_BLOCK] == 0, "the null block was handed out"
        for b in range(1, self.num_blocks):
            free = b in plain or b in cached
            assert free == (self.refs[b] == 0), f"block {b}: {self.refs[b]} refs, free={free}"
            key = self.keys[b]
            assert key is None or self.index.get(key) == b, f"block {b} is not under its key"
            assert b not in cached or key is not None, f"cached block {b} has no key"
            assert b not in plain or key is None, f"plain block {b} has a key"
        assert len(self.index) == sum(k is not None for k in self.keys), "the index has strays"
