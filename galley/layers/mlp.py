"""The gated feed-forward block: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

from galley.kernels.ops import Ops, Value
from galley.layers.linear import Linear
from galley.layers.weights import Part, WeightSource


class GatedMLP:
    """x [T, hidden] → [T, hidden]."""

    def __init__(
        self, source: WeightSource, prefix: str, hidden: int, intermediate: int, bias: bool = False
    ) -> None:
        gate = Part(f"{prefix}.gate_proj", (intermediate, hidden))
        up = Part(f"{prefix}.up_proj", (intermediate, hidden))
        down = Part(f"{prefix}.down_proj", (hidden, intermediate))
        both = source.gate_up(gate, up, bias)
        self.gate_up = Linear(both.weights, both.bias)
        self._interleaved = both.interleaved
        self.down = Linear.row_parallel(source, down, bias)

    def __call__(self, ops: Ops, x: Value) -> Value:
        return self.down(ops, ops.silu_and_mul(self.gate_up(ops, x), self._interleaved))
