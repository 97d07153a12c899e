"""The Mamba-1 block: a selective state space for each channel.

x | gate = in_proj(h);   x = silu(conv(x))
dt | b | c = x_proj(x);  out_proj(scan(x, dt_proj(norm(dt)), norm(b), norm(c)) * silu(gate))
"""

from __future__ import annotations

import msgspec

from galley.kernels.ops import ForwardContext, Ops, Value
from galley.kernels.ops.causal_conv import conv_state
from galley.kernels.ops.selective_scan import scan_state
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Matrix, Part, Vector, fuse


class MambaSpec(msgspec.Struct, frozen=True):
    """A Mamba-1 block.

    Attributes:
        name: what the names of its tensors begin with.
        inner: channels.
        rank: columns that the time steps are projected from.
        taps: tokens that the convolution sees.
        bias, conv_bias: of the projections; of the convolution.
        norm_eps: of the norms of dt, b and c; None = no norms.
        norm_weights: the norms have weights: dt_layernorm, b_layernorm and c_layernorm.
    """

    name: str
    hidden: int
    inner: int
    state_size: int
    rank: int
    taps: int
    bias: bool
    conv_bias: bool
    norm_eps: float | None = None
    norm_weights: bool = False

    def build(self, context: BuildContext) -> Mamba:
        return Mamba(self, context)


class Mamba:
    """x [T, hidden] → [T, hidden]; updates the states of the convolution and of the recurrence."""

    def __init__(self, spec: MambaSpec, context: BuildContext) -> None:
        source, name, inner, size = context.source, spec.name, spec.inner, spec.state_size
        context.require_one_rank("a Mamba layer")

        def linear(*parts: Part, bias: bool) -> Linear:
            return Linear(source, Matrix(parts), bias)

        def vector(name: str, *shape: int) -> Vector:
            return Vector((Part(f"{spec.name}.{name}", shape),))

        self.in_proj = linear(Part(f"{name}.in_proj", (2 * inner, spec.hidden)), bias=spec.bias)
        self.conv_weight = source.vector(vector("conv1d.weight", inner, 1, spec.taps))
        self.conv_bias = source.vector(vector("conv1d.bias", inner)) if spec.conv_bias else None
        self.conv_state = context.add_state(*conv_state(inner, spec.taps))
        dt, b, c = fuse(f"{name}.x_proj", [Part("", (n, inner)) for n in (spec.rank, size, size)])
        self.dt_low = linear(dt, bias=False)
        self.bc = linear(b, c, bias=False)
        self.dt_proj = linear(Part(f"{name}.dt_proj", (inner, spec.rank)), bias=True)
        self.norms = None
        if spec.norm_eps is not None:
            self.norms = [
                RMSNormSpec(
                    f"{name}.{part}_layernorm" if spec.norm_weights else None, n, spec.norm_eps
                ).build(source)
                for part, n in (("dt", spec.rank), ("b", size), ("c", size))
            ]
        self.a_log = source.vector(vector("A_log", inner, size))
        self.d = source.vector(vector("D", inner))
        self.state = context.add_state(*scan_state(inner, size))
        self.out_proj = linear(Part(f"{name}.out_proj", (spec.hidden, inner)), bias=spec.bias)
        self._inner, self._size = inner, size

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        x, gate = ops.split(self.in_proj(ops, x), (self._inner, self._inner))
        x = ops.causal_conv(
            x, self.conv_weight, self.conv_state, ctx, bias=self.conv_bias, silu=True
        )
        dt = self.dt_low(ops, x)
        b, c = ops.split(self.bc(ops, x), (self._size, self._size))
        if self.norms is not None:
            dt, b, c = (norm(ops, v) for norm, v in zip(self.norms, (dt, b, c), strict=True))
        dt = self.dt_proj(ops, dt)
        y = ops.selective_scan(x, dt, b, c, self.a_log, self.d, self.state, ctx, gate)
        return self.out_proj(ops, y)
