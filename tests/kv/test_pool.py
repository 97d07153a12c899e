"""The block pool. Numbers in names are those of the list of scheduler behaviours."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from galley.kv.pool import NULL_BLOCK, BlockPool


def test_20_the_null_block_is_never_allocated() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.num_free == 0
    pool.check_integrity()


def test_24_a_shared_block_is_free_when_its_last_user_frees_it() -> None:
    pool = BlockPool(4)
    (block,) = pool.allocate(1)
    pool.cache_block(block, b"k")
    pool.share([block])
    pool.free([block])
    assert (pool.num_used, pool.num_free) == (1, 2)
    pool.free([block])
    assert (pool.num_used, pool.num_free) == (0, 3)
    assert pool.lookup(b"k") == block


def test_25_free_cached_blocks_stay_in_the_index_until_evicted() -> None:
    pool = BlockPool(3)
    a, b = pool.allocate(2)
    pool.cache_block(a, b"a")
    pool.cache_block(b, b"b")
    pool.free([b, a])
    assert pool.lookup(b"a") == a
    assert pool.allocate(1) == [b]
    assert pool.lookup(b"b") is None
    assert pool.lookup(b"a") == a
    pool.check_integrity()


def test_26_recycled_blocks_go_first_then_untouched_then_cached_oldest_first() -> None:
    pool = BlockPool(7)
    a, b, c, partial = pool.allocate(4)
    for block, key in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.cache_block(block, key)
    pool.free([c, b])  # one request: tail before head
    pool.free([partial, a])
    assert pool.allocate(6) == [partial, 5, 6, c, b, a]
    assert pool.num_evicted == 3
    assert not pool.index
    pool.check_integrity()


def test_restored_blocks_are_cached_and_free() -> None:
    pool = BlockPool(6)
    assert pool.restore({2: b"a", 4: b"b", 5: b"a", 9: b"c", NULL_BLOCK: b"d"}) == {2, 4}
    assert (pool.lookup(b"a"), pool.lookup(b"b"), pool.lookup(b"c")) == (2, 4, None)
    assert pool.num_free == 5
    pool.check_integrity()
    pool.share([2])
    assert sorted(pool.allocate(4)) == [1, 3, 4, 5]
    assert pool.lookup(b"b") is None
    pool.check_integrity()
    assert BlockPool(6, keep_cached=False).restore({2: b"a"}) == set()


def test_27_a_shared_block_leaves_the_free_list() -> None:
    pool = BlockPool(3)
    a, b = pool.allocate(2)
    pool.cache_block(a, b"a")
    pool.free([a])
    pool.free([b])
    assert pool.num_free_among([a]) == 1
    pool.share([a])
    assert pool.num_free_among([a]) == 0
    assert pool.allocate(1) == [b]
    assert pool.num_free == 0
    assert pool.lookup(b"a") == a
    pool.check_integrity()


def test_the_first_block_of_a_content_keeps_the_key() -> None:
    pool = BlockPool(4)
    a, b = pool.allocate(2)
    pool.cache_block(a, b"k")
    pool.cache_block(b, b"k")
    assert pool.lookup(b"k") == a
    pool.free([b])
    pool.check_integrity()
    assert pool.lookup(b"k") == a


def test_without_keep_cached_only_used_blocks_are_in_the_index() -> None:
    pool = BlockPool(3, keep_cached=False)
    (a,) = pool.allocate(1)
    pool.cache_block(a, b"a")
    assert pool.lookup(b"a") == a
    pool.free([a])
    assert pool.lookup(b"a") is None
    pool.check_integrity()


def test_uncached_blocks_are_not_found() -> None:
    pool = BlockPool(3)
    (a,) = pool.allocate(1)
    pool.cache_block(a, b"a")
    pool.uncache([a])
    assert pool.lookup(b"a") is None
    pool.free([a])
    pool.check_integrity()


def test_34_clearing_the_index_fails_while_blocks_are_in_use() -> None:
    pool = BlockPool(4)
    a, b = pool.allocate(2)
    pool.cache_block(a, b"a")
    pool.free([a])
    assert not pool.clear_index()
    assert pool.lookup(b"a") == a
    pool.free([b])
    assert pool.clear_index()
    assert pool.lookup(b"a") is None
    assert pool.num_free == 3
    pool.check_integrity()


def test_the_removal_of_a_key_is_reported() -> None:
    removed: list[tuple[int, bytes]] = []
    pool = BlockPool(3)
    pool.on_removed = lambda block, key: removed.append((block, key))
    a, b = pool.allocate(2)
    assert pool.cache_block(a, b"a")
    assert not pool.cache_block(a, b"other"), "a block keeps its first key"
    assert not pool.cache_block(b, b"a"), "a key keeps its first block"
    pool.uncache([b])
    assert removed == []
    pool.uncache([a])
    assert removed == [(a, b"a")]
    pool.cache_block(b, b"b")
    pool.free([a, b])
    pool.allocate(2)
    assert removed == [(a, b"a"), (b, b"b")]


def test_counters_of_blocks_allocated_freed_and_evicted() -> None:
    def counters() -> tuple[int, int, int]:
        return pool.num_allocated, pool.num_freed, pool.num_evicted

    pool = BlockPool(5)
    a, b, c = pool.allocate(3)
    pool.cache_block(a, b"a")
    pool.cache_block(b, b"b")
    assert counters() == (3, 0, 0)
    pool.share([a])
    assert counters() == (3, 0, 0), "a used block is not allocated again"
    pool.free([a, b, c])
    assert counters() == (3, 2, 0), "one has a user left"
    pool.share([b])
    assert counters() == (4, 2, 0), "a free cached block is"
    pool.free([a, b])
    assert counters() == (4, 4, 0)
    assert pool.set_reserved(3) == [c, a]
    assert counters() == (4, 4, 1), "reserving evicts"
    pool.allocate(1)
    assert counters() == (5, 4, 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool: pool.refs.__setitem__(3, 1),
        lambda pool: pool.refs.__setitem__(1, 0),
        lambda pool: pool._recycled.append(3),
        lambda pool: pool._recycled.append(NULL_BLOCK),
        lambda pool: pool._cached.__setitem__(3, None),
        lambda pool: pool.index.__setitem__(b"x", 1),
        lambda pool: pool.keys.__setitem__(1, b"y"),
        lambda pool: setattr(pool, "num_reserved", 4),
    ],
)
def test_check_integrity_finds_damage(damage: object) -> None:
    pool = BlockPool(5)
    pool.cache_block(pool.allocate(1)[0], b"k")
    pool.check_integrity()
    damage(pool)
    with pytest.raises(AssertionError):
        pool.check_integrity()


def test_reserved_blocks_are_not_allocated() -> None:
    pool = BlockPool(9)
    assert pool.set_reserved(5) == []
    assert (pool.num_free, pool.num_used, pool.num_untouched, pool.usage) == (3, 0, 8, 0.0)
    a, b, c = pool.allocate(3)
    assert (pool.num_free, pool.usage) == (0, 1.0)
    pool.cache_block(b, b"b")
    pool.cache_block(c, b"c")
    pool.free([c, b])
    pool.check_integrity()
    # The block freed first is evicted first.
    assert pool.set_reserved(6) == [c]
    assert (pool.lookup(b"b"), pool.lookup(b"c"), pool.num_free) == (b, None, 1)
    assert pool.set_reserved(4) == []
    assert pool.num_free == 3
    pool.free([a])
    # Freed partial blocks before cached ones, and used ones before untouched ones.
    assert pool.set_reserved(7) == [a]
    assert pool.set_reserved(5) == []
    assert pool.allocate(2) == [a, c]
    assert pool.lookup(b"b") == b
    assert not pool.clear_index()
    pool.check_integrity()


class PoolMachine(RuleBasedStateMachine):
    """Random users of a small pool; a dict of references is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.users: list[list[int]] = []
        self.contents = 0

    @rule(n=st.integers(1, 4), keyed=st.integers(0, 4))
    def allocate(self, n: int, keyed: int) -> None:
        if n > self.pool.num_free:
            return
        blocks = self.pool.allocate(n)
        for block in blocks[:keyed]:
            self.contents += 1
            self.pool.cache_block(block, self.contents.to_bytes(4, "big"))
        self.users.append(blocks)

    @precondition(lambda self: self.pool.index)
    @rule(data=st.data())
    def hit(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.pool.index)))
        block = self.pool.lookup(key)
        self.pool.share([block])
        self.users.append([block])

    @rule(data=st.data())
    def set_reserved(self, data: st.DataObject) -> None:
        free = self.pool.num_free + self.pool.num_reserved
        n = data.draw(st.integers(0, free))
        emptied = self.pool.set_reserved(n)
        assert not {b for b in emptied if self.pool.refs[b] or self.pool.keys[b]}
        assert (self.pool.num_free, self.pool.num_reserved) == (free - n, n)

    @precondition(lambda self: not self.users)
    @rule()
    def clear(self) -> None:
        assert self.pool.clear_index()
        assert not self.pool.index

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))[::-1])

    @invariant()
    def references_are_the_users(self) -> None:
        self.pool.check_integrity()
        refs = [0] * self.pool.num_blocks
        for blocks in self.users:
            for block in blocks:
                refs[block] += 1
        assert refs == self.pool.refs


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestPoolMachine = PoolMachine.TestCase
