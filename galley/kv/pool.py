"""The block pool: ids, reference counts, the free list and the prefix index. Ids only, no bytes.

Every id except 0 (the null block, never allocated) is in exactly one state:

    used       refs > 0
    recycled   free, without a key: partial blocks that were freed
    untouched  free, and its memory was never written or has been returned to the system
    cached     free, but still in the index; least recently freed first

`allocate` takes recycled blocks first (the last freed first, so that used memory is reused before
new memory is touched), then untouched ones. It evicts cached blocks only when no other is left.
When memory is short, some untouched blocks are reserved (`set_reserved`) and cannot be allocated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

NULL_BLOCK = 0


class BlockPool:
    """Blocks 1 … num_blocks - 1, reference-counted, with an index from content key to block.

    Args:
        num_blocks: number of ids, the null block included.
        keep_cached: whether a free block stays in the index. False if blocks are shared only
            among requests that are running.

    Attributes:
        on_removed: called with each block that loses its key, and the key. Not by `clear_index`.
        num_reserved: untouched blocks that cannot be allocated for now.
    """

    def __init__(self, num_blocks: int, keep_cached: bool = True) -> None:
        self.num_blocks = num_blocks
        self.keep_cached = keep_cached
        self.on_removed: Callable[[int, bytes], object] | None = None
        self.refs = [0] * num_blocks
        self.keys: list[bytes | None] = [None] * num_blocks
        self.index: dict[bytes, int] = {}
        self.num_reserved = 0
        self._recycled: list[int] = []
        self._untouched = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.num_allocated = self.num_freed = self.num_evicted = 0

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can return, cached ones included."""
        return len(self._recycled) + len(self._untouched) + len(self._cached) - self.num_reserved

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - self.num_reserved - self.num_free

    @property
    def cached(self) -> Collection[int]:
        """The free blocks that are in the index, first to be evicted first."""
        return self._cached.keys()

    @property
    def num_untouched(self) -> int:
        """Free blocks whose memory is not in use, reserved ones included."""
        return len(self._untouched)

    @property
    def usage(self) -> float:
        """Fraction in use of the blocks that are not reserved, 0 … 1."""
        return self.num_used / max(self.num_blocks - 1 - self.num_reserved, 1)

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` (cached) are free, so that sharing them lowers `num_free`."""
        refs = self.refs
        return sum(1 for b in blocks if b != NULL_BLOCK and not refs[b])

    def allocate(self, n: int) -> list[int]:
        """Allocate n blocks, each with one reference. n must not exceed `num_free`."""
        assert n <= self.num_free
        recycled, refs = self._recycled, self.refs
        cut = max(len(recycled) - n, 0)
        blocks = recycled[cut:]
        blocks.reverse()
        del recycled[cut:]
        if len(blocks) < n:
            untouched = min(n - len(blocks), len(self._untouched) - self.num_reserved)
            blocks += [self._untouched.pop() for _ in range(untouched)]
        while len(blocks) < n:
            block, _ = self._cached.popitem(last=False)
            self._unkey(block)
            self.num_evicted += 1
            blocks.append(block)
        for b in blocks:
            refs[b] = 1
        self.num_allocated += n
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block; free cached ones leave the free list."""
        refs = self.refs
        for b in blocks:
            if b == NULL_BLOCK:
                continue
            if not refs[b]:
                del self._cached[b]
                self.num_allocated += 1
            refs[b] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each block; blocks freed first are evicted first."""
        refs, keys = self.refs, self.keys
        for b in blocks:
            if b == NULL_BLOCK:
                continue
            left = refs[b] = refs[b] - 1
            if left:
                assert left > 0, f"block {b} freed more often than allocated"
                continue
            self.num_freed += 1
            if keys[b] is None:
                self._recycled.append(b)
            elif self.keep_cached:
                self._cached[b] = None
            else:
                self._unkey(b)
                self._recycled.append(b)

    def lookup(self, key: bytes) -> int | None:
        """The block cached under `key`, used or free, or None."""
        return self.index.get(key)

    def cache_block(self, block: int, key: bytes) -> bool:
        """Enter a used block in the index. The first block of a key keeps it.

        Returns whether this block was entered now.
        """
        assert self.refs[block] > 0
        if self.keys[block] is not None or self.index.setdefault(key, block) != block:
            return False
        self.keys[block] = key
        return True

    def uncache(self, blocks: Iterable[int]) -> None:
        """Remove used blocks from the index whose content is not what their key says."""
        for b in blocks:
            if self.keys[b] is not None:
                assert self.refs[b] > 0
                self._unkey(b)

    def restore(self, contents: Mapping[int, bytes]) -> set[int]:
        """Cache blocks whose contents are older than this pool (block -> key).

        The pool must not have allocated yet. Returns the blocks that are cached now: one per key,
        and none without `keep_cached`.
        """
        assert not self.num_allocated, "the pool has allocated blocks already"
        for block, key in contents.items() if self.keep_cached else ():
            if NULL_BLOCK < block < self.num_blocks and key not in self.index:
                self.index[key] = block
                self.keys[block] = key
                self._cached[block] = None
        self._untouched = [b for b in self._untouched if b not in self._cached]
        return set(self._cached)

    def set_reserved(self, n: int) -> list[int]:
        """Set the number of reserved blocks, at most `num_free + num_reserved`.

        Returns the blocks that this made untouched, whose memory may be returned to the system:
        recycled ones first, then cached ones in the order of eviction.
        """
        assert n <= self.num_free + self.num_reserved
        emptied: list[int] = []
        while len(self._untouched) + len(emptied) < n:
            if self._recycled:
                emptied.append(self._recycled.pop())
                continue
            block, _ = self._cached.popitem(last=False)
            self._unkey(block)
            self.num_evicted += 1
            emptied.append(block)
        self._untouched += emptied
        self.num_reserved = n
        return emptied

    def clear_index(self) -> bool:
        """Drop all keys. Returns False, and changes nothing, while blocks are in use."""
        if self.num_used:
            return False
        self._recycled = sorted((*self._recycled, *self._cached), reverse=True)
        self._cached.clear()
        self.index.clear()
        self.keys = [None] * self.num_blocks
        return True

    def _unkey(self, block: int) -> None:
        key = self.keys[block]
        assert key is not None
        del self.index[key]
        self.keys[block] = None
        if self.on_removed is not None:
            self.on_removed(block, key)

    def check_integrity(self) -> None:
        """Verify that every block is in exactly one state; raises AssertionError. O(blocks)."""
        keyless, cached = {*self._recycled, *self._untouched}, set(self._cached)
        assert len(keyless) == len(self._recycled) + len(self._untouched), "a block is free twice"
        assert 0 <= self.num_reserved <= len(self._untouched), "more reserved than untouched"
        assert not keyless & cached, "a block is both cached and not"
        assert NULL_BLOCK not in keyless | cached, "the null block is free"
        assert self.refs[NULL_BLOCK] == 0, "the null block was allocated"
        for b in range(1, self.num_blocks):
            free = b in keyless or b in cached
            assert free == (self.refs[b] == 0), f"block {b}: {self.refs[b]} refs, free={free}"
            key = self.keys[b]
            assert key is None or self.index.get(key) == b, f"block {b} is not under its key"
            assert b not in cached or key is not None, f"cached block {b} has no key"
            assert b not in keyless or key is None, (
                f"block {b} is free and not cached, but has a key"
            )
        assert len(self.index) == sum(k is not None for k in self.keys), (
            "the index has keys that no block has"
        )
