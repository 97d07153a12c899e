"""The only door to the kernels: every operation that a model may use.

`Ops` checks shapes and passes the work to a maker. A *value* is whatever the maker computes with:
a torch tensor where `reference.py` computes at once, a symbol while `recorder.py` writes down a
program. A model is written once against this door; it gets the `Ops` and a `ForwardContext` as
arguments and knows nothing of batches, caches, devices or number formats.

Shapes: T tokens of this step (all rows one after the other), L positions that yield logits,
H hidden size, Hq and Hkv query and KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Value(Protocol):
    """[rows, columns]; rows are known when a step runs, columns always."""

    @property
    def shape(self) -> Any: ...


class Weight(Protocol):
    """A matrix as its backend holds it, of logical shape [N outputs, K inputs]."""

    @property
    def shape(self) -> tuple[int, int]: ...


class Constant(Protocol):
    """Numbers that are no matrix of a linear layer: norm weights, biases, rotary tables."""

    @property
    def shape(self) -> Any: ...


@dataclass(frozen=True)
class KVLayer:
    """One layer's part of the KV cache.

    Attributes:
        index: place among the layers that this process holds, from 0.
        kv_heads, head_dim: shape of a token's K and V.
        window: how many last positions a query sees, its own included; 0 = all.
    """

    index: int
    kv_heads: int
    head_dim: int
    window: int = 0


@dataclass(frozen=True)
class RotaryTable:
    """Rotations by position: values [positions, rot_dim] float32, cos in the first half of a row,
    sin in the second. A head's element i is rotated with element i + rot_dim / 2."""

    values: Constant

    @property
    def rot_dim(self) -> int:
        return int(self.values.shape[1])


class ForwardContext(Protocol):
    """What a step is made of. Models read the three values and hand the rest on to `Ops`."""

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
    """The group of one."""

    rank = 0
    size = 1

    def all_reduce(self, x: Value) -> Value:
        return x


class OpBackend(Protocol):
    """Who computes or records; arguments are checked already. Methods as in `Ops`."""

    def embedding(self, weight: Any, token_ids: Any) -> Any: ...
    def linear(self, x: Any, weights: Sequence[Any], bias: Any | None) -> Any: ...
    def rms_norm(self, x: Any, weight: Any, eps: float) -> Any: ...
    def head_norm(self, x: Any, weight: Any, eps: float) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def split(self, x: Any, sizes: Sequence[int]) -> Sequence[Any]: ...
    def silu_and_mul(self, gate_up: Any, interleaved: bool) -> Any: ...
    def rotary(self, q: Any, k: Any, positions: Any, table: Any, head_dim: int) -> Any: ...
    def write_kv(self, k: Any, v: Any, layer: KVLayer, ctx: Any) -> None: ...
    def attention(self, q: Any, layer: KVLayer, scale: float, ctx: Any) -> Any: ...
    def select_rows(self, x: Any, index: Any) -> Any: ...


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _columns(what: str, x: Value, columns: int) -> None:
    _check(x.shape[-1] == columns, f"{what}: {x.shape[-1]} columns where {columns} are needed")


class Ops:
    """The operations. A wrong shape raises ValueError when the model is first run or recorded."""

    def __init__(self, backend: OpBackend, group: RankGroup | None = None) -> None:
        self._backend = backend
        self._group: RankGroup = group or SingleRank()

    def embedding(self, weight: Weight, token_ids: Value) -> Value:
        """[T, K]: row `token_ids[t]` of the [N, K] weight."""
        _check(len(weight.shape) == 2, f"embedding: a weight of shape {weight.shape}")
        return self._backend.embedding(weight, token_ids)

    def linear(self, x: Value, weights: Sequence[Weight], bias: Constant | None = None) -> Value:
        """[T, N]: x @ W.T + bias, where W is the rows of `weights` one below the other."""
        _check(len(weights) > 0, "linear: no weight")
        for weight in weights:
            _columns("linear", x, weight.shape[1])
        n = sum(weight.shape[0] for weight in weights)
        if bias is not None:
            given = tuple(bias.shape)
            _check(given == (n,), f"linear: a bias of shape {given} for {n} outputs")
        return self._backend.linear(x, weights, bias)

    def rms_norm(self, x: Value, weight: Constant, eps: float) -> Value:
        """[T, H]: x / sqrt(mean(x²) + eps) * weight, mean over a row."""
        _columns("rms_norm", x, weight.shape[0])
        return self._backend.rms_norm(x, weight, eps)

    def head_norm(self, x: Value, weight: Constant, eps: float) -> Value:
        """[T, heads * D]: `rms_norm` of each head by itself; weight [D]."""
        d = weight.shape[0]
        _check(x.shape[-1] % d == 0, f"head_norm: {x.shape[-1]} columns in heads of {d}")
        return self._backend.head_norm(x, weight, eps)

    def add(self, x: Value, y: Value) -> Value:
        """x + y. The maker may write the sum into x's memory: x must not be used afterwards."""
        _columns("add", y, x.shape[-1])
        return self._backend.add(x, y)

    def split(self, x: Value, sizes: Sequence[int]) -> Sequence[Value]:
        """Column ranges of x, of the given sizes, from left to right. Views, not copies."""
        _columns("split", x, sum(sizes))
        return self._backend.split(x, sizes)

    def silu_and_mul(self, gate_up: Value, interleaved: bool = False) -> Value:
        """[T, I]: silu(gate) * up, of [T, 2 I]: gate | up, or both in turn in runs of 16."""
        i = gate_up.shape[-1] // 2
        _check(gate_up.shape[-1] == 2 * i, "silu_and_mul: an odd number of columns")
        _check(not interleaved or i % GATE_UP_RUN == 0, f"silu_and_mul: {i} columns in runs")
        return self._backend.silu_and_mul(gate_up, interleaved)

    def rotary(
        self, q: Value, k: Value, positions: Value, table: RotaryTable, head_dim: int
    ) -> tuple[Value, Value]:
        """q [T, Hq * D] and k [T, Hkv * D], each head's first rot_dim elements rotated."""
        for name, x in (("q", q), ("k", k)):
            _check(x.shape[-1] % head_dim == 0, f"rotary: {name} is not whole heads of {head_dim}")
        _check(table.rot_dim <= head_dim, f"rotary: {table.rot_dim} of {head_dim} elements")
        rotated_q, rotated_k = self._backend.rotary(q, k, positions, table, head_dim)
        return rotated_q, rotated_k

    def write_kv(self, k: Value, v: Value, layer: KVLayer, ctx: ForwardContext) -> None:
        """Put the step's k and v [T, Hkv * D] into the cache at their tokens' positions."""
        _columns("write_kv", k, layer.kv_heads * layer.head_dim)
        _columns("write_kv", v, layer.kv_heads * layer.head_dim)
        self._backend.write_kv(k, v, layer, ctx)

    def attention(self, q: Value, layer: KVLayer, scale: float, ctx: ForwardContext) -> Value:
        """[T, Hq * D]: causal attention of q over the cache, this step's K and V included."""
        heads = layer.kv_heads * layer.head_dim
        _check(q.shape[-1] % heads == 0, f"attention: {q.shape[-1]} columns for {layer}")
        return self._backend.attention(q, layer, scale, ctx)

    def select_rows(self, x: Value, index: Value) -> Value:
        """[L, H]: rows `index` of x."""
        return self._backend.select_rows(x, index)

    def all_reduce(self, x: Value) -> Value:
        """The sum over the group's ranks; x itself in a group of one."""
        return self._group.all_reduce(x)


#: Interleaved gate and up columns alternate in runs of so many (docs/native_ops.md).
GATE_UP_RUN = 16
