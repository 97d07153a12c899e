"""Rows beside those of the tokens around them: the input of a convolution over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import ForwardContext, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceContext, ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    whole(output(node))
    return {"n": whole(node.reads["x"]).columns}


class TokenWindow(Op):
    name = "token_window"
    native = NativeOp(
        "token_window",
        pointers={"x": "f32", "out": "f32"},
        ints={"n": "columns of x", "taps": "numbers of a column"},
        arguments=_arguments,
        rows={"x": TOKENS, "out": TOKENS},
    )

    def __call__(self, x: Value, taps: int, ctx: ForwardContext) -> Value:
        """[T, C * taps]: out[t, c * taps + j] = x[t + j - taps // 2, c], 0 beyond the sequence, all
        of whose tokens are in the step.
        """
        self.require(taps % 2 == 1, f"an odd number of taps, not {taps}")
        return self.run(x, taps, ctx)

    def reference(self, ref: ReferenceOps, x: Tensor, taps: int, ctx: ReferenceContext) -> Tensor:
        from torch.nn.functional import pad

        half = taps // 2
        out = x.new_empty(len(x), x.shape[1] * taps)
        for start, stop in zip(ctx.query_start[:-1], ctx.query_start[1:], strict=True):
            out[start:stop] = pad(x[start:stop], (0, 0, half, half)).unfold(0, taps, 1).flatten(1)
        return out

    def record(self, recorder: Recorder, x: Symbol, taps: int, ctx: ForwardContext) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns * taps)
        recorder.add(Node("token_window", {"x": x}, {"out": out}, ints={"taps": taps}))
        return out


token_window: TokenWindow = TokenWindow()
