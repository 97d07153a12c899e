"""Rows rounded to another kind. Native only: recorded where a linear layer needs such rows."""

from __future__ import annotations

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, output, whole
from galley.kernels.program import Dim, Node


def _arguments(node: Node) -> dict[str, int | Dim]:
    x, out = node.reads["x"], whole(output(node))
    return {
        "k": x.columns,
        "rows": x.buffer.rows,
        "x_stride": x.buffer.columns,
        "out_kind": int(out.kind),
    }


QUANTIZE = NativeOp(
    "quantize",
    pointers={"x": "f32", "out": ""},
    ints={
        "k": "",
        "rows?": "dimension, default tokens",
        "x_stride?": "default k",
        "out_kind": "bf16, q8, q8_row, q16",
    },
    arguments=_arguments,
    stores=WHOLE_ROWS,
)
