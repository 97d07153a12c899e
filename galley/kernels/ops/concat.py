"""Two values side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    whole(output(node))
    return {f"n{name}": whole(node.reads[name]).columns for name in "xy"}


class Concat(Op):
    name = "concat"
    native = NativeOp(
        "concat",
        pointers={"x": "f32", "y": "f32", "out": "f32"},
        ints={"nx": "columns of x", "ny": "columns of y"},
        arguments=_arguments,
        rows={"out": TOKENS},
    )

    def __call__(self, x: Value, y: Value) -> Value:
        """[T, columns of x and y]: each row of x, then that of y."""
        return self.run(x, y)

    def reference(self, ref: ReferenceOps, x: Tensor, y: Tensor) -> Tensor:
        import torch

        return torch.cat((x, y), dim=-1)

    def record(self, recorder: Recorder, x: Symbol, y: Symbol) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns + y.columns)
        recorder.add(Node("concat", {"x": x, "y": y}, {"out": out}))
        return out


concat: Concat = Concat()
