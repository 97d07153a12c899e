"""Convolution over tokens: each output reads all channels of a few neighbouring tokens."""

from __future__ import annotations

import msgspec

from galley.kernels.ops import ForwardContext, Ops, Value
from galley.kernels.ops.elementwise import Function
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part


class TokenConvSpec(msgspec.Struct, frozen=True):
    """A convolution with a bias, and a function of its result. Sequences are computed in one step.

    Attributes:
        kernel: [outputs, inputs * taps], of an odd number of taps.
    """

    kernel: Part
    function: Function

    def build(self, context: BuildContext) -> TokenConv:
        return TokenConv(self, context)


class TokenConv:
    """x [T, inputs] → [T, outputs]"""

    def __init__(self, spec: TokenConvSpec, context: BuildContext) -> None:
        self.linear = Linear(context.source, Matrix((spec.kernel,)), True, adapted=False)
        self._taps, self._function = spec.kernel.taps, spec.function

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        window = ops.token_window(x, self._taps, ctx)
        return ops.elementwise(self.linear(ops, window), self._function)
