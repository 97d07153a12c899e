"""The feed-forward block without a gate: down(act(up(x)))."""

from __future__ import annotations

import msgspec

from galley.kernels.ops import Ops, Value
from galley.kernels.ops.elementwise import Function
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.questions import Matrix, Part, Vector


class PlainMLPSpec(msgspec.Struct, frozen=True):
    """A plain MLP: up [intermediate, hidden], down [hidden, intermediate].

    Attributes:
        parameters: tensors of the activation's parameters, one after the other; () = none.
    """

    up: Part
    down: Part
    activation: Function
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
        activated = ops.elementwise(self.up(ops, x), self._activation, self._parameters)
        return self.down(ops, activated)
