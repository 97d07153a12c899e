"""The gated short convolution of LFM2: out(c * conv(b * x)) with b | c | x = in_proj(h)."""

from __future__ import annotations

import msgspec

from galley.kernels.ops import ForwardContext, Ops, Value
from galley.kernels.ops.causal_conv import conv_state
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part, Vector


class ShortConvSpec(msgspec.Struct, frozen=True):
    """A short convolution.

    Attributes:
        name: what the names of its tensors begin with.
        taps: tokens that the convolution sees.
        bias: of the projections and the convolution.
    """

    name: str
    hidden: int
    taps: int
    bias: bool

    def build(self, context: BuildContext) -> ShortConv:
        return ShortConv(self, context)


class ShortConv:
    """x [T, hidden] → [T, hidden]; updates the state of the convolution."""

    def __init__(self, spec: ShortConvSpec, context: BuildContext) -> None:
        source, name, h = context.source, spec.name, spec.hidden
        context.require_one_rank("a short convolution")
        self.in_proj = Linear(source, Matrix((Part(f"{name}.in_proj", (3 * h, h)),)), spec.bias)
        self.weight = source.vector(Vector((Part(f"{name}.conv.weight", (h, 1, spec.taps)),)))
        self.bias = None
        if spec.bias:
            self.bias = source.vector(Vector((Part(f"{name}.conv.bias", (h,)),)))
        self.out_proj = Linear(source, Matrix((Part(f"{name}.out_proj", (h, h)),)), spec.bias)
        self.state = context.add_state(*conv_state(h, spec.taps))
        self._sizes = (h, h, h)

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        b, c, x = ops.split(self.in_proj(ops, x), self._sizes)
        y = ops.causal_conv(x, self.weight, self.state, ctx, bias=self.bias, before=b, after=c)
        return self.out_proj(ops, y)
