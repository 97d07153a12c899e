"""Predicates and acts of the manager, and what its integrity check finds."""

from __future__ import annotations

import numpy as np
import pytest

from galley.batch import GroupSpec, RequestTable
from galley.kv import BlockHasher, BlockPool, Hit, KVCacheManager

BLOCK = 4


def make_manager(num_blocks: int = 9, prefix_caching: bool = True) -> KVCacheManager:
    table = RequestTable(3, 32, [GroupSpec("full", BLOCK, 8)])
    pool = BlockPool(num_blocks, keep_cached=prefix_caching)
    hasher = BlockHasher("sha256", BLOCK, seed="0")
    return KVCacheManager(table, pool, hasher, prefix_caching, max_chunk=32)


def hold(kv: KVCacheManager, slot: int, tokens: list[int], hit: Hit | None = None) -> None:
    """Admit tokens into a slot and compute them all."""
    chain = kv.new_chain(None, None)
    kv.table.token_ids[slot, : len(tokens)] = tokens
    kv.admit(slot, chain, hit or Hit())
    slots, totals = np.array([slot]), np.array([len(tokens)], np.int32)
    missing = kv.missing_blocks(slots, totals)
    assert kv.can_grow(missing)
    kv.grow(slots, missing)
    kv.cache_blocks([slot], [len(tokens)])
    kv.table.num_computed[slot] = len(tokens)


def hit_of(kv: KVCacheManager, tokens: list[int]) -> Hit:
    return kv.find_hit(kv.new_chain(None, None), np.array(tokens, np.int32))


def test_can_admit_counts_free_blocks_that_a_hit_would_use_up() -> None:
    kv = make_manager(num_blocks=1 + 5)
    hold(kv, 0, list(range(12)))
    kv.free(0, 12)
    assert kv.pool.num_free == 5
    hit = hit_of(kv, [*range(12), *[9] * 8])
    assert hit.num_tokens == 12
    assert kv.can_admit(hit, 20)  # 3 found and 2 new of 5 free
    assert not kv.can_admit(hit, 21)
    hold(kv, 1, list(range(12)), hit_of(kv, [*range(12), 9]))
    assert kv.can_admit(hit, 20), "now the three are in use, and two are free"
    assert not kv.can_admit(hit, 21)


def test_changes_are_told_once_and_in_order() -> None:
    kv = make_manager()
    hold(kv, 2, list(range(10)))
    groups, slots, indices, ids = kv.take_changes()
    assert groups.tolist() == [0, 0, 0]
    assert slots.tolist() == [2, 2, 2]
    assert indices.tolist() == [0, 1, 2]
    assert ids.tolist() == kv.table.block_tables[0][2, :3].tolist()
    assert all(len(column) == 0 for column in kv.take_changes())


def test_changes_of_a_slot_freed_before_they_were_told_are_dropped() -> None:
    kv = make_manager()
    hold(kv, 0, list(range(4)))
    hold(kv, 1, list(range(10, 14)))
    kv.free(0, 4)
    _, slots, _, _ = kv.take_changes()
    assert slots.tolist() == [1]


def test_growing_rows_of_different_needs_at_once() -> None:
    kv = make_manager(num_blocks=20)
    for slot in range(3):
        hold(kv, slot, [slot] * 4)
    slots, totals = np.array([2, 0, 1]), np.array([13, 4, 5], np.int32)
    missing = kv.missing_blocks(slots, totals)
    assert missing.tolist() == [[3, 0, 1]]
    kv.grow(slots, missing)
    assert kv.table.num_blocks.tolist() == [[1, 2, 4]]
    held = [kv.table.block_tables[0][s, :n].tolist() for s, n in ((0, 1), (1, 2), (2, 4))]
    assert len({b for row in held for b in row}) == 7
    kv.check_integrity([0, 1, 2])


def test_blocks_entered_but_not_computed_are_forgotten() -> None:
    kv = make_manager()
    hold(kv, 0, list(range(12)))
    kv.free(0, num_valid=5)  # the step that was to fill the others did not run
    assert hit_of(kv, list(range(12))).num_tokens == 4
    kv.check_integrity([])


def test_a_reset_fails_while_a_block_is_held() -> None:
    kv = make_manager()
    hold(kv, 0, list(range(8)))
    assert not kv.reset_prefix_cache()
    kv.free(0, 8)
    assert kv.reset_prefix_cache()
    assert hit_of(kv, list(range(9))).num_tokens == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda kv: kv.table.block_tables[0].__setitem__((0, 1), 8),
        lambda kv: kv.table.num_blocks.__setitem__((0, 0), 1),
        lambda kv: kv.table.num_blocks.__setitem__((0, 2), 1),
        lambda kv: kv.pool.share([int(kv.table.block_tables[0][0, 0])]),
    ],
)
def test_check_integrity_finds_damage(damage: object) -> None:
    kv = make_manager()
    hold(kv, 0, list(range(8)))
    kv.check_integrity([0])
    damage(kv)
    with pytest.raises(AssertionError):
        kv.check_integrity([0])
