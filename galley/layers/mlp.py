"""The gated feed-forward block: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

from galley.kernels.ops import GATE_UP_RUN, Ops, Value
from galley.layers.linear import Linear
from galley.layers.questions import Matrix, Part
from galley.layers.weights import WeightSource


class GatedMLP:
    """x [T, hidden] → [T, hidden]."""

    def __init__(
        self, source: WeightSource, prefix: str, hidden: int, intermediate: int, bias: bool = False
    ) -> None:
        gate = Part(f"{prefix}.gate_proj", (intermediate, hidden))
        up = Part(f"{prefix}.up_proj", (intermediate, hidden))
        down = Part(f"{prefix}.down_proj", (hidden, intermediate))
        whole_runs = (intermediate // source.group.size) % GATE_UP_RUN == 0
        run = GATE_UP_RUN if source.interleave_gate_up and whole_runs else 0
        self.gate_up = Linear(source, Matrix((gate, up), "outputs", run), bias)
        self.down = Linear(source, Matrix((down,), "inputs"), bias)

    def __call__(self, ops: Ops, x: Value) -> Value:
        activated = ops.silu_and_mul(self.gate_up(ops, x), self.gate_up.interleaved)
        return self.down(ops, activated)
