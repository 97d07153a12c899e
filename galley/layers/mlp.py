"""The gated feed-forward block: down(act(gate(x)) * up(x))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from galley.kernels.ops import Ops, Value
from galley.kernels.ops.gated_activation import GATE_UP_RUN
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part

#: Activations of the gate; gelu_tanh is GELU in its tanh form.
GatedActivation = Literal["silu", "gelu", "gelu_tanh"]


def _gelu_and_mul(ops: Ops, gate_up: Value, interleaved: bool) -> Value:
    """For a gate and an up projection side by side."""
    assert not interleaved
    size = gate_up.shape[-1] // 2
    gate, up = ops.split(gate_up, (size, size))
    return ops.gate(up, gate, "gelu")


_ACTIVATIONS: dict[GatedActivation, Callable[[Ops, Value, bool], Value]] = {
    "silu": lambda ops, gate_up, interleaved: ops.silu_and_mul(gate_up, interleaved),
    "gelu": _gelu_and_mul,
    "gelu_tanh": lambda ops, gate_up, interleaved: ops.gelu_and_mul(gate_up, interleaved),
}


class MLPSpec(msgspec.Struct, frozen=True):
    """A gated MLP: gate and up [intermediate, hidden], down [hidden, intermediate].

    Attributes:
        bias: of all three.
        down_bias: of down alone.
    """

    gate: Part
    up: Part
    down: Part
    bias: bool = False
    activation: GatedActivation = "silu"
    down_bias: bool = False

    def build(self, context: BuildContext) -> GatedMLP:
        return GatedMLP(self, context)


class GatedMLP:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: MLPSpec, context: BuildContext) -> None:
        source = context.source
        whole_runs = (spec.gate.num_rows // source.group.size) % GATE_UP_RUN == 0
        fused = source.interleave_gate_up and spec.activation != "gelu"
        run = GATE_UP_RUN if fused and whole_runs else 0
        self.gate_up = Linear(source, Matrix((spec.gate, spec.up), "outputs", run), spec.bias)
        self.down = Linear(source, Matrix((spec.down,), "inputs"), spec.bias or spec.down_bias)
        self._activate = _ACTIVATIONS[spec.activation]

    def __call__(self, ops: Ops, x: Value) -> Value:
        activated = self._activate(ops, self.gate_up(ops, x), self.gate_up.interleaved)
        return self.down(ops, activated)
