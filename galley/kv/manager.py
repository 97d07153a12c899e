"""Which blocks each running sequence holds, and which it may share.

Works on a `RequestTable`'s block columns, by slot; draws ids from the pool and records what it
changed, so that a `StepPlan` can carry it to the workers. Predicates (`can_admit`, `can_grow`)
change nothing; the act that follows one cannot fail. Knows no queue, policy or budget.

One sequence, one group:

    0 ........ hit ........ num_computed ........ num_computed + num_new ........ num_tokens
    |  shared, from the index  |  held, entered in the index when full  |  no blocks yet  |

A block is entered in the index as soon as the step that fills it is planned: within a layer all
keys and values of a step are written before any is read, so even a request of the same step may
share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from galley.batch import EMPTY_I32, I32, RequestTable
from galley.errors import ConfigError
from galley.kv.groups import Find, make_group
from galley.kv.hashing import BlockHasher, ExtraKeys, HashChain
from galley.kv.pool import NULL_BLOCK, BlockPool
from galley.messages import Counters

#: Block columns of a plan: groups, slots, indices, ids.
BlockColumns = tuple[I32, I32, I32, I32]


@dataclass(slots=True)
class Hit:
    """A prefix found in the cache: `blocks` per group (holes are the null block)."""

    num_tokens: int = 0
    blocks: list[list[int]] = field(default_factory=list)


class KVCacheManager:
    """Block tables over groups. Groups have equal block sizes (a power of two) for now.

    Args:
        table: whose block columns are kept here.
        pool: gives and takes ids.
        hasher: hashes full blocks.
        enable_prefix_caching: False: only children of one parent share (their prompt).
        max_chunk: the most tokens that one sequence computes in a step.

    Raises:
        ConfigError: a group's kind is not supported, or block sizes differ.
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
        self.pool = pool
        self.hasher = hasher
        self.enable_prefix_caching = enable_prefix_caching
        self.block_size = size
        self.counters = Counters()
        self._shift = size.bit_length() - 1
        self._groups = [make_group(spec, max_chunk) for spec in table.groups]
        self._windows = [g for g, spec in enumerate(table.groups) if spec.kind == "window"]
        self.has_windows = bool(self._windows)
        self._let_go = np.zeros((len(self._groups), table.num_slots), np.int32)
        self._indexed = np.zeros(table.num_slots, np.int32)
        self._chains: list[HashChain | None] = [None] * table.num_slots
        self._changes: list[BlockColumns] = []

    # --- admission ------------------------------------------------------------------------------

    def new_chain(
        self, cache_salt: str | None, family: tuple[int, int] | None, adapter: int = 0
    ) -> HashChain | None:
        """The hash chain of a new sequence, or None if it shares with nobody.

        Args:
            cache_salt: only sequences of the same salt share.
            family: identifies children of one parent, which share even without prefix caching.
            adapter: number of the adapter's load, 0 = none; others never share with it. Not its
                name: an adapter that is loaded again has other weights.
        """
        first: tuple[object, ...] = (cache_salt,) if cache_salt else ()
        if not self.enable_prefix_caching:
            if family is None:
                return None
            first += family
        every = (adapter,) if adapter else ()
        if not first and not every:
            return HashChain()
        return HashChain(ExtraKeys(every, {0: first} if first else {}))

    def find_hit(self, chain: HashChain, token_ids: I32) -> Hit:
        """The longest cached prefix that all groups can use, leaving at least one token."""
        n = len(token_ids)
        self.hasher.extend(chain, token_ids, n >> self._shift)
        limit, before = (n - 1) >> self._shift, -1
        blocks: list[list[int]] = [[] for _ in self._groups]
        while limit != before:
            before = limit
            for g, group in enumerate(self._groups):
                blocks[g] = group.longest_hit(self._finder(g, chain.hashes), limit)
                limit = len(blocks[g])
            if len(self._groups) == 1:
                break
        return Hit(limit << self._shift, blocks)

    def most_held(self, num_tokens: int) -> int:
        """The most blocks that one sequence of that many tokens holds at any time."""
        return sum(group.most_held(num_tokens) for group in self._groups)

    def can_admit(self, hit: Hit, num_tokens: int) -> bool:
        """Whether a sequence could get all its `num_tokens` into the pool now, beside `hit`.

        Asked for the whole sequence even if only a chunk is computed at first, so that a prompt
        is not begun only to be preempted before its end.
        """
        pool = self.pool
        missing = 0
        free = pool.num_free
        for g, group in enumerate(self._groups):
            held = hit.blocks[g] if hit.blocks else ()
            missing += max(group.most_held(num_tokens) - len(held) + held.count(NULL_BLOCK), 0)
            free -= pool.num_free_among(held)
        return missing <= free

    def admit(self, slot: int, chain: HashChain | None, hit: Hit) -> None:
        """Give `slot` (empty) the blocks of `hit`; the rest comes by `grow`.

        A sequence without a chain shares its blocks with nobody.
        """
        self._chains[slot] = chain
        self._indexed[slot] = hit.num_tokens >> self._shift
        for g, blocks in enumerate(hit.blocks):
            if not blocks:
                continue
            self.pool.share(blocks)
            n = len(blocks)
            ids = np.array(blocks, np.int32)
            self.table.block_tables[g][slot, :n] = ids
            self.table.num_blocks[g, slot] = n
            self._let_go[g, slot] = blocks.count(NULL_BLOCK)
            self._record(g, np.full(n, slot, np.int32), np.arange(n, dtype=np.int32), ids)

    def count_query(self, num_tokens: int, hit: Hit, resumed: bool) -> None:
        """Count an admission that read the cache, once, in tokens."""
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
        """Blocks that each slot lacks to hold `totals` tokens: [groups, n]."""
        want = (totals + (self.block_size - 1)) >> self._shift
        missing: I32 = want - self.table.num_blocks.take(slots, axis=1)
        return missing

    def has_uncached(self, slots: NDArray[np.intp], totals: I32) -> NDArray[np.bool_]:
        """Whether the first `totals` tokens of a slot fill a block that is not cached yet: [n]."""
        uncached: NDArray[np.bool_] = (totals >> self._shift) > self._indexed[slots]
        return uncached

    def can_grow(self, missing: I32) -> bool:
        return int(missing.sum()) <= self.pool.num_free

    def grow(self, slots: NDArray[np.intp], missing: I32) -> None:
        """Give each slot the blocks that it lacks (an answer of `missing`, none negative)."""
        for g, counts in enumerate(missing):
            lacking = np.flatnonzero(counts)
            if not len(lacking):
                continue
            rows, counts = slots[lacking], counts[lacking]
            held = self.table.num_blocks[g]
            indices = held[rows]
            held[rows] = indices + counts
            total = int(counts.sum())
            if total > len(rows):  # several for one row
                begin = np.cumsum(counts) - counts - indices
                rows = np.repeat(rows, counts)
                indices = np.arange(total, dtype=np.int32) - np.repeat(begin, counts)
            ids = np.array(self.pool.allocate(total), np.int32)
            self.table.block_tables[g][rows, indices] = ids
            self._record(g, rows.astype(np.int32), indices.astype(np.int32), ids)

    def cache_blocks(self, slots: list[int], totals: list[int]) -> None:
        """Make the full blocks among each slot's first `totals` tokens findable."""
        indexed, chains, shift = self._indexed, self._chains, self._shift
        token_ids, extend, enter = self.table.token_ids, self.hasher.extend, self.pool.cache_block
        for slot, total in zip(slots, totals, strict=True):
            done, full = int(indexed[slot]), total >> shift
            chain = chains[slot]
            if full <= done or chain is None:
                continue
            indexed[slot] = full
            extend(chain, token_ids[slot], full)
            hashes = chain.hashes
            for g, table in enumerate(self.table.block_tables):
                suffix = bytes((g,)) if g else b""
                for i, block in enumerate(table[slot, done:full].tolist(), done):
                    if block != NULL_BLOCK:
                        enter(block, hashes[i] + suffix)

    def free_out_of_window(self, slots: NDArray[np.intp]) -> None:
        """Release the blocks that have left the window of their group."""
        computed = self.table.num_computed[slots]
        for g in self._windows:
            live = self._groups[g].first_live(computed)
            for i in np.flatnonzero(live > self._let_go[g, slots]).tolist():
                slot, end = int(slots[i]), int(live[i])
                start = int(self._let_go[g, slot])
                row = self.table.block_tables[g][slot, start:end]
                self.pool.free(row[::-1].tolist())
                row[:] = NULL_BLOCK
                self._let_go[g, slot] = end
                n = end - start
                indices = np.arange(start, end, dtype=np.int32)
                self._record(g, np.full(n, slot, np.int32), indices, np.zeros(n, np.int32))

    # --- the end --------------------------------------------------------------------------------

    def free(self, slot: int, num_valid: int) -> None:
        """Release all of the slot's blocks, tail first.

        `num_valid` tokens have been computed; blocks that were entered beyond them hold nothing
        and are forgotten.
        """
        if self._changes:  # of the step being built: an empty slot has no blocks
            self._changes = [c for c in self._changes if slot not in c[1]]
        self.cache_blocks([slot], [num_valid])
        valid = num_valid >> self._shift
        for g, table in enumerate(self.table.block_tables):
            blocks = table[slot, : self.table.num_blocks[g, slot]].tolist()
            self.pool.uncache(b for b in blocks[valid : self._indexed[slot]] if b != NULL_BLOCK)
            blocks.reverse()
            self.pool.free(blocks)
        self.table.num_blocks[:, slot] = 0
        self._let_go[:, slot] = 0
        self._indexed[slot] = 0
        self._chains[slot] = None

    def reset_prefix_cache(self) -> bool:
        """Forget all cached contents; False, and nothing changes, while blocks are in use."""
        return self.pool.clear_index()

    @property
    def usage(self) -> float:
        """Share in use of the blocks that may be had, 0 … 1."""
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
        """Prove that references are exactly the tables' entries; AssertionError otherwise."""
        self.pool.check_integrity()
        counted = np.zeros(self.pool.num_blocks, np.int64)
        for g, table in enumerate(self.table.block_tables):
            held = self.table.num_blocks[g]
            assert set(np.flatnonzero(held).tolist()) <= set(live_slots), "an empty slot has blocks"
            for slot in live_slots:
                np.add.at(counted, table[slot, : held[slot]], 1)
        counted[NULL_BLOCK] = 0
        assert counted.tolist() == self.pool.refs, "references differ from the tables' entries"

    def _finder(self, g: int, hashes: list[bytes]) -> Find:
        find = self.pool.lookup
        if not g:
            return lambda i: find(hashes[i])
        suffix = bytes((g,))
        return lambda i: find(hashes[i] + suffix)

    def _record(self, g: int, slots: I32, indices: I32, ids: I32) -> None:
        self._changes.append((np.full(len(ids), g, np.int32), slots, indices, ids))
