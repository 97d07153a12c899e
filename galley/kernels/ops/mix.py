"""Weighted sums of parts of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    whole(node.reads["x"])
    whole(output(node))
    if "coefs" in node.reads:
        whole(node.reads["coefs"])
    return {"constant": int("coefs" in node.constants)}


class Mix(Op):
    name = "mix"
    native = NativeOp(
        "mix",
        pointers={
            "x": "f32 [tokens][ins * n]",
            "coefs": "f32 [tokens][outs][ins], or [outs][ins]",
            "out": "f32 [tokens][outs * n]",
        },
        ints={"n": "", "ins": "", "outs": "", "constant?": "1 = coefs are those of all tokens"},
        arguments=_arguments,
        rows={"x": TOKENS, "out": TOKENS},
    )

    def __call__(self, x: Value, coefs: Value | Constant, ins: int, outs: int) -> Value:
        """[T, outs * n]: part o is the sum over s of coefs[o, s] times part s of x [T, ins * n].

        Args:
            coefs: [T, outs * ins] of each token, or [outs * ins] of all.
        """
        self.require(x.shape[-1] % ins == 0, f"{x.shape[-1]} columns in {ins} parts")
        self.require(coefs.shape[-1] == ins * outs, f"{coefs.shape[-1]} for {outs} x {ins}")
        return self.run(x, coefs, ins, outs)

    def reference(self, ref: ReferenceOps, x: Tensor, coefs: Tensor, ins: int, outs: int) -> Tensor:
        parts = x.float().unflatten(-1, (ins, -1))
        factors = coefs.float().reshape(-1, outs, ins)
        y: Tensor = (factors[..., None] * parts[:, None]).sum(2)
        return y.flatten(1).to(x.dtype)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        coefs: Symbol | NDArray[np.float32],
        ins: int,
        outs: int,
    ) -> Symbol:
        n = x.columns // ins
        out = Symbol.new(TOKENS, outs * n)
        ints = {"n": n, "ins": ins, "outs": outs}
        reads = {"x": x}
        if isinstance(coefs, Symbol):
            recorder.add(Node("mix", reads | {"coefs": coefs}, {"out": out}, ints=ints))
        else:
            recorder.add(Node("mix", reads, {"out": out}, constants={"coefs": coefs}, ints=ints))
        return out


mix: Mix = Mix()
