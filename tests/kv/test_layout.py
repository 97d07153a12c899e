"""KV groups of models, their bytes, and what fits into a pool."""

from __future__ import annotations

import pytest

from galley.kv import CacheSpec, Capacity, capacity, longest_sequence, make_policies, plan_layout

FULL = CacheSpec("full", token_bytes=64)
WINDOW = CacheSpec("window", token_bytes=64, window=40)
BLOCK = 16
LAYER = 64 * BLOCK


def test_equal_layers_are_one_group_without_padding() -> None:
    layout = plan_layout([FULL] * 5, BLOCK)
    [group] = layout.groups
    assert (group.kind, group.num_layers, group.other_bytes) == ("full", 5, 0)
    assert layout.block_bytes == group.block_bytes == 5 * LAYER
    assert [tuple(place) for place in layout.places] == [(0, i * LAYER) for i in range(5)]
    assert layout.bytes_per_token == 5 * 64


def test_interleaved_layers_get_groups_of_equal_bytes() -> None:
    # As Gemma 3: five windows to one full layer.
    layout = plan_layout(([WINDOW] * 5 + [FULL]) * 2 + [WINDOW], BLOCK)
    sizes = [(group.kind, group.num_layers) for group in layout.groups]
    assert sizes == [("window", 2)] * 5 + [("window", 1), ("full", 2)]
    assert {group.block_bytes for group in layout.groups} == {layout.block_bytes} == {2 * LAYER}
    assert [group.other_bytes for group in layout.groups] == [0] * 5 + [LAYER, 0]
    assert sorted(layout.places) == [
        (g, i * LAYER) for g, (_, n) in enumerate(sizes) for i in range(n)
    ]


def test_kinds_of_nearly_equal_bytes_get_one_group_each() -> None:
    layout = plan_layout([FULL] * 5 + [WINDOW] * 6, BLOCK)
    assert [(g.kind, g.num_layers, g.other_bytes) for g in layout.groups] == [
        ("full", 5, LAYER),
        ("window", 6, 0),
    ]


def test_a_block_holds_at_least_one_layer_of_each_kind() -> None:
    state = CacheSpec("state", state_bytes=5000)
    layout = plan_layout([state, FULL, state], BLOCK)
    assert layout.block_bytes == 5056  # whole cache lines
    assert [(g.kind, g.num_layers) for g in layout.groups] == [
        ("state", 1),
        ("state", 1),
        ("full", 1),
    ]
    assert layout.bytes_per_token == 64


@pytest.mark.parametrize("num_blocks", [1, 2, 7, 8, 30])
def test_the_longest_sequence_is_the_last_that_fits(num_blocks: int) -> None:
    groups = make_policies(plan_layout([FULL, WINDOW], BLOCK).groups, max_chunk=64)
    longest = longest_sequence(groups, num_blocks, 1000)

    def held(n: int) -> int:
        return sum(group.most_held(n) for group in groups)

    assert held(longest) <= num_blocks < held(longest + 1)


def test_what_fits_counts_what_a_window_holds_once() -> None:
    window, full = (plan_layout([spec], BLOCK).groups for spec in (WINDOW, FULL))
    # 39 tokens back and 64 new ones: 8 blocks at most, whatever the length.
    assert longest_sequence(make_policies(window, max_chunk=64), 8, 10_000) == 10_000
    assert capacity(window, 80, 10_000, max_chunk=64) == Capacity(10, 100_000)
    assert capacity(full, 80, 155, max_chunk=64) == Capacity(8, 80 * BLOCK)
