"""Rows of an embedding table, by token or by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import WEIGHT_INTS, NativeOp, Op, weight_arguments
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Value, Weight
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Placeholder, Recorder
    from galley.kernels.reference import ReferenceOps


class Embedding(Op):
    name = "embedding"
    native = NativeOp(
        "embedding",
        pointers={"weight": "", "out": "f32"},
        ints={**WEIGHT_INTS, "n": "vocabulary", "k": "hidden", "first?": "row of id 0"},
        columns=("token_ids",),
        arguments=weight_arguments,
        rows={"out": TOKENS},
    )

    def __call__(self, weight: Weight, ids: Value, first: int = 0) -> Value:
        """[T, K]: row `first + ids[t]` of the [N, K] weight; ids are a context's `token_ids`, or
        its `positions` of one axis."""
        self.require(len(weight.shape) == 2, f"a weight of shape {weight.shape}")
        return self.run(weight, ids, first)

    def reference(self, ref: ReferenceOps, weight: Tensor, ids: Tensor, first: int) -> Tensor:
        return weight[ids.flatten() + first].to(ref.dtype)

    def record(
        self, recorder: Recorder, weight: PackedWeight, ids: Placeholder, first: int
    ) -> Symbol:
        out = Symbol.new(TOKENS, weight.shape[1])
        columns = {} if ids.column == "token_ids" else {"token_ids": ids.column}
        recorder.add(
            Node(
                "embedding",
                writes={"out": out},
                constants={"weight": weight},
                ints={"first": first} if first else {},
                columns=columns,
            )
        )
        return out


embedding: Embedding = Embedding()
