"""KV groups of models, their bytes, and what fits into a pool."""

from __future__ import annotations

import pytest

from galley.kv import (
    CacheSpec,
    Capacity,
    KVLayout,
    capacity,
    longest_sequence,
    make_policies,
    plan_layout,
)

FULL = CacheSpec("full", token_bytes=64)
WINDOW = CacheSpec("window", token_bytes=64, window=40)
BLOCK = 16
LAYER = 64 * BLOCK


def test_equal_layers_are_one_group_without_padding() -> None:
    layout = plan_layout([FULL] * 5, BLOCK)
    [group] = layout.groups
    assert (group.kind, group.num_layers, group.other_bytes) == ("full", 5, 0)
    assert layout.block_bytes == group.block_bytes == 5 * LAYER
    assert [place[:2] for place in layout.places] == [(0, i * LAYER) for i in range(5)]
    assert layout.bytes_per_token == 5 * 64


def test_interleaved_layers_get_groups_of_equal_bytes() -> None:
    # As Gemma 3: five windows to one full layer.
    layout = plan_layout(([WINDOW] * 5 + [FULL]) * 2 + [WINDOW], BLOCK)
    sizes = [(group.kind, group.num_layers) for group in layout.groups]
    assert sizes == [("window", 2)] * 5 + [("window", 1), ("full", 2)]
    assert {group.block_bytes for group in layout.groups} == {layout.block_bytes} == {2 * LAYER}
    assert [group.other_bytes for group in layout.groups] == [0] * 5 + [LAYER, 0]
    assert sorted(place[:2] for place in layout.places) == [
        (g, i * LAYER) for g, (_, n) in enumerate(sizes) for i in range(n)
    ]


def test_kinds_of_nearly_equal_bytes_get_one_group_each() -> None:
    layout = plan_layout([FULL] * 5 + [WINDOW] * 6, BLOCK)
    assert [(g.kind, g.num_layers, g.other_bytes) for g in layout.groups] == [
        ("full", 5, LAYER),
        ("window", 6, 0),
    ]


def units_of(layout: KVLayout, specs: list[CacheSpec]) -> dict[tuple[int, int], int]:
    """(block of the state, first byte of a unit) → its bytes, for all units of all states."""
    units: dict[tuple[int, int], int] = {}
    for spec, place in zip(specs, layout.places, strict=False):
        for i in range(spec.units):
            block, slot = divmod(place.first + i, place.per_block)
            at = block, place.offset + slot * spec.unit_bytes
            assert at not in units
            units[at] = spec.unit_bytes
    return units


STATES = {
    "heads and channels": [CacheSpec("state", units=32, unit_bytes=640)] * 3
    + [CacheSpec("state", units=5, unit_bytes=192)] * 3,
    "one size": [CacheSpec("state", units=7, unit_bytes=1000)],
    "many sizes": [CacheSpec("state", units=n, unit_bytes=64 * n) for n in range(1, 9)],
}


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
@pytest.mark.parametrize("tokens", [[], [FULL], [FULL, WINDOW] * 2], ids=["alone", "full", "mixed"])
def test_units_of_states_lie_side_by_side_in_the_blocks_of_tokens(
    states: list[CacheSpec], tokens: list[CacheSpec]
) -> None:
    layout = plan_layout([*states, *tokens], BLOCK, state_interval=64)
    group = layout.groups[-1]
    assert (group.kind, group.interval, group.num_layers) == ("state", 64, len(states))
    units = units_of(layout, states)
    for (block, start), size in units.items():
        assert 0 <= block < group.width
        assert start + size <= layout.block_bytes
        inside = [at for at in units if at[0] == block and start <= at[1] < start + size]
        assert inside == [(block, start)]
    largest = max(spec.unit_bytes for spec in states)
    total = sum(spec.state_bytes for spec in states)
    assert layout.bytes_per_state == group.width * layout.block_bytes
    if not tokens:
        assert group.width == 1
        assert layout.block_bytes < total + len(states) * largest
    else:
        # As large as the blocks of tokens alone, unless a unit is larger; the last may be a part.
        alone = plan_layout(tokens, BLOCK).block_bytes
        assert layout.block_bytes == max(alone, -(-largest // 64) * 64)
        used = total + group.width * largest + len(states) * largest
        assert (group.width - 1) * layout.block_bytes <= used


def test_a_state_adds_no_bytes_per_token() -> None:
    layout = plan_layout([*STATES["one size"], FULL], BLOCK)
    assert layout.bytes_per_token == 64
    assert [g.bytes_per_token for g in layout.groups] == [64, 0]


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
