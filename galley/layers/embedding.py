"""Token embedding and the head that scores the vocabulary; the two may share one weight.

Every rank of a parallel group has the whole of both.
"""

from __future__ import annotations

from galley.kernels.ops import Constant, Ops, Value, Weight
from galley.layers.questions import Matrix, Part
from galley.layers.weights import WeightSource


class Embedding:
    """token_ids [T] → [T, hidden]."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    @staticmethod
    def load(source: WeightSource, part: Part, further: tuple[Part, ...] = ()) -> Embedding:
        """Rows of `further` follow those of `part`."""
        return Embedding(*source.matrix(Matrix((part, *further))))

    def __call__(self, ops: Ops, token_ids: Value) -> Value:
        return ops.embedding(self.weight, token_ids)


class LMHead:
    """x [L, hidden] → logits [L, vocab]."""

    def __init__(self, weight: Weight, bias: Constant | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.linear(x, [self.weight], self.bias)
