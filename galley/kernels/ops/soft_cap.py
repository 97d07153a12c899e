"""Bounded logits: cap * tanh(x / cap)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import Dim, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int | Dim]:
    x = whole(output(node))
    return {"n": x.columns, "rows": x.buffer.rows}


class SoftCap(Op):
    name = "soft_cap"
    native = NativeOp(
        "soft_cap",
        pointers={"out": "f32, in place"},
        ints={"n": "", "out_stride?": "default n", "rows?": "dimension, default tokens"},
        floats={"cap": "above 0"},
        arguments=_arguments,
    )

    def __call__(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap). May be written into x's memory: x must not be used afterwards."""
        self.require(cap > 0, f"a cap of {cap}")
        return self.run(x, cap)

    def reference(self, ref: ReferenceOps, x: Tensor, cap: float) -> Tensor:
        return cap * (x / cap).tanh()

    def record(self, recorder: Recorder, x: Symbol, cap: float) -> Symbol:
        recorder.add(Node("soft_cap", updates={"out": x}, floats={"cap": cap}))
        return Symbol(x.buffer, x.columns, x.start)


soft_cap: SoftCap = SoftCap()
