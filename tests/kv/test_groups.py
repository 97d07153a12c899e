"""The blocks that each kind of KV group needs for a hit, holds and frees."""

from __future__ import annotations

import numpy as np
import pytest

from galley.batch import GroupSpec
from galley.errors import ConfigError
from galley.kv.groups import GROUPS, GroupPolicy, make_policies


def lookup_in(cached: set[int]):
    """Blocks of the sequence that are cached; block i has id 100 + i."""
    return lambda i: 100 + i if i in cached else None


def policy(spec: GroupSpec, max_chunk: int = 64) -> GroupPolicy:
    return make_policies([spec], max_chunk)[0]


FULL = policy(GroupSpec("full", 16, 64))
WINDOW = policy(GroupSpec("window", 16, 64, window=40))
STATE = policy(GroupSpec("state", 16, 0, other_bytes=512))


@pytest.mark.parametrize(
    ("cached", "limit", "length"),
    [(set(), 5, 0), ({0, 1, 2}, 5, 3), ({0, 1, 3}, 5, 2), ({1, 2}, 5, 0), ({0, 1, 2}, 2, 2)],
)
def test_23_a_full_group_hits_the_longest_chain_from_the_start(
    cached: set[int], limit: int, length: int
) -> None:
    assert FULL.longest_hit(lookup_in(cached), limit) == [100 + i for i in range(length)]


@pytest.mark.parametrize(
    ("cached", "limit", "hit"),
    [
        # A window of 40 reads 39 tokens back: three blocks of 16.
        ({2, 3, 4}, 6, [0, 0, 102, 103, 104]),
        ({2, 3, 4, 5}, 6, [0, 0, 0, 103, 104, 105]),
        ({0, 1, 3, 4}, 6, [100, 101]),
        ({0, 3, 4}, 6, [100]),
        ({1, 2, 4}, 6, []),
        ({3, 4, 5}, 5, []),
    ],
)
def test_35_a_window_group_needs_only_the_last_window(
    cached: set[int], limit: int, hit: list[int]
) -> None:
    assert WINDOW.longest_hit(lookup_in(cached), limit) == hit


def test_35_blocks_leave_the_window_when_no_position_reads_them() -> None:
    computed = np.array([0, 40, 54, 55, 71, 200], np.int32)
    live = WINDOW.first_live(computed)
    for n, first in zip(computed.tolist(), live.tolist(), strict=True):
        oldest_read = max(0, n - 40 + 1)
        assert first == oldest_read // 16
    assert FULL.first_live(computed).tolist() == [0] * 6


def test_a_window_group_holds_a_bounded_number_of_blocks() -> None:
    assert FULL.most_held(1000) == 63
    assert WINDOW.most_held(20) == 2
    # 39 tokens back and a chunk of 64 touch at most this many blocks, whatever the alignment.
    worst = max((start + 39 + 64 - 1) // 16 - start // 16 + 1 for start in range(16))
    assert worst <= WINDOW.most_held(100_000) <= worst + 1


def test_a_kind_without_a_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="'spiral'"):
        policy(GroupSpec("spiral", 16, 64))


def test_a_state_group_holds_one_block_and_has_no_hits() -> None:
    totals = np.array([0, 1, 16, 17, 500], np.int32)
    assert STATE.needed(totals).tolist() == [0, 1, 1, 1, 1]
    assert STATE.first_live(totals).tolist() == [0] * 5
    assert [STATE.most_held(n) for n in (0, 1, 500)] == [0, 1, 1]
    assert STATE.longest_hit(lookup_in({0, 1, 2}), 3) == []


SNAPSHOTS = policy(GroupSpec("state", 16, 0, other_bytes=512, interval=32, width=2))


def test_a_state_of_several_blocks_is_kept_at_each_interval() -> None:
    totals = np.array([0, 1, 32, 33, 64, 65], np.int32)
    assert SNAPSHOTS.needed(totals).tolist() == [0, 2, 2, 4, 4, 6]
    # The next token reads the newest state, until one lies behind it.
    assert SNAPSHOTS.first_live(totals).tolist() == [0, 0, 0, 2, 2, 4]
    assert [SNAPSHOTS.key_of(entry) for entry in range(4)] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert GroupSpec("state", 16, 0, interval=32, width=2).table_width(65) == 6


@pytest.mark.parametrize(
    ("cached", "limit", "hit"),
    [
        ({0, 1}, 5, [100, 101]),
        ({0, 1, 2, 3}, 5, [0, 0, 102, 103]),
        ({0, 1, 2, 3}, 3, [100, 101]),
        ({2, 3}, 4, [0, 0, 102, 103]),
        ({0, 1, 3}, 4, [100, 101]),
        ({0, 2}, 9, []),
    ],
)
def test_a_hit_of_a_state_is_the_last_that_is_whole(
    cached: set[int], limit: int, hit: list[int]
) -> None:
    assert SNAPSHOTS.longest_hit(lookup_in(cached), limit) == hit
    assert SNAPSHOTS.full_blocks(len(hit)) == len(hit)  # two entries for two blocks of tokens


@pytest.mark.parametrize("kind", [*sorted(GROUPS), "state of 32"])
@pytest.mark.parametrize("max_chunk", [1, 7, 64])
def test_every_kind_holds_at_most_what_it_says(kind: str, max_chunk: int) -> None:
    """A sequence computed in chunks, whose blocks are freed between them."""
    states = {"interval": 32, "width": 3} if kind == "state of 32" else {}
    group = policy(GroupSpec(kind.split()[0], 16, 64, window=40, **states), max_chunk)
    for length in (1, 15, 16, 17, 100, 333):
        most, start = 0, 0
        while start < length:
            end = min(start + max_chunk, length)
            held = group.needed(np.array([end])) - group.first_live(np.array([start]))
            most, start = max(most, int(held[0])), end
        assert most <= group.most_held(length)
        assert most > 0


@pytest.mark.parametrize("window", [1, 2, 16, 17, 18, 33, 40])
def test_a_hit_of_a_window_holds_exactly_what_the_next_position_reads(window: int) -> None:
    group = policy(GroupSpec("window", 16, 64, window=window))
    for limit in range(5):
        hit = group.longest_hit(lookup_in({0, 1, 2, 3, 4}), limit)
        first = int(group.first_live(np.array([16 * limit]))[0])
        assert hit == [0] * first + [100 + i for i in range(first, limit)]
