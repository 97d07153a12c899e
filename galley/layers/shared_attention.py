"""Self-attention over the keys and values of an earlier layer (KV sharing)."""

from __future__ import annotations

import msgspec

from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.attention import projection_norm
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.norm import NormSpec
from galley.layers.rotary import Rotary
from galley.layers.weight_specs import Matrix, Part


class SharedAttentionSpec(msgspec.Struct, frozen=True):
    """A layer that has queries alone.

    Attributes:
        q, out, heads, scale, rotary, bias, q_norm: as in `AttentionSpec`.
        keys: name of the k projection of the earlier layer whose cache is read.
    """

    q: Part
    out: Part
    heads: int
    scale: float
    rotary: Rotary
    keys: str
    bias: bool = False
    q_norm: NormSpec | None = None

    def build(self, context: BuildContext) -> SharedAttention:
        return SharedAttention(self, context)


class SharedAttention:
    """x [T, hidden] → [T, hidden]; writes no cache."""

    def __init__(self, spec: SharedAttentionSpec, context: BuildContext) -> None:
        source, ranks = context.source, context.source.group.size
        if spec.heads % ranks:
            raise ModelError(f"{spec.heads} query heads cannot be shared by {ranks} ranks")
        self.layer = context.kv_layer_of(spec.keys)
        self.q = Linear(source, Matrix((spec.q,), "outputs"), spec.bias)
        self.out = Linear(source, Matrix((spec.out,), "inputs"), spec.bias)
        self.q_norm = projection_norm(source, spec.q_norm, self.layer.head_dim)
        self.rotary = context.rotary_table(spec.rotary)
        self._scale = spec.scale

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        q = self.q(ops, x)
        if self.q_norm is not None:
            q = self.q_norm(ops, q)
        q = ops.rope(q, ctx.positions, self.rotary, self.layer.head_dim)
        return self.out(ops, ops.attention(q, self.layer, self._scale, ctx))
