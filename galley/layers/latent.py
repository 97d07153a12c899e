"""Multi-head latent attention: keys and values of all heads are made of one latent per token.

    latent | rotated part = kv_down x          the cache holds these, once for all heads
    k_h = [K_h latent, rotated part]           v_h = V_h latent

The projections K_h and V_h are moved to the other side of the products (absorbed), so that the
attention itself reads the cache alone:

    q_h . k_h = (K_h^T q_h) . latent + q'_h . rotated part
    sum_t p_t v_h,t = V_h sum_t p_t latent_t

All rows are computed so, prompts as well, which takes more arithmetic for long prompts than making
k_h and v_h of all tokens would: with two ways to compute a row, its bits would depend on how the
prompt is cut into chunks.
"""

from __future__ import annotations

import msgspec

from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.norm import NormSpec
from galley.layers.rotary import Rotary
from galley.layers.weight_specs import Matrix, Part


class LatentAttentionSpec(msgspec.Struct, frozen=True):
    """Sizes and tensors.

    Attributes:
        q_down, q_norm: the latent of queries, [rank of q, hidden], and its norm; None = none.
        q: queries [heads * (nope + rope), rank of q or hidden].
        kv_down: [rank + rope, hidden].
        kv_norm: of the latent.
        kv_up: K_h and V_h by head, [heads * (nope + value), rank].
        out: [hidden, heads * value].
        nope, rope: elements of a query and key that are not rotated, and those that are.
        scale: factor of the products of queries and keys.
        down_bias: q_down and kv_down have biases.
    """

    q_down: Part | None
    q_norm: NormSpec | None
    q: Part
    kv_down: Part
    kv_norm: NormSpec
    kv_up: Part
    out: Part
    heads: int
    rank: int
    nope: int
    rope: int
    value: int
    scale: float
    rotary: Rotary
    down_bias: bool = False
    out_bias: bool = False

    def build(self, context: BuildContext) -> LatentAttention:
        return LatentAttention(self, context)


class LatentAttention:
    """x [T, hidden] → [T, hidden]; the step's latents are written to the cache."""

    def __init__(self, spec: LatentAttentionSpec, context: BuildContext) -> None:
        source = context.source
        context.require_one_rank("latent attention")
        heads, each = spec.heads, spec.nope + spec.rope
        # Of all heads what is not rotated, then what is.
        nope = Part(spec.q.name, spec.q.shape, (0, spec.nope), every=each)
        rope = Part(spec.q.name, spec.q.shape, (spec.nope, each), every=each)
        self.q_down = (
            None if spec.q_down is None else Linear(source, Matrix((spec.q_down,)), spec.down_bias)
        )
        self.q_norm = None if spec.q_norm is None else spec.q_norm.build(source)
        self.q = Linear(source, Matrix((nope, rope)))
        self.kv_down = Linear(source, Matrix((spec.kv_down,)), spec.down_bias)
        self.kv_norm = spec.kv_norm.build(source)
        up, step = spec.kv_up, spec.nope + spec.value
        # GGUF files may have the two apart, of each head.
        prefix = up.name.removesuffix("kv_b_proj")
        k_b = Part(f"{prefix}k_b_proj.{{}}", (spec.rank, spec.nope))
        v_b = Part(f"{prefix}v_b_proj.{{}}", (spec.value, spec.rank))
        keys = Part(up.name, up.shape, (0, spec.nope), by_expert=step, turned=True, otherwise=k_b)
        values = Part(up.name, up.shape, (spec.nope, step), by_expert=step, otherwise=v_b)
        self.keys = source.matrix(Matrix((keys,), experts=heads, dense=True))
        self.values = source.matrix(Matrix((values,), experts=heads, dense=True))
        self.out = Linear(source, Matrix((spec.out,)), spec.out_bias)
        self.rotary = context.rotary_table(spec.rotary)
        self.layer = context.add_latent_layer(spec.rank, spec.rope, spec.kv_down.name)
        self._q_sizes = (heads * spec.nope, heads * spec.rope)
        self._scale = spec.scale

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        layer, q = self.layer, x
        if self.q_down is not None:
            q = self.q_down(ops, q)
        if self.q_norm is not None:
            q = self.q_norm(ops, q)
        q_nope, q_rope = ops.split(self.q(ops, q), self._q_sizes)
        latent, k_rope = ops.split(self.kv_down(ops, x), (layer.rank, layer.rope_dim))
        k_rope = ops.rope(k_rope, ctx.positions, self.rotary, layer.rope_dim)
        ops.write_latent(self.kv_norm(ops, latent), k_rope, layer, ctx)
        q_rope = ops.rope(q_rope, ctx.positions, self.rotary, layer.rope_dim)
        q_latent = ops.head_linear(q_nope, self.keys)
        attended = ops.latent_attention(q_latent, q_rope, layer, self._scale, ctx)
        return self.out(ops, ops.head_linear(attended, self.values))
