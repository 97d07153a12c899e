"""Causal self-attention with grouped KV heads, rotary positions and an optional qk-norm."""

from __future__ import annotations

from dataclasses import dataclass

from galley.kernels.ops import ForwardContext, KVLayer, Ops, RotaryTable, Value
from galley.layers.linear import Linear
from galley.layers.norm import HeadNorm
from galley.layers.questions import Matrix, Part
from galley.layers.weights import WeightSource


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of a whole layer, before it is shared over ranks."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm_eps: float | None = None


class Attention:
    """x [T, hidden] → [T, hidden]; K and V of the step go to the cache.

    Args:
        prefix: names of the checkpoint's tensors begin so, "model.layers.0.self_attn".
        layer: this layer's part of the KV cache.
    """

    def __init__(
        self,
        source: WeightSource,
        prefix: str,
        shape: AttentionShape,
        rotary: RotaryTable,
        layer: KVLayer,
    ) -> None:
        d, ranks = shape.head_dim, source.group.size
        q, kv = shape.heads * d, shape.kv_heads * d
        qkv = [
            Part(f"{prefix}.{name}_proj", (n, shape.hidden))
            for name, n in (("q", q), ("k", kv), ("v", kv))
        ]
        out = Part(f"{prefix}.o_proj", (shape.hidden, q))
        self.qkv = Linear(source, Matrix(tuple(qkv), "outputs"), shape.qkv_bias)
        self.out = Linear(source, Matrix((out,), "inputs"), shape.out_bias)
        self.q_norm = self.k_norm = None
        if shape.qk_norm_eps is not None:
            self.q_norm = HeadNorm(source, f"{prefix}.q_norm", d, shape.qk_norm_eps)
            self.k_norm = HeadNorm(source, f"{prefix}.k_norm", d, shape.qk_norm_eps)
        self.rotary = rotary
        self.layer = layer
        self._sizes = (q // ranks, kv // ranks, kv // ranks)
        self._scale = d**-0.5

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        q, k, v = ops.split(self.qkv(ops, x), self._sizes)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(ops, q), self.k_norm(ops, k)
        q, k = ops.rotary(q, k, ctx.positions, self.rotary, self.layer.head_dim)
        ops.write_kv(k, v, self.layer, ctx)
        return self.out(ops, ops.attention(q, self.layer, self._scale, ctx))
