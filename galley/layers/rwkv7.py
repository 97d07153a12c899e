"""The two blocks of RWKV-7: time mixing, a state corrected by what it holds, and channel mixing.

Each reads a mixture of a token's vector and that of the token before it, x + (before - x) * m: a
causal convolution of two taps.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.kernels.ops.causal_conv import conv_state
from galley.kernels.ops.elementwise import Function
from galley.kernels.ops.gated_delta_rule import delta_state
from galley.kernels.ops.wkv7 import Wkv7Parameters
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part, Vector


class FirstValue:
    """The v of the first layer, which the other layers of a pass read."""

    value: Any = None


class Shift:
    """x [T, hidden] → x + (the token before - x) * m; m is the tensor `name`."""

    def __init__(
        self, context: BuildContext, name: str, hidden: int, shape: tuple[int, ...]
    ) -> None:
        mixing = np.asarray(context.source.vector(Vector((Part(name, shape),))), np.float32)

        def taps() -> NDArray[np.float32]:
            flat = mixing.reshape(hidden)
            return np.stack([flat, 1 - flat], -1)[:, None]

        self.weight = context.source.constant((hidden, 1, 2), taps)
        self.state = context.add_state(*conv_state(hidden, 2))

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        return ops.causal_conv(x, self.weight, self.state, ctx)


class LowRank:
    """x → up(act(down(x))) + bias."""

    def __init__(
        self,
        context: BuildContext,
        name: str,
        hidden: int,
        rank: int,
        activation: Function | None,
        bias: bool = True,
    ) -> None:
        source = context.source
        self.down = Linear(source, Matrix((Part(f"{name}.lora.0", (rank, hidden)),)))
        self.up = Linear(source, Matrix((Part(f"{name}.lora.2", (hidden, rank)),)), bias)
        self._activation = activation

    def __call__(self, ops: Ops, x: Value) -> Value:
        low = self.down(ops, x)
        if self._activation is not None:
            low = ops.elementwise(low, self._activation)
        return self.up(ops, low)


class Ranks(msgspec.Struct, frozen=True):
    """Sizes of the projections of decay, rate, mixture of values, and gate."""

    w: int
    a: int
    v: int
    g: int


class TimeMixSpec(msgspec.Struct, frozen=True):
    """The block that looks at other tokens.

    Attributes:
        name: what the names of its tensors begin with.
        first: shared by the layers of a model.
        is_first: whether this is the layer whose v the others mix with theirs.
        eps: of the norm of each head.
    """

    name: str
    hidden: int
    heads: int
    ranks: Ranks
    eps: float
    first: FirstValue
    is_first: bool

    def build(self, context: BuildContext) -> TimeMix:
        return TimeMix(self, context)


class TimeMix:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: TimeMixSpec, context: BuildContext) -> None:
        source, h, name, ranks = context.source, spec.hidden, spec.name, spec.ranks
        context.require_one_rank("an RWKV-7 layer")

        def vector(part: str, *shape: int) -> Any:
            return source.vector(Vector((Part(f"{name}.{part}", shape or (h,)),)))

        def square(part: str) -> Linear:
            return Linear(source, Matrix((Part(f"{name}.{part}", (h, h)),)))

        self.shifts = {part: Shift(context, f"{name}.x_{part}", h, (1, 1, h)) for part in "rwkvag"}
        self.r, self.k, self.v, self.out = (square(f"{part}_proj") for part in "rkvo")
        self.w = LowRank(context, f"{name}.w_lora", h, ranks.w, "tanh")
        self.a = LowRank(context, f"{name}.a_lora", h, ranks.a, None)
        self.g = LowRank(context, f"{name}.g_lora", h, ranks.g, "sigmoid", bias=False)
        self.mix = None
        if not spec.is_first:
            self.mix = LowRank(context, f"{name}.v_lora", h, ranks.v, None)
        size = h // spec.heads
        self.parameters = Wkv7Parameters(
            k_k=vector("k_k"),
            k_a=vector("k_a"),
            r_k=vector("r_k", spec.heads, size),
            weight=vector("g_norm.weight"),
            bias=vector("g_norm.bias"),
            eps=size * spec.eps,
            heads=spec.heads,
        )
        self.state = context.add_state(*delta_state(spec.heads, size, size))
        self._first = spec.first

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        mixed = {part: shift(ops, x, ctx) for part, shift in self.shifts.items()}
        v = self.v(ops, mixed["v"])
        first = mix = None
        if self.mix is None:
            self._first.value = v
        else:
            first, mix = self._first.value, self.mix(ops, mixed["v"])
            if first is None:
                raise ModelError("RWKV-7 needs its first layer in the same process")
        y = ops.wkv7(
            self.r(ops, mixed["r"]),
            self.w(ops, mixed["w"]),
            self.k(ops, mixed["k"]),
            v,
            self.a(ops, mixed["a"]),
            self.parameters,
            self.state,
            ctx,
            first,
            mix,
        )
        return self.out(ops, ops.gate(y, self.g(ops, mixed["g"]), "identity"))


class ChannelMixSpec(msgspec.Struct, frozen=True):
    """value(relu(key(shifted x))²), as a block that looks at the token before."""

    name: str
    hidden: int
    intermediate: int

    def build(self, context: BuildContext) -> ChannelMix:
        return ChannelMix(self, context)


class ChannelMix:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: ChannelMixSpec, context: BuildContext) -> None:
        source, h, n = context.source, spec.hidden, spec.intermediate
        self.shift = Shift(context, f"{spec.name}.x_k", h, (h,))
        self.key = Linear(source, Matrix((Part(f"{spec.name}.key", (n, h)),)))
        self.value = Linear(source, Matrix((Part(f"{spec.name}.value", (h, n)),)))

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        return self.value(ops, ops.elementwise(self.key(ops, self.shift(ops, x, ctx)), "relu2"))
