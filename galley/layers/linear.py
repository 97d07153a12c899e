"""Linear layers: some tensors of the checkpoint as one product, shared over a parallel group.

column parallel:  each rank holds some outputs of W, all inputs      y = [ y0 | y1 ]
row parallel:     each rank holds some inputs of W, all outputs      y = y0 + y1
"""

from __future__ import annotations

from collections.abc import Sequence

from galley.kernels.ops import Constant, Ops, Value, Weight
from galley.layers.weights import Part, WeightSource


class Linear:
    """x [T, K] → [T, N]; N is this rank's share where the layer is column parallel."""

    def __init__(
        self, weights: Sequence[Weight], bias: Constant | None = None, partial: bool = False
    ) -> None:
        self.weights = weights
        self.bias = bias
        self._partial = partial  # the result is one rank's term of a sum

    @staticmethod
    def column_parallel(source: WeightSource, parts: Sequence[Part], bias: bool) -> Linear:
        """The outputs of all parts, side by side."""
        return Linear(source.rows(parts), source.bias(parts) if bias else None)

    @staticmethod
    def row_parallel(source: WeightSource, part: Part, bias: bool) -> Linear:
        weights = source.columns(part)
        loaded = source.bias([part], cut=False) if bias else None
        # A sum over ranks must hold the bias once.
        return Linear(weights, loaded if source.group.rank == 0 else None, partial=True)

    def __call__(self, ops: Ops, x: Value) -> Value:
        y = ops.linear(x, self.weights, self.bias)
        return ops.all_reduce(y) if self._partial else y
