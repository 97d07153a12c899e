"""The blocks of each running sequence, and the cached prefixes that sequences share.

Works on a `RequestTable`'s block columns, by slot; allocates ids from the pool and records what it
changed, so that a `StepPlan` can carry the changes to the workers. After a predicate (`can_admit`,
`can_grow`) returned True, the operation cannot fail. Knows no queue, scheduling policy or budget.

One sequence, one group:

    0 ........ hit ........ num_computed ........ num_computed + num_new ........ num_tokens
    |  shared, from the index  |     own, cached when full     |      no blocks yet      |

A block is cached as soon as the step that fills it is planned: within a layer all keys and values
of a step are written before any is read, so even a request of the same step may share it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import EMPTY_I32, I32, RequestTable, ragged_positions
from galley.errors import ConfigError
from galley.kv.capacity import most_held
from galley.kv.groups import GroupPolicy, Lookup, make_policies
from galley.kv.hashing import BlockHasher, ExtraKeys, HashChain
from galley.kv.listener import KVListener, StoredBlock
from galley.kv.pool import NULL_BLOCK, BlockPool
from galley.messages import Counters

#: Block columns of a plan: groups, slots, indices, ids.
BlockColumns = tuple[I32, I32, I32, I32]


class Hit(msgspec.Struct):
    """A cached prefix. `blocks`: ids by group; the null block where a group needs none."""

    num_tokens: int = 0
    blocks: list[list[int]] = []


class KVCacheManager:
    """Block tables of all groups. Groups have one block size, a power of two.

    Args:
        table: the table whose block columns this manager maintains.
        pool: allocates ids.
        hasher: hashes full blocks.
        enable_prefix_caching: False: only sequences of one `family` share blocks.
        max_chunk: the most tokens that one sequence computes in a step.

    Attributes:
        groups: the policy of each group.
        can_share: whether all groups can share blocks; if not, there are no prefix hits.
        has_windows: whether `free_out_of_window` has anything to do.
        listeners: notified of changes to the prefix index and of hits.

    Raises:
        ConfigError: a group's kind has no policy, or block sizes differ.
    """

    def __init__(
        self,
        table: RequestTable,
        pool: BlockPool,
        hasher: BlockHasher,
        enable_prefix_caching: bool,
        max_chunk: int,
    ) -> None:
        sizes = {g.block_size for g in table.groups}
        if len(sizes) != 1 or (size := sizes.pop()) & (size - 1):
            raise ConfigError("KV groups need one block size, a power of two.", field="block_size")
        self.table = table
        self._tables = list(table.block_tables)  # quicker than rows of the array
        #: Blocks of one content in different groups have different keys.
        self._suffixes = [
            [_suffix(g, part) for part in range(spec.width)] for g, spec in enumerate(table.groups)
        ]
        self.pool = pool
        self.hasher = hasher
        self.enable_prefix_caching = enable_prefix_caching
        self.block_size = size
        self.counters = Counters()
        self._shift = size.bit_length() - 1
        self.groups: list[GroupPolicy] = make_policies(table.groups, max_chunk)
        self._early = [g for g, group in enumerate(self.groups) if group.frees_early]
        #: Groups whose blocks are cached when they are planned, and after they were computed.
        self._planned, self._computed = (
            [g for g, group in enumerate(self.groups) if group.caches_when_computed == late]
            for late in (False, True)
        )
        self.has_windows = bool(self._early)
        self.can_share = all(group.caches_prefixes for group in self.groups)
        self._num_freed = np.zeros((len(self.groups), table.num_slots), np.int32)
        self._num_cached = np.zeros(table.num_slots, np.int32)
        # The same memory; a memoryview reads and writes single items several times as fast.
        self._num_cached_items = self._num_cached.data
        self._chains: list[HashChain | None] = [None] * table.num_slots
        self._changes: list[BlockColumns] = []
        self.listeners: list[KVListener] = []
        pool.on_removed = self._on_removed

    # --- admission ------------------------------------------------------------------------------

    def new_chain(
        self,
        cache_salt: str | None,
        family: tuple[int, int] | None,
        adapter: int = 0,
        contents: Mapping[int, tuple[bytes]] | None = None,
    ) -> HashChain | None:
        """The hash chain of a new sequence, or None if it shares no blocks.

        Args:
            cache_salt: only sequences of the same salt share.
            family: identifies children of one parent, which share even without prefix caching.
            adapter: number of the adapter's load, 0 = none; others never share with it. Not its
                name: an adapter that is loaded again has other weights.
            contents: keys of single blocks, by index, whose tokens do not say what is in them.
        """
        if not self.can_share:
            return None
        first: tuple[object, ...] = (cache_salt,) if cache_salt else ()
        if not self.enable_prefix_caching:
            if family is None:
                return None
            first += family
        every = (adapter,) if adapter else ()
        at: dict[int, tuple[object, ...]] = {**(contents or {})}
        if first:
            at[0] = first + at.get(0, ())
        if not at and not every:
            return HashChain()
        return HashChain(ExtraKeys(every, at))

    def find_hit(self, chain: HashChain, token_ids: I32) -> Hit:
        """The longest cached prefix that all groups can use, leaving at least one token."""
        n = len(token_ids)
        self.hasher.extend(chain, token_ids, n >> self._shift)
        limit, before = (n - 1) >> self._shift, -1
        blocks: list[list[int]] = [[] for _ in self.groups]
        while limit != before:
            before = limit
            for g, group in enumerate(self.groups):
                blocks[g] = group.longest_hit(self._lookup(g, chain.hashes), limit)
                limit = group.full_blocks(len(blocks[g]))
            if len(self.groups) == 1:
                break
        return Hit(limit << self._shift, blocks)

    def most_held(self, num_tokens: int) -> int:
        """The most blocks that one sequence of that many tokens holds at any time."""
        return most_held(self.groups, num_tokens)

    def can_admit(self, hit: Hit, num_tokens: int) -> bool:
        """Whether the pool has room now for all `num_tokens` of a sequence, given `hit`.

        Checked for the whole sequence even if only a chunk is computed first, so that a prompt
        is not started only to be preempted before its end.
        """
        pool = self.pool
        missing = 0
        free = pool.num_free
        for g, group in enumerate(self.groups):
            held = hit.blocks[g] if hit.blocks else ()
            missing += max(group.most_held(num_tokens) - len(held) + held.count(NULL_BLOCK), 0)
            free -= pool.num_free_among(held)
        return missing <= free

    def admit(self, slot: int, chain: HashChain | None, hit: Hit) -> None:
        """Put the blocks of `hit` into an empty slot's tables; `grow` adds the others.

        A sequence without a chain does not share its blocks.
        """
        self._chains[slot] = chain
        self._num_cached[slot] = hit.num_tokens >> self._shift
        for g, blocks in enumerate(hit.blocks):
            if not blocks:
                continue
            self.pool.share(blocks)
            for listener in self.listeners:
                listener.hit([block for block in blocks if block != NULL_BLOCK])
            n = len(blocks)
            ids = np.array(blocks, np.int32)
            self._tables[g][slot, :n] = ids
            self.table.num_blocks[g, slot] = n
            self._num_freed[g, slot] = blocks.count(NULL_BLOCK)  # all before the live ones
            self._record(g, np.full(n, slot, np.int32), np.arange(n, dtype=np.int32), ids)

    def count_query(self, num_tokens: int, hit: Hit, resumed: bool) -> None:
        """Count one admission that looked up the cache, in tokens."""
        if not self.enable_prefix_caching:
            return
        if resumed:
            self.counters.resumed_queries += num_tokens
            self.counters.resumed_hits += hit.num_tokens
        else:
            self.counters.prefix_queries += num_tokens
            self.counters.prefix_hits += hit.num_tokens

    # --- growth ---------------------------------------------------------------------------------

    def missing_blocks(self, slots: NDArray[np.intp], totals: I32) -> I32:
        """Blocks to allocate so that each slot can hold `totals` tokens: [groups, n]."""
        held = self.table.num_blocks.take(slots, axis=1)
        if len(self.groups) == 1:
            missing: I32 = self.groups[0].needed(totals) - held
            return missing
        return np.stack([group.needed(totals) for group in self.groups]) - held

    def has_uncached(self, slots: NDArray[np.intp], totals: I32) -> NDArray[np.bool_]:
        """Whether the first `totals` tokens of a slot fill a block that is not cached yet: [n]."""
        uncached: NDArray[np.bool_] = (totals >> self._shift) > self._num_cached[slots]
        return uncached

    def can_grow(self, missing: I32) -> bool:
        return int(missing.sum()) <= self.pool.num_free

    def grow(self, slots: NDArray[np.intp], missing: I32) -> None:
        """Allocate what `missing_blocks` returned (none negative)."""
        for g, counts in enumerate(missing):
            growing = counts.nonzero()[0]
            if not len(growing):
                continue
            rows, counts = slots[growing], counts[growing]
            held = self.table.num_blocks[g]
            indices = held[rows]
            held[rows] = indices + counts
            total = sum(counts.tolist())
            if total > len(rows):  # several for one row
                rows, indices = np.repeat(rows, counts), ragged_positions(counts, indices)
            ids = np.array(self.pool.allocate(total), np.int32)
            self._tables[g][rows, indices] = ids
            self._record(g, rows.astype(np.int32), indices.astype(np.int32), ids)

    def grow_one(self, slot: int, total: int, ahead: int) -> None:
        """Allocate what one slot is missing for `ahead` tokens, or for `total` where blocks are
        short. For one slot, numbers are faster than columns.
        """
        held = self.table.num_blocks[:, slot].tolist()
        for tokens in (ahead, total):
            missing = [int(g.needed(tokens)) - n for g, n in zip(self.groups, held, strict=True)]
            if sum(missing) <= self.pool.num_free:
                break
        for g, (n, first) in enumerate(zip(missing, held, strict=True)):
            if n <= 0:
                continue
            ids = np.array(self.pool.allocate(n), np.int32)
            self._tables[g][slot, first : first + n] = ids
            self.table.num_blocks[g, slot] = first + n
            indices = np.arange(first, first + n, dtype=np.int32)
            self._record(g, np.full(n, slot, np.int32), indices, ids)

    def cache_blocks(self, slots: list[int], totals: list[int]) -> None:
        """Cache the full blocks among each slot's first `totals` tokens."""
        num_cached, chains, shift = self._num_cached_items, self._chains, self._shift
        token_ids, extend = self.table.token_ids, self.hasher.extend
        cache_block, listeners = self.pool.cache_block, self.listeners
        groups = [(g, self._tables[g], self._suffixes[g][0]) for g in self._planned]
        for slot, total in zip(slots, totals, strict=True):
            done, full = num_cached[slot], total >> shift
            chain = chains[slot]
            if full <= done or chain is None:
                continue
            num_cached[slot] = full
            extend(chain, token_ids[slot], full)
            hashes = chain.hashes
            for g, table, suffix in groups:
                for i, block in enumerate(table[slot, done:full].tolist(), done):
                    if block == NULL_BLOCK or not cache_block(block, hashes[i] + suffix):
                        continue
                    if listeners:
                        self._on_stored(chain, i, g, block, token_ids[slot])

    def free_out_of_window(self, slots: NDArray[np.intp]) -> None:
        """Free the blocks that have left the window of their group."""
        computed = self.table.num_computed[slots]
        for g in self._early:
            live = self.groups[g].first_live(computed)
            for i in np.flatnonzero(live > self._num_freed[g, slots]).tolist():
                slot, end = int(slots[i]), int(live[i])
                start = int(self._num_freed[g, slot])
                if g in self._computed:
                    self._cache_computed(g, slot, start, end)
                row = self._tables[g][slot, start:end]
                self.pool.free(row[::-1].tolist())
                row[:] = NULL_BLOCK
                self._num_freed[g, slot] = end
                n = end - start
                indices = np.arange(start, end, dtype=np.int32)
                self._record(g, np.full(n, slot, np.int32), indices, np.zeros(n, np.int32))

    # --- the end --------------------------------------------------------------------------------

    def free(self, slot: int, num_valid: int) -> None:
        """Free all of a slot's blocks, last first.

        `num_valid` tokens have been computed. Full blocks among them are cached; blocks that were
        cached beyond them were never computed and are removed from the index.
        """
        if self._changes:  # of the step being built: an empty slot has no blocks
            self._changes = [c for c in self._changes if slot not in c[1]]
        self.cache_blocks([slot], [num_valid])
        valid, cached = num_valid >> self._shift, self._num_cached[slot]
        for g, table in enumerate(self._tables):
            blocks = table[slot, : self.table.num_blocks[g, slot]].tolist()
            if g in self._computed:
                self._cache_computed(g, slot, int(self._num_freed[g, slot]), len(blocks), valid)
            elif valid < cached:
                self.pool.uncache(b for b in blocks[valid:cached] if b != NULL_BLOCK)
            blocks.reverse()
            self.pool.free(blocks)
        self.table.num_blocks[:, slot] = 0
        self._num_freed[:, slot] = 0
        self._num_cached[slot] = 0
        self._chains[slot] = None

    def _cache_computed(
        self, g: int, slot: int, start: int, end: int, valid: int | None = None
    ) -> None:
        """Cache entries [start, end) of a group that caches what has been computed.

        Args:
            valid: blocks of tokens that have been computed; None = all that the entries hold.
        """
        chain, group, table = self._chains[slot], self.groups[g], self._tables[g]
        if chain is None:
            return
        token_ids = self.table.token_ids[slot]
        for entry in range(start, end):
            index, part = group.key_of(entry)
            if valid is not None and index >= valid:
                break
            self.hasher.extend(chain, token_ids, index + 1)
            block = int(table[slot, entry])
            key = chain.hashes[index] + self._suffixes[g][part]
            if self.pool.cache_block(block, key) and self.listeners:
                self._on_stored(chain, index, g, block, token_ids)

    def reset_prefix_cache(self) -> bool:
        """Drop all cached blocks. Returns False, and changes nothing, while blocks are in use."""
        if not self.pool.clear_index():
            return False
        for listener in self.listeners:
            listener.cleared()
        return True

    @property
    def usage(self) -> float:
        """Fraction in use of the blocks that are not reserved, 0 … 1."""
        return self.pool.usage

    def take_changes(self) -> BlockColumns:
        """The block columns recorded since the last call, in the order of the changes."""
        changes, self._changes = self._changes, []
        if not changes:
            return EMPTY_I32, EMPTY_I32, EMPTY_I32, EMPTY_I32
        if len(changes) == 1:
            return changes[0]
        groups, slots, indices, ids = (np.concatenate(c) for c in zip(*changes, strict=True))
        return groups, slots, indices, ids

    def check_integrity(self, live_slots: list[int]) -> None:
        """Verify that references are exactly the tables' entries, and that each group holds what
        its policy needs for the tokens computed; raises AssertionError."""
        self.pool.check_integrity()
        counted = np.zeros(self.pool.num_blocks, np.int64)
        computed = self.table.num_computed
        for g, (group, table) in enumerate(zip(self.groups, self._tables, strict=True)):
            held = self.table.num_blocks[g]
            assert set(np.flatnonzero(held).tolist()) <= set(live_slots), "an empty slot has blocks"
            needed, live = group.needed(computed), group.first_live(computed)
            for slot in live_slots:
                blocks = table[slot, : held[slot]]
                freed = self._num_freed[g, slot]
                assert held[slot] >= needed[slot], "computed tokens have no block"
                assert freed <= live[slot], "a block was freed that is still read"
                assert not blocks[:freed].any(), "a freed block is in the table"
                assert blocks[freed:].all(), "the null block stands for a block that is read"
                np.add.at(counted, blocks, 1)
        counted[NULL_BLOCK] = 0
        assert counted.tolist() == self.pool.refs, "references differ from the tables' entries"

    def _on_stored(
        self, chain: HashChain, index: int, group: int, block: int, token_ids: I32
    ) -> None:
        size = self.block_size
        stored = StoredBlock(
            block=block,
            group=group,
            key=self.pool.keys[block] or b"",
            index=index,
            parent=chain.hashes[index - 1] if index else None,
            token_ids=token_ids[index * size : (index + 1) * size],
            extras=chain.extras,
        )
        for listener in self.listeners:
            listener.stored(stored)

    def _on_removed(self, block: int, key: bytes) -> None:
        for listener in self.listeners:
            listener.removed(block, key)

    def _lookup(self, g: int, hashes: list[bytes]) -> Lookup:
        lookup, suffixes, key_of = self.pool.lookup, self._suffixes[g], self.groups[g].key_of

        def find(entry: int) -> int | None:
            index, part = key_of(entry)
            return lookup(hashes[index] + suffixes[part])

        return find

    def _record(self, g: int, slots: I32, indices: I32, ids: I32) -> None:
        groups = np.empty(len(ids), np.int32)
        groups.fill(g)
        self._changes.append((groups, slots, indices, ids))


def _suffix(group: int, part: int) -> bytes:
    """Suffix of the keys of a group's blocks; `part`: of the blocks that hold one state."""
    if part:
        return bytes((group,)) + part.to_bytes(4, "little")
    return bytes((group,)) if group else b""
