"""Types that models, ops and backends share: values, weights, KV layers, the context of a step.

Shapes: T tokens of this step (all rows one after the other), L positions that yield logits,
H hidden size, Hq and Hkv query and KV heads, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from galley.kv.format import KVFormat
from galley.kv.layout import CacheSpec


class Value(Protocol):
    """[rows, columns]; the number of rows is known when a step runs, that of columns always."""

    @property
    def shape(self) -> Any: ...


class Weight(Protocol):
    """A matrix in its backend's format, of logical shape [N outputs, K inputs]."""

    @property
    def shape(self) -> tuple[int, int]: ...


class Constant(Protocol):
    """Float32 numbers that are not a matrix: norm weights, biases, rotary tables."""

    @property
    def shape(self) -> Any: ...


class KVLayer(msgspec.Struct, frozen=True):
    """One layer's part of the KV cache.

    Attributes:
        index: place among the layers that this process holds, from 0.
        kv_heads, head_dim: shape of a token's K and V.
        window: how many last positions a query sees, its own included; 0 = all.
        causal: a query sees its own position and those before it; otherwise all positions of its
            sequence, which must then be computed in one step, and there is no window.
        in_parts: the window does not slide: a query sees the part of the sequence, of so many
            tokens, that it is in, up to its own position.
        k_scale, v_scale: of numbers of eight bits without scales of their own.
        number: of the layer in the model; -1 = it belongs to another one, which drafts.
    """

    index: int
    kv_heads: int
    head_dim: int
    window: int = 0
    causal: bool = True
    in_parts: bool = False
    k_scale: float = 1.0
    v_scale: float = 1.0
    number: int = -1

    def cache(self, numbers: KVFormat) -> CacheSpec:
        """Size of the layer's cache per token."""
        numbers = numbers.of(self.number)
        head_bytes = self.head_dim * numbers.itemsize + numbers.scale_bytes
        return CacheSpec(
            kind="window" if self.window else "full",
            token_bytes=2 * self.kv_heads * head_bytes,
            window=self.window,
        )


class LatentLayer(msgspec.Struct, frozen=True):
    """The KV cache of a layer with multi-head latent attention: one key of each token, for all
    heads, of which a part is the value too.

    Attributes:
        index: place among the caches that this process holds, from 0.
        rank: elements of the latent.
        rope_dim: elements of the rotated part.
        k_scale: of numbers of eight bits.
        number: of the layer in the model; -1 as in `KVLayer`.
    """

    index: int
    rank: int
    rope_dim: int
    k_scale: float = 1.0
    number: int = -1

    @property
    def head_dim(self) -> int:
        return self.rank + self.rope_dim

    def cache(self, numbers: KVFormat) -> CacheSpec:
        """Size of the layer's cache per token."""
        return CacheSpec("full", token_bytes=self.head_dim * numbers.of(self.number).itemsize)


class StateLayer(msgspec.Struct, frozen=True):
    """A recurrent state of one layer: float32, of one size whatever the number of tokens.

    Attributes:
        index: place among the caches that this process holds, from 0.
        units: parts that are stored and updated each by itself (heads, runs of channels).
        unit_size: numbers of a unit.
    """

    index: int
    units: int
    unit_size: int

    def cache(self, numbers: KVFormat) -> CacheSpec:
        """The state's bytes; the numbers of keys and values do not matter."""
        return CacheSpec("state", units=self.units, unit_bytes=4 * self.unit_size)


#: A layer's data that lasts from one step of a sequence to the next.
CacheLayer = KVLayer | LatentLayer | StateLayer


class RotaryTable(msgspec.Struct, frozen=True):
    """Rotations by position.

    Attributes:
        values: [positions, rot_dim] float32, cos in the first half of a row, sin in the second.
        interleaved: a head's element 2 i is rotated with element 2 i + 1; otherwise element i
            with element i + rot_dim / 2.
    """

    values: Constant
    interleaved: bool = False

    @property
    def rot_dim(self) -> int:
        return int(self.values.shape[1])


class ForwardContext(Protocol):
    """The inputs of a step. Models read the three values and pass the context on to `Ops`."""

    @property
    def token_ids(self) -> Value:
        """[T] int32"""

    @property
    def positions(self) -> Value:
        """[axes, T] int32, absolute; one axis for text."""

    @property
    def logit_index(self) -> Value:
        """[L] int32, index among the step's tokens"""


class RankGroup(Protocol):
    """Ranks that share a layer. `all_reduce` sums a value over them in a fixed order."""

    rank: int
    size: int

    def all_reduce(self, x: Value) -> Value: ...


class SingleRank:
    """A group of one rank."""

    rank = 0
    size = 1

    def all_reduce(self, x: Value) -> Value:
        return x
