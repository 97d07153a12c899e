"""Self-attention with grouped KV heads, rotary positions and optional norms of q, k and v."""

from __future__ import annotations

import msgspec
import numpy as np

from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.distance_bias import DistanceBiasSpec
from galley.layers.linear import Linear
from galley.layers.norm import Norm, NormSpec
from galley.layers.rotary import Rotary
from galley.layers.weight_specs import Matrix, Part, Vector
from galley.layers.weights import WeightSource


class AttentionSpec(msgspec.Struct, frozen=True):
    """A whole attention layer, before it is shared over ranks.

    Attributes:
        q, k, v: projections [heads or kv_heads * head_dim, hidden].
        out: projection [hidden, heads * head_dim].
        scale: factor of the products of queries and keys.
        rotary: rotary embedding of q and k; None = no positions in this layer.
        q_rotary: another one of q; None = the same.
        window: tokens that a query sees, its own included; 0 = all before it.
        window_in_parts: the window does not slide: a query sees its part of the sequence alone.
        causal: False = a query sees its whole sequence, computed in one step (an encoder); a
            window then holds as many tokens behind it as before it.
        q_norm, k_norm, v_norm: before the rotation, of each head (`HeadNormSpec`) or of the whole
            projection; None = none.
        norm_after_rotary: q_norm and k_norm come after the rotation.
        soft_cap: scores are soft_cap * tanh(score / soft_cap); 0 = as they are.
        clip: q, k and v are clipped to [-clip, clip] as they are projected; 0 = as they are.
        gate: projection [heads * head_dim, hidden] whose sigmoid is a factor of what `out` reads;
            None = none.
        sinks: the tensor [heads] of a further score of each head; None = none.
        slopes: of each head, by which scores fall with distance (`layers.alibi`); None = none.
        biases: added to scores by distance; None = nothing.
    """

    q: Part
    k: Part
    v: Part
    out: Part
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rotary: Rotary | None
    window: int = 0
    causal: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    v_norm: NormSpec | None = None
    soft_cap: float = 0.0
    sinks: Part | None = None
    gate: Part | None = None
    slopes: tuple[float, ...] | None = None
    norm_after_rotary: bool = False
    q_rotary: Rotary | None = None
    window_in_parts: bool = False
    clip: float = 0.0
    biases: DistanceBiasSpec | None = None

    def build(self, context: BuildContext) -> Attention:
        return Attention(self, context)


class Attention:
    """x [T, hidden] → [T, hidden]; K and V of the step are written to the KV cache."""

    def __init__(self, spec: AttentionSpec, context: BuildContext) -> None:
        source, d, ranks = context.source, spec.head_dim, context.source.group.size
        if spec.heads % ranks or spec.kv_heads % ranks:
            raise ModelError(
                f"{spec.heads} query and {spec.kv_heads} KV heads cannot be shared by {ranks} ranks"
            )
        heads, kv_heads = spec.heads // ranks, spec.kv_heads // ranks
        parts = (
            (spec.q, spec.k, spec.v) if spec.gate is None else (spec.q, spec.k, spec.v, spec.gate)
        )
        self.qkv = Linear(source, Matrix(parts, "outputs"), spec.qkv_bias)
        self.out = Linear(source, Matrix((spec.out,), "inputs"), spec.out_bias)
        self.q_norm, self.k_norm, self.v_norm = (
            projection_norm(source, norm, d) for norm in (spec.q_norm, spec.k_norm, spec.v_norm)
        )
        self.rotary = None if spec.rotary is None else context.rotary_table(spec.rotary)
        self.q_rotary = self.rotary
        if spec.q_rotary is not None:
            self.q_rotary = context.rotary_table(spec.q_rotary)
        self.layer = context.add_kv_layer(
            kv_heads, d, spec.window, spec.causal, spec.k.name, spec.window_in_parts
        )
        self.sinks = None if spec.sinks is None else source.vector(Vector((spec.sinks,), cut=True))
        self.slopes = None
        if spec.slopes is not None:
            first = source.group.rank * heads
            slopes = np.array(spec.slopes[first : first + heads], np.float32)
            self.slopes = source.constant((heads,), lambda: slopes)
        self.biases = None if spec.biases is None else spec.biases.build(context)
        self._norm_last = spec.norm_after_rotary
        sizes = (heads * d, kv_heads * d, kv_heads * d)
        self._sizes = sizes if spec.gate is None else (*sizes, heads * d)
        self._scale, self._soft_cap, self._clip = spec.scale, spec.soft_cap, spec.clip

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        qkv = self.qkv(ops, x)
        if self._clip:
            qkv = ops.elementwise(qkv, "clip", limit=self._clip)
        q, k, v, *gate = ops.split(qkv, self._sizes)
        if not self._norm_last:
            q, k = self._normed(ops, q, k)
        if self.v_norm is not None:
            v = self.v_norm(ops, v)
        if self.q_rotary is not None:
            q = ops.rope(q, ctx.positions, self.q_rotary, self.layer.head_dim)
        if self.rotary is not None:
            k = ops.rope(k, ctx.positions, self.rotary, self.layer.head_dim)
        if self._norm_last:
            q, k = self._normed(ops, q, k)
        ops.write_kv(k, v, self.layer, ctx)
        attended = ops.attention(
            q, self.layer, self._scale, ctx, self.slopes, self._soft_cap, self.sinks, self.biases
        )
        if gate:
            attended = ops.gate(attended, gate[0], "sigmoid")
        return self.out(ops, attended)

    def _normed(self, ops: Ops, q: Value, k: Value) -> tuple[Value, Value]:
        if self.q_norm is not None:
            q = self.q_norm(ops, q)
        if self.k_norm is not None:
            k = self.k_norm(ops, k)
        return q, k


def projection_norm(source: WeightSource, spec: NormSpec | None, head_dim: int) -> Norm | None:
    """The norm of q, k or v. ModelError where ranks would have to share what it normalises."""
    if spec is None:
        return None
    if spec.size != head_dim and source.group.size > 1:
        raise ModelError(
            f"a norm over all heads together cannot be shared by {source.group.size} ranks"
        )
    return spec.build(source)
