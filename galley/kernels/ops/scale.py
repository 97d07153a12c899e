"""Product with fixed numbers: multipliers of embeddings, residuals and logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, Op, output, whole
from galley.kernels.program import Dim, Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int | Dim]:
    out = whole(output(node))
    whole(node.reads["x"])
    one = node.constants["factor"].shape == (1,)
    return {
        "n": out.columns,
        "one": int(one),
        "rows": out.buffer.rows,
        "out_kind": int(out.kind),
    }


class Scale(Op):
    name = "scale"
    native = NativeOp(
        "scale",
        pointers={"x": "f32", "factor": "f32 [n] or [1]", "out": ""},
        ints={
            "n": "",
            "one?": "1 = one factor for all columns",
            "rows?": "dimension, default tokens",
            "out_kind": "",
        },
        arguments=_arguments,
        stores=WHOLE_ROWS,
    )

    def __call__(self, x: Value, factor: Constant) -> Value:
        """x * factor, of shape [1] or [columns]."""
        (n,) = factor.shape
        self.require(n in (1, x.shape[-1]), f"{n} factors for {x.shape[-1]} columns")
        return self.run(x, factor)

    def reference(self, ref: ReferenceOps, x: Tensor, factor: Tensor) -> Tensor:
        return x * factor.to(x.dtype)

    def record(self, recorder: Recorder, x: Symbol, factor: NDArray[np.float32]) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns)
        recorder.add(Node("scale", {"x": x}, {"out": out}, constants={"factor": factor}))
        return out


scale: Scale = Scale()
