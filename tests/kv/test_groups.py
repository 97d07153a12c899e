"""What each kind of KV group needs for a hit, holds and lets go."""

from __future__ import annotations

import numpy as np
import pytest

from galley.batch import GroupSpec
from galley.errors import ConfigError
from galley.kv.groups import make_group


def find_in(cached: set[int]):
    """Blocks of the sequence that are cached; block i has id 100 + i."""
    return lambda i: 100 + i if i in cached else None


FULL = make_group(GroupSpec("full", 16, 64), max_chunk=64)
WINDOW = make_group(GroupSpec("window", 16, 64, window=40), max_chunk=64)


@pytest.mark.parametrize(
    ("cached", "limit", "length"),
    [(set(), 5, 0), ({0, 1, 2}, 5, 3), ({0, 1, 3}, 5, 2), ({1, 2}, 5, 0), ({0, 1, 2}, 2, 2)],
)
def test_23_a_full_group_hits_the_longest_chain_from_the_start(
    cached: set[int], limit: int, length: int
) -> None:
    assert FULL.longest_hit(find_in(cached), limit) == [100 + i for i in range(length)]


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
    assert WINDOW.longest_hit(find_in(cached), limit) == hit


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
    with pytest.raises(ConfigError, match="state"):
        make_group(GroupSpec("state", 16, 64), max_chunk=64)
