"""Layout of the KV cache: the group of each layer and its place in a block.

All groups share one pool of blocks, so their blocks have equal bytes:

    group 0, full     [ layer 0 | layer 6 | layer 12 ]
    group 1, window   [ layer 1 | layer 2 | layer 3  ]
    group 2, window   [ layer 4 | layer 5 | padding  ]
    group 3, state    [ units of the states of all layers ] [ more of them ] [ last | padding ]

Layers of one cache (equal `CacheSpec`) form one group or, where other layers need fewer bytes,
several groups of about equal size. A model of equal layers has one group without padding.

A recurrent state may be a hundred times as large as the keys and values of a block. It consists of
*units* (the state of a head, say) that kernels address one by one, so it lies in as many blocks as
it needs, and only the units decide how much is padded: less than one unit per block. A model
without attention has one block for a whole state.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import msgspec

from galley.batch import GroupSpec

#: Layers start at multiples of a cache line within a block.
ALIGNMENT = 64
#: Blocks of tokens grow by at most this factor for the sake of states.
PADDING = 1.02
#: Kinds of layers whose bytes differ by less than this factor get one group each.
NEARLY_EQUAL = 1.25


class CacheSpec(msgspec.Struct, frozen=True):
    """The cache of one layer.

    Attributes:
        kind: of the group, a key of `kv.groups.GROUPS`.
        token_bytes: bytes of each token (K and V).
        units, unit_bytes: of a state: it can be divided into so many parts of equal bytes.
        window: sliding window in tokens; 0 = none.
    """

    kind: str
    token_bytes: int = 0
    window: int = 0
    units: int = 0
    unit_bytes: int = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of a state; 0 for a cache of tokens."""
        return self.units * self.unit_bytes

    def block_bytes(self, block_size: int) -> int:
        """Bytes in one block of `block_size` tokens, rounded up to whole cache lines."""
        size = self.token_bytes * block_size
        return -(-size // ALIGNMENT) * ALIGNMENT


class Place(NamedTuple):
    """Where a layer's cache lies: in the blocks of `group`, from byte `offset` of each.

    Units of a state are counted through the blocks of the state, `per_block` in each, from the
    number `first` on; `offset` is 0.
    """

    group: int
    offset: int
    first: int = 0
    per_block: int = 0


class KVLayout(msgspec.Struct, frozen=True):
    """The KV cache of a model.

    Attributes:
        groups: their specs, as in the request table.
        places: by layer, in the order given to `plan_layout`.
        block_bytes: bytes of a block, whatever its group.
        block_size: tokens per block.
    """

    groups: list[GroupSpec]
    places: list[Place]
    block_bytes: int
    block_size: int

    @property
    def bytes_per_token(self) -> int:
        """K and V of all layers for one token, as long as no window has been left."""
        return sum(group.bytes_per_token for group in self.groups)

    @property
    def bytes_per_state(self) -> int:
        """Recurrent states of all layers for one sequence, padding included."""
        return sum(g.width * g.block_bytes for g in self.groups if g.kind == "state")


def plan_layout(specs: Iterable[CacheSpec], block_size: int, state_interval: int = 0) -> KVLayout:
    """Put layers into groups of about equal bytes, and all states into one group.

    Args:
        state_interval: tokens between two states that are kept for prefix hits; 0 = none is kept.
            A multiple of `block_size`.
    """
    layers: dict[CacheSpec, list[int]] = {}
    states: dict[int, CacheSpec] = {}
    for index, spec in enumerate(specs):
        if spec.units:
            states[index] = spec
        else:
            layers.setdefault(spec, []).append(index)
    if not layers and not states:
        return KVLayout([GroupSpec("full", block_size, 0)], [], 0, block_size)
    members = [
        (spec, part)
        for spec, indices in layers.items()
        for part in _split(indices, _target(layers, block_size) // spec.block_bytes(block_size))
    ]
    sizes = [spec.block_bytes(block_size) * len(part) for spec, part in members]
    if states:
        sizes.append(_unit_bytes(states.values()) if members else _one_block(states))
    block_bytes = max(sizes)
    if states and members:
        block_bytes = _room_for_one_more(block_bytes, _unit_bytes(states.values()))
    places = {
        index: Place(g, i * spec.block_bytes(block_size))
        for g, (spec, part) in enumerate(members)
        for i, index in enumerate(part)
    }
    groups = [
        GroupSpec(
            kind=spec.kind,
            block_size=block_size,
            bytes_per_token=spec.token_bytes * len(part),
            window=spec.window,
            other_bytes=block_bytes - spec.token_bytes * len(part) * block_size,
            num_layers=len(part),
        )
        for spec, part in members
    ]
    if states:
        placed, width = _place_states(states, block_bytes, len(groups))
        places |= placed
        groups.append(
            GroupSpec(
                kind="state",
                block_size=block_size,
                bytes_per_token=0,
                other_bytes=block_bytes,
                num_layers=len(states),
                interval=state_interval,
                width=width,
            )
        )
    return KVLayout(groups, [places[i] for i in range(len(places))], block_bytes, block_size)


def _by_unit(states: dict[int, CacheSpec]) -> list[tuple[int, CacheSpec]]:
    """Large units first: smaller ones then start where those end."""
    return sorted(states.items(), key=lambda state: (-state[1].unit_bytes, state[0]))


def _unit_bytes(states: Iterable[CacheSpec]) -> int:
    """Bytes of the largest unit, in whole cache lines."""
    largest = max(spec.unit_bytes for spec in states)
    return -(-largest // ALIGNMENT) * ALIGNMENT


def _room_for_one_more(block_bytes: int, unit_bytes: int) -> int:
    """Bytes of a block, a little larger if it then holds another unit of a state."""
    larger = (block_bytes // unit_bytes + 1) * unit_bytes
    return larger if larger <= PADDING * block_bytes else block_bytes


def _one_block(states: dict[int, CacheSpec]) -> int:
    """Bytes of a block that holds all units."""
    end = 0
    for _, spec in _by_unit(states):
        end = (-(-end // spec.unit_bytes) + spec.units) * spec.unit_bytes
    return -(-end // ALIGNMENT) * ALIGNMENT


def _place_states(
    states: dict[int, CacheSpec], block_bytes: int, group: int
) -> tuple[dict[int, Place], int]:
    """The place of each state, and the number of blocks that hold them all."""
    places: dict[int, Place] = {}
    block, end = 0, 0  # the first free byte
    for index, spec in _by_unit(states):
        per_block = block_bytes // spec.unit_bytes
        first = block * per_block + min(-(-end // spec.unit_bytes), per_block)
        places[index] = Place(group, 0, first, per_block)
        block, last = divmod(first + spec.units - 1, per_block)
        end = (last + 1) * spec.unit_bytes
    return places, block + 1


def _target(layers: dict[CacheSpec, list[int]], block_size: int) -> int:
    """Bytes that the layers of a group should have: those of the kind that needs fewest, so that
    little is padded; but at least one layer of each kind."""
    sizes = [spec.block_bytes(block_size) for spec in layers]
    totals = [size * len(part) for size, part in zip(sizes, layers.values(), strict=True)]
    smallest, largest = min(totals), max(totals)
    return largest if largest < NEARLY_EQUAL * smallest else max(smallest, *sizes)


def _split(indices: list[int], most: int) -> list[list[int]]:
    """Consecutive parts of at most `most`, of lengths that differ by at most one."""
    num_parts = -(-len(indices) // most)
    each, longer = divmod(len(indices), num_parts)
    ends = [each * i + min(i, longer) for i in range(num_parts + 1)]
    return [indices[a:b] for a, b in pairwise(ends)]
