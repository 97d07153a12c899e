"""Sum of two values: the residual stream."""

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
    whole(node.reads["y"])
    return {"n": x.columns, "rows": x.buffer.rows}


class Add(Op):
    name = "add"
    native = NativeOp(
        "add",
        pointers={"x": "f32, x += y", "y": "f32"},
        ints={"n": "", "rows?": "dimension, default tokens"},
        arguments=_arguments,
    )

    def __call__(self, x: Value, y: Value) -> Value:
        """x + y. The sum may be written into x's memory: x must not be used afterwards."""
        self.require_columns(y, x.shape[-1])
        return self.run(x, y)

    def reference(self, ref: ReferenceOps, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def record(self, recorder: Recorder, x: Symbol, y: Symbol) -> Symbol:
        recorder.add(Node("add", reads={"y": y}, updates={"x": x}))
        return Symbol(x.buffer, x.columns, x.start)


add: Add = Add()
