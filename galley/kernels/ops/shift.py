"""A row that is added to every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import NativeOp, Op, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    return {"n": whole(node.updates["x"]).columns}


class Shift(Op):
    name = "shift"
    native = NativeOp(
        "shift",
        pointers={"x": "f32, updated", "row": "f32 [n]"},
        ints={"n": "columns"},
        arguments=_arguments,
        rows={"x": TOKENS},
    )

    def __call__(self, x: Value, row: Constant) -> Value:
        """x + row [columns], like x; x may be overwritten."""
        self.require_columns(x, row.shape[0])
        return self.run(x, row)

    def reference(self, ref: ReferenceOps, x: Tensor, row: Tensor) -> Tensor:
        return x + row.to(x.dtype)

    def record(self, recorder: Recorder, x: Symbol, row: NDArray[np.float32]) -> Symbol:
        recorder.add(Node("shift", updates={"x": x}, constants={"row": row}))
        return Symbol(x.buffer, x.columns, x.start)


shift: Shift = Shift()
