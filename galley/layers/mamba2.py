"""The Mamba-2 block: a gated state space layer.

gate | x b c | dt = in_proj(h)
x b c = silu(conv(x b c))
out_proj(norm(scan(x, b, c, dt), gate))
"""

from __future__ import annotations

import msgspec
import numpy as np

from galley.kernels.ops import ForwardContext, Ops, Value
from galley.kernels.ops.causal_conv import conv_state
from galley.kernels.ops.ssd_scan import SSDParameters, ssd_state
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part, Vector


class Multipliers(msgspec.Struct, frozen=True):
    """Factors of what in_proj computes; `gate`, `x`, `b`, `c` and `dt` are parts of it."""

    gate: float = 1.0
    x: float = 1.0
    b: float = 1.0
    c: float = 1.0
    dt: float = 1.0


class Mamba2Spec(msgspec.Struct, frozen=True):
    """A Mamba-2 block.

    Attributes:
        name: what the names of its tensors begin with.
        heads, head_dim: the inner size is their product.
        groups: consecutive heads of a group share b and c, of `state_size` each.
        taps: tokens that the convolution sees.
        bias, conv_bias: of the projections; of the convolution.
        dt_limits: least and greatest time step.
        eps: of the gated norm; None = a gate without a norm.
        norm_groups: parts of the inner size that are normalised each by itself.
        gate_first: the norm is of the gated values.
        multipliers: of the parts of in_proj's result.
    """

    name: str
    hidden: int
    heads: int
    head_dim: int
    groups: int
    state_size: int
    taps: int
    bias: bool
    conv_bias: bool
    dt_limits: tuple[float, float]
    eps: float | None
    norm_groups: int
    gate_first: bool = True
    multipliers: Multipliers = Multipliers()

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    def build(self, context: BuildContext) -> Mamba2:
        return Mamba2(self, context)


class Mamba2:
    """x [T, hidden] → [T, hidden]; updates the states of the convolution and of the recurrence."""

    def __init__(self, spec: Mamba2Spec, context: BuildContext) -> None:
        source, name, heads, inner = context.source, spec.name, spec.heads, spec.inner
        context.require_one_rank("a Mamba-2 layer")
        bc = spec.groups * spec.state_size
        channels = inner + 2 * bc

        def vector(name: str, shape: tuple[int, ...]) -> Vector:
            return Vector((Part(f"{spec.name}.{name}", shape),))

        self._projected = (inner, channels, heads)
        self._convolved = (inner, bc, bc)
        projection = Part(f"{name}.in_proj", (inner + channels + heads, spec.hidden))
        self.in_proj = Linear(source, Matrix((projection,)), spec.bias)
        self.conv_weight = source.vector(vector("conv1d.weight", (channels, 1, spec.taps)))
        self.conv_bias = (
            source.vector(vector("conv1d.bias", (channels,))) if spec.conv_bias else None
        )
        self.conv_scale = None
        m = spec.multipliers
        if (m.x, m.b, m.c) != (1.0, 1.0, 1.0):
            self.conv_scale = source.constant(
                (channels,),
                lambda: np.repeat(np.array([m.x, m.b, m.c], np.float32), self._convolved),
            )
        self.conv_state = context.add_state(*conv_state(channels, spec.taps))
        self.parameters = SSDParameters(
            a_log=source.vector(vector("A_log", (heads,))),
            d=source.vector(vector("D", (heads,))),
            dt_bias=source.vector(vector("dt_bias", (heads,))),
            groups=spec.groups,
            dt_min=spec.dt_limits[0],
            dt_max=spec.dt_limits[1],
            dt_scale=m.dt,
            gate_scale=m.gate,
        )
        self.state = context.add_state(*ssd_state(heads, spec.head_dim, spec.state_size))
        self._eps, self._norm_groups, self._gate_first = spec.eps, spec.norm_groups, spec.gate_first
        self.norm = None
        if spec.eps is not None:
            self.norm = source.vector(vector("norm.weight", (inner,)))
        out = Part(f"{name}.out_proj", (spec.hidden, inner))
        self.out_proj = Linear(source, Matrix((out,)), spec.bias)

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        gate, xbc, dt = ops.split(self.in_proj(ops, x), self._projected)
        xbc = ops.causal_conv(
            xbc,
            self.conv_weight,
            self.conv_state,
            ctx,
            bias=self.conv_bias,
            scale=self.conv_scale,
            silu=True,
        )
        x, b, c = ops.split(xbc, self._convolved)
        if self.norm is None or self._eps is None:
            y = ops.ssd_scan(x, b, c, dt, self.parameters, self.state, ctx, gate)
        else:
            y = ops.ssd_scan(x, b, c, dt, self.parameters, self.state, ctx)
            y = ops.gated_norm(
                y,
                gate,
                self.norm,
                self._eps,
                groups=self._norm_groups,
                gate_first=self._gate_first,
                gate_scale=self.parameters.gate_scale,
            )
        return self.out_proj(ops, y)
