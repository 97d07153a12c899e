"""Layout of the KV cache: the group of each layer and its place in a block.

All groups share one pool of blocks, so their blocks have equal bytes:

    group 0, full     [ layer 0 | layer 6 | layer 12 ]
    group 1, window   [ layer 1 | layer 2 | layer 3  ]
    group 2, window   [ layer 4 | layer 5 | padding  ]

Layers of one cache (equal `CacheSpec`) form one group or, where other layers need fewer bytes,
several groups of about equal size. A model of equal layers has one group without padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from galley.batch import GroupSpec

#: Layers start at multiples of a cache line within a block.
ALIGNMENT = 64
#: Kinds of layers whose bytes differ by less than this factor get one group each.
NEARLY_EQUAL = 1.25


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """The cache of one layer.

    Attributes:
        kind: of the group, a key of `kv.groups.GROUPS`.
        token_bytes: bytes of each token (K and V).
        state_bytes: bytes of a block beside those of its tokens (a recurrent state).
        window: sliding window in tokens; 0 = none.
    """

    kind: str
    token_bytes: int = 0
    state_bytes: int = 0
    window: int = 0

    def block_bytes(self, block_size: int) -> int:
        """Bytes in one block of `block_size` tokens, rounded up to whole cache lines."""
        size = self.token_bytes * block_size + self.state_bytes
        return -(-size // ALIGNMENT) * ALIGNMENT


class Place(NamedTuple):
    """Where a layer's cache lies: in the blocks of `group`, from byte `offset` of each."""

    group: int
    offset: int


@dataclass(frozen=True, slots=True)
class KVLayout:
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


def plan_layout(specs: Iterable[CacheSpec], block_size: int) -> KVLayout:
    """Put layers into groups of about equal bytes."""
    layers: dict[CacheSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        layers.setdefault(spec, []).append(index)
    if not layers:
        return KVLayout([GroupSpec("full", block_size, 0)], [], 0, block_size)
    members = [
        (spec, part)
        for spec, indices in layers.items()
        for part in _split(indices, _target(layers, block_size) // spec.block_bytes(block_size))
    ]
    block_bytes = max(spec.block_bytes(block_size) * len(part) for spec, part in members)
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
    return KVLayout(groups, [places[i] for i in range(len(places))], block_bytes, block_size)


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
