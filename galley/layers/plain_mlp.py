"""The feed-forward block without a gate: down(act(up(x)))."""

from __future__ import annotations

from typing import Literal

import msgspec

from galley.kernels.ops import Ops, Value
from galley.kernels.ops.elementwise import Function
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part, Vector


class PlainMLPSpec(msgspec.Struct, frozen=True):
    """A plain MLP: up [intermediate, hidden], down [hidden, intermediate].

    Attributes:
        activation: of `ops.elementwise`; quick_gelu is x * sigmoid(1.702 x).
        parameters: tensors of the activation's parameters, one after the other; () = none.
    """

    up: Part
    down: Part
    activation: Function | Literal["quick_gelu"]
    bias: bool = False
    parameters: tuple[Part, ...] = ()

    def build(self, context: BuildContext) -> PlainMLP:
        return PlainMLP(self, context)


class PlainMLP:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: PlainMLPSpec, context: BuildContext) -> None:
        source = context.source
        self.up = Linear(source, Matrix((spec.up,), "outputs"), spec.bias)
        self.down = Linear(source, Matrix((spec.down,), "inputs"), spec.bias)
        self._activation = spec.activation
        self._parameters = source.vector(Vector(spec.parameters)) if spec.parameters else None

    def __call__(self, ops: Ops, x: Value) -> Value:
        up = self.up(ops, x)
        if self._activation == "quick_gelu":
            return self.down(ops, ops.gate(up, up, "sigmoid", scale=1.702))
        return self.down(ops, ops.elementwise(up, self._activation, self._parameters))
