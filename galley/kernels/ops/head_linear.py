"""Product of each head's columns with a weight of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import Dim, Node, PackedExperts, Symbol
from galley.kernels.values import Value, Weight
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int | Dim]:
    x, out = node.reads["x"], whole(output(node))
    heads, n, k = node.constants["weights"].shape
    return {
        "heads": heads,
        "n": n,
        "k": k,
        "rows": out.buffer.rows,
        "x_kind": int(x.kind),
        "x_stride": x.buffer.columns,
    }


class HeadLinear(Op):
    name = "head_linear"
    native = NativeOp(
        "head_linear",
        pointers={
            "x": "",
            "weights": "dense, one of each head",
            "bias?": "f32",
            "out": "f32",
        },
        ints={
            "n": "outputs of a head",
            "k": "inputs of a head",
            "heads": "",
            "rows?": "dimension, default tokens",
            "x_kind": "f32, bf16",
            "x_stride?": "default heads * k",
        },
        arguments=_arguments,
    )

    def __call__(self, x: Value, weights: Sequence[Weight]) -> Value:
        """[T, heads * N]: of each head's K columns of x, the product with its weight [N, K]. The
        weights are dense."""
        self.require_columns(x, len(weights) * weights[0].shape[1])
        return self.run(x, weights)

    def reference(self, ref: ReferenceOps, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        import torch

        heads = x.unflatten(-1, (len(weights), -1))
        stacked = torch.stack(list(weights)).to(ref.dtype)
        return torch.einsum("thk,hnk->thn", heads, stacked).flatten(-2)

    def record(self, recorder: Recorder, x: Symbol, weights: Sequence[PackedWeight]) -> Symbol:
        heads = len(weights)
        out = Symbol.new(x.buffer.rows, heads * weights[0].shape[0])
        packed = PackedExperts(tuple(weights), heads, heads)
        rows = recorder.rounded(x, recorder.kind_for(weights))
        recorder.add(Node("head_linear", {"x": rows}, {"out": out}, constants={"weights": packed}))
        return out


head_linear: HeadLinear = HeadLinear()
