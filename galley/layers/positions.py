"""Learned embeddings of positions, added to those of the tokens."""

from __future__ import annotations

import msgspec

from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.weight_specs import Matrix, Part


class LearnedPositionsSpec(msgspec.Struct, frozen=True):
    """Embeddings of positions.

    Attributes:
        table: the tensor [first + positions, hidden].
        first: row of position 0.
    """

    table: Part
    first: int = 0

    def build(self, context: BuildContext) -> LearnedPositions:
        """Raises ModelError if a sequence may be longer than the table."""
        positions = self.table.num_rows - self.first
        if context.max_positions > positions:
            raise ModelError(
                f"the model has embeddings of {positions} positions and cannot run sequences of "
                f"{context.max_positions} tokens; give a --max-model-len"
            )
        return LearnedPositions(self, context)


class LearnedPositions:
    """The step's positions → [T, hidden]."""

    def __init__(self, spec: LearnedPositionsSpec, context: BuildContext) -> None:
        (self._weight,) = context.source.matrix(Matrix((spec.table,)))
        self._first = spec.first

    def __call__(self, ops: Ops, ctx: ForwardContext) -> Value:
        return ops.embedding(self._weight, ctx.positions, self._first)
