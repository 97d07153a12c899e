"""The rows that yield logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import LOGITS, TOKENS, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    whole(output(node))
    return {"n": whole(node.reads["x"]).columns}


class SelectRows(Op):
    name = "select_rows"
    native = NativeOp(
        "select_rows",
        pointers={"x": "f32, tokens", "out": "f32, logits"},
        ints={"n": ""},
        columns=("logit_index",),
        arguments=_arguments,
        rows={"x": TOKENS, "out": LOGITS},
    )

    def __call__(self, x: Value, index: Value) -> Value:
        """[L, H]: rows `index` of x."""
        return self.run(x, index)

    def reference(self, ref: ReferenceOps, x: Tensor, index: Tensor) -> Tensor:
        return x[index]

    def record(self, recorder: Recorder, x: Symbol, index: Value) -> Symbol:
        out = Symbol.new(LOGITS, x.columns)
        recorder.add(Node("select_rows", {"x": x}, {"out": out}))
        return out


select_rows: SelectRows = SelectRows()
