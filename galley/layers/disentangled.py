"""Disentangled attention (He et al., "DeBERTa").

Vectors of distances are projected as queries and keys when the model is built; a token's score of
another one has, besides the usual product, those of its query with the distance's key and of the
other's key with the distance's query.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops import Constant, ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part, Vector

F32 = NDArray[np.float32]


class DistancesSpec(msgspec.Struct, frozen=True):
    """The vectors of distances, one for each bucket: 2 span of them.

    Attributes:
        table: [2 span, hidden].
        norm, eps: name and epsilon of the layer norm that they go through; "" = none.
        buckets: how many there are on each side, of which half are of one distance each; 0 = as
            many as distances.
        most: distances on each side that buckets tell apart.
        reach: the longest distance.
    """

    table: Part
    norm: str
    eps: float
    buckets: int
    most: int
    reach: int

    def rows(self) -> NDArray[np.int32]:
        """[2 reach + 1] row of the table by distance of the query from the key, from -reach on."""
        distance = np.arange(-self.reach, self.reach + 1)
        if self.buckets:
            distance = _bucket(distance, self.buckets, self.most)
        span = self.table.num_rows // 2
        return np.clip(distance + span, 0, 2 * span - 1).astype(np.int32)


def _bucket(distance: NDArray[np.int64], buckets: int, most: int) -> NDArray[np.int64]:
    """As transformers' make_log_bucket_position, in float32: borders depend on it."""
    middle = buckets // 2
    far = np.where(np.abs(distance) < middle, middle - 1, np.abs(distance)).astype(np.float32)
    ratio = np.log(far / np.float32(middle)) / np.log(np.float32((most - 1) / middle))
    wide = np.ceil(ratio * np.float32(middle - 1)) + middle
    result: NDArray[np.int64] = np.where(far <= middle, distance, wide * np.sign(distance)).astype(
        np.int64
    )
    return result


class DisentangledSpec(msgspec.Struct, frozen=True):
    """An attention layer whose rows see their whole sequence.

    Attributes:
        q, k, v, out: projections [hidden, hidden], each with a bias.
        distance_q, distance_k: those of the vectors of distances, with a bias; None = scores have
            no such term.
    """

    q: Part
    k: Part
    v: Part
    out: Part
    heads: int
    distances: DistancesSpec
    distance_q: Part | None
    distance_k: Part | None
    causal: ClassVar[bool] = False

    def build(self, context: BuildContext) -> Disentangled:
        return Disentangled(self, context)


class Disentangled:
    """x [T, hidden] → [T, hidden]. Nothing is kept; the cache of the layer stays unused."""

    def __init__(self, spec: DisentangledSpec, context: BuildContext) -> None:
        context.require_one_rank("disentangled attention")
        source = context.source
        # Adapters of projections that distances share would change their vectors, too.
        shared = {spec.distance_q, spec.distance_k} & {spec.q, spec.k}
        self.qk = Linear(source, Matrix((spec.q, spec.k), "outputs"), True, adapted=not shared)
        self.v = Linear(source, Matrix((spec.v,), "outputs"), True)
        self.out = Linear(source, Matrix((spec.out,), "inputs"), True)
        head_dim = spec.q.num_rows // spec.heads
        context.add_kv_layer(spec.heads, head_dim, 0, causal=False)
        terms = (spec.distance_q, spec.distance_k)
        self._scale = 1 / math.sqrt(head_dim * (1 + sum(term is not None for term in terms)))
        self._heads, self._size = spec.heads, spec.q.num_rows
        self._rows = spec.distances.rows()
        self._queries, self._keys = (_projected(spec.distances, term, context) for term in terms)

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        q, k = ops.split(self.qk(ops, x), (self._size, self._size))
        v = self.v(ops, x)
        attended = ops.disentangled_attention(
            *(q, k, v, self._heads, self._scale, self._rows, self._keys, self._queries, ctx)
        )
        return self.out(ops, attended)


def _projected(
    distances: DistancesSpec, projection: Part | None, context: BuildContext
) -> Constant | None:
    """[2 span, heads * head_dim] of the vectors of distances."""
    if projection is None:
        return None
    source, table = context.source, distances.table

    def vector(name: str, shape: tuple[int, ...]) -> F32:
        return np.asarray(source.vector(Vector((Part(name, shape),))), np.float32)

    rows = vector(f"{table.name}.weight", table.shape)
    norm = None
    if distances.norm:
        norm = [vector(f"{distances.norm}.{end}", table.shape[1:]) for end in ("weight", "bias")]
    weight = vector(f"{projection.name}.weight", projection.shape)
    bias = vector(f"{projection.name}.bias", projection.shape[:1])

    def compute() -> F32:
        x = rows
        if norm is not None:
            centred = x - x.mean(axis=1, keepdims=True)
            variance = np.square(centred).mean(axis=1, keepdims=True)
            x = centred / np.sqrt(variance + np.float32(distances.eps)) * norm[0] + norm[1]
        return cast(F32, x @ weight.T + bias)

    return source.constant((table.num_rows, projection.num_rows), compute)
