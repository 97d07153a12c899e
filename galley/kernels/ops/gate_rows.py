"""Rows multiplied with the sigmoid of one number each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, whole
from galley.kernels.program import Dim, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int | Dim]:
    x = whole(node.updates["x"])
    whole(node.reads["gate"])
    return {"n": x.columns, "rows": x.buffer.rows}


class GateRows(Op):
    name = "gate_rows"
    native = NativeOp(
        "gate_rows",
        pointers={"x": "f32, x *= sigmoid(gate)", "gate": "f32 [rows]"},
        ints={"n": "", "rows?": "dimension, default tokens"},
        arguments=_arguments,
    )

    def __call__(self, x: Value, gate: Value) -> Value:
        """x * sigmoid(gate), gate [T, 1]. May be written into x's memory: x must not be used
        afterwards."""
        self.require_columns(gate, 1)
        return self.run(x, gate)

    def reference(self, ref: ReferenceOps, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate.float().sigmoid().to(x.dtype)

    def record(self, recorder: Recorder, x: Symbol, gate: Symbol) -> Symbol:
        recorder.add(Node("gate_rows", reads={"gate": gate}, updates={"x": x}))
        return Symbol(x.buffer, x.columns, x.start)


gate_rows: GateRows = GateRows()
