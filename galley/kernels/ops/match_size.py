"""Rows brought to the size of other rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps

#: Least mean square that is divided by.
LEAST = 1e-5


def _arguments(node: Node) -> dict[str, int]:
    x, like = whole(node.reads["x"]), node.reads["like"]
    whole(output(node))
    return {
        "n": like.columns,
        "parts": x.columns // like.columns,
        "like_stride": like.buffer.columns,
    }


class MatchSize(Op):
    name = "match_size"
    native = NativeOp(
        "match_size",
        pointers={
            "x": "f32 [tokens][parts * n]",
            "like": "f32",
            "out": "f32 [tokens][parts * n]",
        },
        ints={"n": "", "parts": "", "like_stride?": "default n"},
        floats={"least": "mean square that is divided by"},
        arguments=_arguments,
        rows={"x": TOKENS, "like": TOKENS, "out": TOKENS},
    )

    def __call__(self, x: Value, like: Value) -> Value:
        """Like x [T, parts * N]: each part multiplied so that its root mean square is that of the
        row of `like` [T, N]."""
        columns = like.shape[-1]
        self.require(x.shape[-1] % columns == 0, f"{x.shape[-1]} columns in parts of {columns}")
        return self.run(x, like)

    def reference(self, ref: ReferenceOps, x: Tensor, like: Tensor) -> Tensor:
        parts = x.float().unflatten(-1, (-1, like.shape[-1]))
        wanted = like.float().square().mean(-1).sqrt()[:, None, None]
        own = parts.square().mean(-1, keepdim=True).clamp(min=LEAST).sqrt()
        return (parts * wanted / own).flatten(1).to(x.dtype)

    def record(self, recorder: Recorder, x: Symbol, like: Symbol) -> Symbol:
        out = Symbol.new(TOKENS, x.columns)
        floats = {"least": LEAST}
        recorder.add(Node("match_size", {"x": x, "like": like}, {"out": out}, floats=floats))
        return out


match_size: MatchSize = MatchSize()
