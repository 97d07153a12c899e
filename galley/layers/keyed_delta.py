"""Kimi delta attention: a gated delta net with a decay of each key.

q | k | v = silu(conv(in_proj(h)));   a = decay(h);   b = rate(h);   z = gate(h)
out_proj(norm(delta_rule(q, k, v, a, b)) * sigmoid(z))
"""

from __future__ import annotations

import msgspec
import numpy as np

from galley.kernels.ops import ForwardContext, Ops, Value
from galley.kernels.ops.causal_conv import conv_state
from galley.kernels.ops.gated_delta_rule import delta_state
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.norm import HeadNormSpec
from galley.layers.weight_specs import Matrix, Part, Vector


class KeyedDeltaSpec(msgspec.Struct, frozen=True):
    """Sizes of a block.

    Attributes:
        name: what the names of its tensors begin with.
        head_dim: of queries, keys and values, and rank of the projections of decay and gate.
        taps: tokens that the convolutions see.
        eps: of the norm of each head.
    """

    name: str
    hidden: int
    heads: int
    head_dim: int
    taps: int
    eps: float

    def build(self, context: BuildContext) -> KeyedDelta:
        return KeyedDelta(self, context)


class KeyedDelta:
    """x [T, hidden] → [T, hidden]; updates the states of the convolution and of the recurrence."""

    def __init__(self, spec: KeyedDeltaSpec, context: BuildContext) -> None:
        source, name, heads, d = context.source, spec.name, spec.heads, spec.head_dim
        context.require_one_rank("Kimi delta attention")
        size = heads * d

        def linear(*parts: tuple[str, int, int]) -> Linear:
            shaped = tuple(Part(f"{name}.{part}", (n, k)) for part, n, k in parts)
            return Linear(source, Matrix(shaped))

        h = spec.hidden
        self.qkv = linear(*((f"{part}_proj", size, h) for part in "qkv"))
        self.decay = linear(("f_a_proj", d, h)), linear(("f_b_proj", size, d))
        self.gate = linear(("g_a_proj", d, h)), linear(("g_b_proj", size, d))
        self.rate = linear(("b_proj", heads, h))
        taps = tuple(Part(f"{name}.{part}_conv1d.weight", (size, 1, spec.taps)) for part in "qkv")
        self.conv_weight = source.vector(Vector(taps))
        self.conv_state = context.add_state(*conv_state(3 * size, spec.taps))
        stored = source.vector(Vector((Part(f"{name}.A_log", (1, 1, heads, 1)),)))
        a_log = np.asarray(stored, np.float32)
        self.a_log = source.constant((heads,), lambda: a_log.reshape(heads))
        self.dt_bias = source.vector(Vector((Part(f"{name}.dt_bias", (size,)),)))
        self.state = context.add_state(*delta_state(heads, d, d))
        self.norm = HeadNormSpec(f"{name}.o_norm", d, spec.eps).build(source)
        self.out_proj = linear(("o_proj", h, size))
        self._qkv, self._heads = (size, size, size), heads

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        qkv = ops.causal_conv(self.qkv(ops, x), self.conv_weight, self.conv_state, ctx, silu=True)
        q, k, v = ops.split(qkv, self._qkv)
        decay, gate = (up(ops, down(ops, x)) for down, up in (self.decay, self.gate))
        y = ops.gated_delta_rule(
            q,
            k,
            v,
            decay,
            self.rate(ops, x),
            self.a_log,
            self.dt_bias,
            self._heads,
            self.state,
            ctx,
        )
        return self.out_proj(ops, ops.gate(self.norm(ops, y), gate, "sigmoid"))
