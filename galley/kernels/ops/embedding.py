"""Rows of the embedding table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import WEIGHT_INTS, NativeOp, Op, weight_arguments
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Value, Weight
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


class Embedding(Op):
    name = "embedding"
    native = NativeOp(
        "embedding",
        pointers={"weight": "", "out": "f32"},
        ints={**WEIGHT_INTS, "n": "vocabulary", "k": "hidden"},
        columns=("token_ids",),
        arguments=weight_arguments,
        rows={"out": TOKENS},
    )

    def __call__(self, weight: Weight, token_ids: Value) -> Value:
        """[T, K]: row `token_ids[t]` of the [N, K] weight."""
        self.require(len(weight.shape) == 2, f"a weight of shape {weight.shape}")
        return self.run(weight, token_ids)

    def reference(self, ref: ReferenceOps, weight: Tensor, token_ids: Tensor) -> Tensor:
        return weight[token_ids].to(ref.dtype)

    def record(self, recorder: Recorder, weight: PackedWeight, token_ids: Value) -> Symbol:
        out = Symbol.new(TOKENS, weight.shape[1])
        recorder.add(Node("embedding", writes={"out": out}, constants={"weight": weight}))
        return out


embedding: Embedding = Embedding()
