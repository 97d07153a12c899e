"""Product with a weight, or with several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.adapt import EXPAND_INTS, LOW, LOW_KIND, PARTS, expand_arguments
from galley.kernels.ops.definition import (
    PARTS_OF_ROWS,
    WEIGHT_INTS,
    NativeOp,
    Op,
    output,
    weight_arguments,
    whole,
)
from galley.kernels.program import Dim, Node, Symbol
from galley.kernels.values import Constant, Value, Weight
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int | Dim]:
    out, x = output(node), whole(node.reads["x"])
    return {
        **weight_arguments(node),
        "rows": out.buffer.rows,
        "x_kind": int(x.kind),
        "out_kind": int(out.kind),
        "out_stride": out.buffer.columns,
    }


_POINTERS = {"x": "", "weight": "", "out": "", "bias?": "f32"}
_INTS = {
    **WEIGHT_INTS,
    "rows?": "dimension, default tokens",
    "x_kind": "",
    "out_kind": "",
    "out_stride?": "default the columns of out",
    "accumulate?": "out f32 += result",
    "epilogue?": "1 SiLU·mul, 2 GELU·mul of interleaved gate and up: out has n/2 columns",
    "function?": "of each number of the result: one of `elementwise` without parameters",
}
#: `linear`, then `adapter_expand` of its result, as one op (`passes.adapters`).
ADAPTED_LINEAR = NativeOp(
    "adapted_linear",
    pointers={
        **_POINTERS,
        "low": LOW,
        "adapters": "csrc/adapters.h",
        "parts": f"{PARTS}; each begins at a multiple of 16 outputs",
    },
    ints={**_INTS, **EXPAND_INTS, "low_kind": LOW_KIND},
    columns=("adapter",),
    arguments=lambda node: {
        **expand_arguments(node),
        **_arguments(node),
        "low_kind": int(whole(node.reads["low"]).kind),
    },
    stores=PARTS_OF_ROWS,
)
#: The index of the largest number in each row of `linear`'s result, which is not kept.
LINEAR_ARGMAX = NativeOp(
    "linear_argmax",
    pointers={"x": "", "weight": "", "bias?": "f32", "token_ids": "int32 [rows]"},
    ints=_INTS,
)


class Linear(Op):
    name = "linear"
    native = NativeOp(
        "linear", pointers=_POINTERS, ints=_INTS, arguments=_arguments, stores=PARTS_OF_ROWS
    )

    def __call__(self, x: Value, weights: Sequence[Weight], bias: Constant | None = None) -> Value:
        """[T, N]: x @ W.T + bias, where W is the rows of `weights` one below the other."""
        self.require(len(weights) > 0, "no weight")
        for weight in weights:
            self.require_columns(x, weight.shape[1])
        n = sum(weight.shape[0] for weight in weights)
        if bias is not None:
            shape = tuple(bias.shape)
            self.require(shape == (n,), f"a bias of shape {shape} for {n} outputs")
        return self.run(x, weights, bias)

    def reference(
        self, ref: ReferenceOps, x: Tensor, weights: Sequence[Tensor], bias: Tensor | None
    ) -> Tensor:
        import torch

        parts = [torch.nn.functional.linear(x, w.to(ref.dtype)) for w in weights]
        y = torch.cat(parts, dim=-1)
        return y if bias is None else y + bias.to(ref.dtype)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        weights: Sequence[PackedWeight],
        bias: NDArray[np.float32] | None,
    ) -> Symbol:
        out = Symbol.new(x.buffer.rows, sum(weight.shape[0] for weight in weights))
        start = 0
        for weight in weights:
            stop = start + weight.shape[0]
            part = Symbol(out.buffer, stop - start, start)
            rows = recorder.rows_for(x, weight)
            constants: dict[str, PackedWeight | NDArray[np.float32]] = {"weight": weight}
            if bias is not None:
                constants["bias"] = bias[start:stop]
            recorder.add(Node("linear", {"x": rows}, {"out": part}, constants=constants))
            start = stop
        return out


linear: Linear = Linear()
