"""The numbers of a row that are far above its mean."""

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
    x = node.reads["x"]
    whole(output(node))
    return {"n": x.columns, "x_stride": x.buffer.columns}


class Sparsify(Op):
    name = "sparsify"
    native = NativeOp(
        "sparsify",
        pointers={"x": "f32", "out": "f32 [tokens][n]"},
        ints={"n": "", "x_stride?": "default n"},
        floats={"deviations": "of the cut from the mean"},
        arguments=_arguments,
        rows={"x": TOKENS, "out": TOKENS},
    )

    def __call__(self, x: Value, deviations: float) -> Value:
        """[T, N]: max(x - cut, 0), where the cut of a row is its mean and so many of its standard
        deviations."""
        return self.run(x, deviations)

    def reference(self, ref: ReferenceOps, x: Tensor, deviations: float) -> Tensor:
        wide = x.float()
        cut = wide.mean(-1, keepdim=True) + wide.std(-1, keepdim=True, correction=0) * deviations
        return (wide - cut).relu().to(x.dtype)

    def record(self, recorder: Recorder, x: Symbol, deviations: float) -> Symbol:
        out = Symbol.new(TOKENS, x.columns)
        floats = {"deviations": deviations}
        recorder.add(Node("sparsify", {"x": x}, {"out": out}, floats=floats))
        return out


sparsify: Sparsify = Sparsify()
