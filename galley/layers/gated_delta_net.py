"""The gated delta net of Qwen3-Next: a state that is corrected by what it holds under a key.

q | k | v | z = in_proj(h);   b | a = in_proj(h)
q k v = silu(conv(q k v))
out_proj(norm(delta_rule(q, k, v, a, b)) * silu(z))
"""

from __future__ import annotations

import msgspec

from galley.kernels.ops import ForwardContext, Ops, Value
from galley.kernels.ops.causal_conv import conv_state
from galley.kernels.ops.gated_delta_rule import delta_state
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part, Vector


class GatedDeltaNetSpec(msgspec.Struct, frozen=True):
    """A gated delta net.

    Attributes:
        name: what the names of its tensors begin with.
        qkvz: the tensors of q, k (key_heads * keys outputs each), v and z (heads * values each).
        ba: those of b and a, `heads` outputs each.
        in_turn: value head h belongs to key head h % key_heads; otherwise consecutive ones share.
        taps: tokens that the convolution sees.
        eps: of the norm of each head.
    """

    name: str
    hidden: int
    qkvz: tuple[Part, ...]
    ba: tuple[Part, ...]
    key_heads: int
    heads: int
    keys: int
    values: int
    taps: int
    eps: float
    in_turn: bool = False

    def build(self, context: BuildContext) -> GatedDeltaNet:
        return GatedDeltaNet(self, context)


class GatedDeltaNet:
    """x [T, hidden] → [T, hidden]; updates the states of the convolution and of the recurrence."""

    def __init__(self, spec: GatedDeltaNetSpec, context: BuildContext) -> None:
        source, name, heads = context.source, spec.name, spec.heads
        context.require_one_rank("a gated delta net")
        key, value = spec.key_heads * spec.keys, heads * spec.values
        channels = 2 * key + value

        def vector(name: str, *shape: int) -> Vector:
            return Vector((Part(f"{spec.name}.{name}", shape),))

        self.in_qkvz = Linear(source, Matrix(spec.qkvz))
        self.in_ba = Linear(source, Matrix(spec.ba))
        self.conv_weight = source.vector(vector("conv1d.weight", channels, 1, spec.taps))
        self.conv_state = context.add_state(*conv_state(channels, spec.taps))
        self.a_log = source.vector(vector("A_log", heads))
        self.dt_bias = source.vector(vector("dt_bias", heads))
        self.state = context.add_state(*delta_state(heads, spec.keys, spec.values))
        norm = Part(f"{name}.norm.weight", (spec.values,))
        self.norm = source.vector(Vector((norm,) * heads))
        out = Part(f"{name}.out_proj", (spec.hidden, value))
        self.out_proj = Linear(source, Matrix((out,)))
        self._projected, self._convolved = (channels, value), (key, key, value)
        self._key_heads, self._heads, self._eps = spec.key_heads, heads, spec.eps
        self._in_turn = spec.in_turn

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        qkv, z = ops.split(self.in_qkvz(ops, x), self._projected)
        b, a = ops.split(self.in_ba(ops, x), (self._heads, self._heads))
        qkv = ops.causal_conv(qkv, self.conv_weight, self.conv_state, ctx, silu=True)
        q, k, v = ops.split(qkv, self._convolved)
        y = ops.gated_delta_rule(
            q,
            k,
            v,
            a,
            b,
            self.a_log,
            self.dt_bias,
            self._key_heads,
            self.state,
            ctx,
            self._in_turn,
        )
        y = ops.gated_norm(y, z, self.norm, self._eps, groups=self._heads)
        return self.out_proj(ops, y)
