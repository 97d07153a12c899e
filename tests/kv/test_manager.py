"""The KV cache manager: admission, growth, caching, listeners, and its integrity check."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from galley.batch import GroupSpec, RequestTable
from galley.kv import BlockHasher, BlockPool, Hit, KVCacheManager, StoredBlock

BLOCK = 4


def make_manager(
    num_blocks: int = 9, prefix_caching: bool = True, groups: list[GroupSpec] | None = None
) -> KVCacheManager:
    table = RequestTable(3, 32, groups or [GroupSpec("full", BLOCK, 8)])
    pool = BlockPool(num_blocks, keep_cached=prefix_caching)
    hasher = BlockHasher("sha256", BLOCK, seed="0")
    return KVCacheManager(table, pool, hasher, prefix_caching, max_chunk=32)


def hold(
    kv: KVCacheManager,
    slot: int,
    tokens: list[int],
    hit: Hit | None = None,
    salt: str | None = None,
) -> None:
    """Admit tokens into a slot and compute them all."""
    chain = kv.new_chain(salt, None)
    kv.table.token_ids[slot, : len(tokens)] = tokens
    kv.admit(slot, chain, hit or Hit())
    slots, totals = np.array([slot]), np.array([len(tokens)], np.int32)
    missing = kv.missing_blocks(slots, totals)
    assert kv.can_grow(missing)
    kv.grow(slots, missing)
    kv.cache_blocks([slot], [len(tokens)])
    kv.table.num_computed[slot] = len(tokens)


def hit_of(kv: KVCacheManager, tokens: list[int], salt: str | None = None) -> Hit:
    return kv.find_hit(kv.new_chain(salt, None), np.array(tokens, np.int32))


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


def test_changes_are_returned_once_and_in_order() -> None:
    kv = make_manager()
    hold(kv, 2, list(range(10)))
    groups, slots, indices, ids = kv.take_changes()
    assert groups.tolist() == [0, 0, 0]
    assert slots.tolist() == [2, 2, 2]
    assert indices.tolist() == [0, 1, 2]
    assert ids.tolist() == kv.table.block_tables[0][2, :3].tolist()
    assert all(len(column) == 0 for column in kv.take_changes())


def test_changes_of_a_slot_freed_meanwhile_are_dropped() -> None:
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


def test_cached_blocks_that_were_not_computed_are_removed_from_the_index() -> None:
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


def test_the_last_block_of_a_sequence_that_ends_at_a_border_is_cached() -> None:
    """Decode caches a block when the next one is allocated; the last one is cached by `free`."""
    kv = make_manager()
    hold(kv, 0, list(range(10)))
    for total in (11, 12):
        kv.table.token_ids[0, total - 1] = total - 1
        kv.table.num_computed[0] = total
    assert hit_of(kv, list(range(13))).num_tokens == 8
    kv.free(0, 12)
    assert hit_of(kv, list(range(13))).num_tokens == 12


class Events:
    """A listener that records all calls."""

    def __init__(self) -> None:
        self.stored_blocks: list[StoredBlock] = []
        self.log: list[tuple[object, ...]] = []

    def stored(self, stored: StoredBlock) -> None:
        self.stored_blocks.append(replace(stored, token_ids=stored.token_ids.copy()))

    def removed(self, block: int, key: bytes) -> None:
        self.log.append(("removed", block, key))

    def hit(self, blocks: list[int]) -> None:
        self.log.append(("hit", blocks))

    def cleared(self) -> None:
        self.log.append(("cleared",))


def test_listeners_receive_blocks_with_their_tokens_and_parents() -> None:
    groups = [GroupSpec("full", BLOCK, 8), GroupSpec("window", BLOCK, 8, window=5)]
    kv = make_manager(num_blocks=12, groups=groups)
    events, other = Events(), Events()
    kv.listeners += [events, other]
    hold(kv, 0, list(range(10)), salt="s")
    tables = kv.table.block_tables[:, 0, :2].tolist()
    stored = events.stored_blocks
    assert [(s.index, s.group, s.block) for s in stored] == [
        (i, g, tables[g][i]) for g in (0, 1) for i in (0, 1)
    ]
    for s in stored:
        assert kv.pool.lookup(s.key) == s.block
        assert s.token_ids.tolist() == list(range(4 * s.index, 4 * s.index + 4))
        assert s.parent == (stored[0].key if s.index else None)
        assert s.extras is not None
        assert s.extras.of(0) == ("s",)
    assert len(other.stored_blocks) == 4
    hold(kv, 1, list(range(10)), hit_of(kv, list(range(10)), salt="s"), salt="s")
    assert events.log == [("hit", tables[0]), ("hit", [tables[1][1]])]
    events.log.clear()
    kv.free(1, 10)
    kv.free(0, 4)  # the second block was planned and not computed
    assert events.log == [("removed", s.block, s.key) for s in stored if s.index]
    assert kv.reset_prefix_cache()
    assert events.log[-1] == ("cleared",)


def test_a_hit_is_what_all_groups_hold() -> None:
    groups = [GroupSpec("full", BLOCK, 8), GroupSpec("window", BLOCK, 8, window=6)]
    kv = make_manager(num_blocks=20, groups=groups)
    hold(kv, 0, list(range(16)))
    kv.free_out_of_window(np.array([0]))
    full, window = kv.table.block_tables[:, 0].tolist()
    # Positions 16 and later read 11 on: the blocks 0 and 1 of the window are free, but cached.
    assert window[:4] == [0, 0, *window[2:4]]
    hit = hit_of(kv, list(range(17)))
    assert hit.num_tokens == 16
    assert hit.blocks == [full[:4], [0, 0, *window[2:4]]]
    kv.pool.uncache([window[2]])
    hit = hit_of(kv, list(range(17)))
    assert hit.num_tokens == 8
    assert hit.blocks[0] == full[:2]
    assert 0 not in hit.blocks[1]


def test_a_model_with_states_shares_nothing() -> None:
    groups = [GroupSpec("full", BLOCK, 8), GroupSpec("state", BLOCK, 0, other_bytes=32)]
    kv = make_manager(groups=groups)
    assert kv.new_chain(None, None) is None
    assert kv.new_chain(None, (0, 1)) is None
    hold(kv, 0, list(range(12)))
    assert kv.table.num_blocks[:, 0].tolist() == [3, 1]
    assert not kv.pool.index
    kv.free(0, 12)
    kv.check_integrity([])


def test_states_are_found_where_all_groups_have_a_prefix() -> None:
    """States of two blocks at every eighth token, beside blocks of four tokens."""
    state = GroupSpec("state", BLOCK, 0, other_bytes=32, interval=2 * BLOCK, width=2)
    kv = make_manager(num_blocks=40, groups=[GroupSpec("full", BLOCK, 8), state])
    hold(kv, 0, list(range(23)))
    # Blocks of tokens can be shared at once, a state only when a later token has been computed.
    assert hit_of(kv, list(range(23))).num_tokens == 0
    kv.free_out_of_window(np.array([0]))
    full, states = kv.table.block_tables[:, 0].tolist()
    assert states[:4] == [0] * 4
    hit = hit_of(kv, list(range(23)))
    assert hit.num_tokens == 16
    assert hit.blocks[0] == full[:4]
    assert hit.blocks[1][:2] == [0, 0]
    assert len(hit.blocks[1]) == 4
    assert hit_of(kv, list(range(16))).num_tokens == 8  # one token is left to compute
    kv.pool.allocate(kv.pool.num_free)  # evicts the states, which no sequence holds
    assert hit_of(kv, list(range(23))).num_tokens == 0
    assert kv.pool.num_evicted == 4


def test_a_state_that_ends_with_its_sequence_is_kept() -> None:
    state = GroupSpec("state", BLOCK, 0, other_bytes=32, interval=2 * BLOCK)
    kv = make_manager(num_blocks=40, groups=[GroupSpec("full", BLOCK, 8), state])
    hold(kv, 0, list(range(16)))
    kv.free(0, 16)
    hit = hit_of(kv, list(range(17)))
    assert hit.num_tokens == 16
    kv.admit(1, kv.new_chain(None, None), hit)
    kv.table.num_computed[1] = 16
    kv.check_integrity([1])
    kv.free(1, 16)
    kv.check_integrity([])


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
