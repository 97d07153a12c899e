"""Rows that come with the step, such as the hidden states of another model."""

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
    return {"n": whole(output(node)).columns}


class GivenRows(Op):
    name = "given_rows"
    native = NativeOp(
        "given_rows",
        pointers={"out": "f32"},
        ints={"n": "columns"},
        columns=("rows",),
        arguments=_arguments,
        rows={"out": TOKENS},
    )

    def __call__(self, column: str, columns: int) -> Value:
        """[T, columns]: the float32 rows of the step's tokens that are bound as `column`."""
        return self.run(column, columns)

    def reference(self, ref: ReferenceOps, column: str, columns: int) -> Tensor:
        raise NotImplementedError("the reference is given no rows")

    def record(self, recorder: Recorder, column: str, columns: int) -> Symbol:
        out = Symbol.new(TOKENS, columns)
        recorder.add(Node("given_rows", writes={"out": out}, columns={"rows": column}))
        return out


given_rows: GivenRows = GivenRows()
