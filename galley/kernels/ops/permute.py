"""The columns of rows in another order. Native only: recorded where a weight's inputs have one."""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp, output, whole
from galley.kernels.program import Dim, Node


def _arguments(node: Node) -> dict[str, int | Dim]:
    x, out = node.reads["x"], whole(output(node))
    return {"n": out.columns, "rows": out.buffer.rows, "x_stride": x.buffer.columns}


PERMUTE = NativeOp(
    "permute",
    pointers={"x": "f32", "order": "i32 [n]: the column of x of each of out", "out": ""},
    ints={"n": "", "rows?": "dimension, default tokens", "x_stride?": "default n"},
    arguments=_arguments,
)
