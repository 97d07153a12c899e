"""A `WeightSource` without weights: it makes shapes and records every spec.

A model built from it has its KV layers and can be recorded as a program, before a byte of its
weights is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops import RankGroup, SingleRank, Weight
from galley.kernels.weight_format import WeightFormat
from galley.layers.sites import Sites
from galley.layers.weight_specs import Matrix, Vector, parts_of


class ShapeWeight(msgspec.Struct, frozen=True, eq=False):
    """A matrix of which only the shape is known, [N, K] of this rank."""

    shape: tuple[int, int]
    format: WeightFormat

    @property
    def num_bytes(self) -> int:
        """Of the weight as it would be packed."""
        return self.format.num_bytes(self.shape)

    @property
    def order(self) -> NDArray[np.int32]:
        """An order of the inputs, where the format has one of its own: which one is not known."""
        return np.zeros(self.shape[1], np.int32)


class ShapeSource:
    """See the module.

    Attributes:
        matrices, vectors: the specs so far, in order.
        sites: linear layers that have been built.
    """

    def __init__(self, group: RankGroup | None = None, interleave_gate_up: bool = True) -> None:
        self.group: RankGroup = group or SingleRank()
        self.interleave_gate_up = interleave_gate_up
        self.sites = Sites()
        self.matrices: list[Matrix] = []
        self.vectors: list[Vector] = []

    def matrix(self, matrix: Matrix) -> list[Weight]:
        self.matrices.append(matrix)
        n, k = matrix.num_outputs, matrix.num_inputs
        ranks = self.group.size
        if matrix.cut == "outputs":
            n //= ranks
        elif matrix.cut == "inputs":
            k //= ranks
        return [ShapeWeight((n, k), WeightFormat("bf16"))] * max(1, matrix.experts)

    def vector(self, vector: Vector) -> NDArray[np.float32]:
        self.vectors.append(vector)
        size = len(vector.rows) or sum(part.num_rows for part in vector.parts) * max(
            1, vector.experts
        )
        tail = vector.parts[0].shape[1:]
        return _zeros((size // self.group.size if vector.cut else size, *tail))

    def constant(
        self, shape: tuple[int, ...], compute: Callable[[], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        return _zeros(shape)

    def number(self, names: Sequence[str]) -> None:
        """No tensor is known."""

    def load(self, read: Callable[..., object]) -> None:
        """No weights, no model."""

    def ignore_unused(self, prefix: str) -> None:
        pass

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor of a checkpoint that the specs need."""
        tensors: dict[str, tuple[int, ...]] = {}
        for matrix in self.matrices:
            for parts in parts_of(matrix):
                added = [part.plus for part in parts if part.plus is not None]
                tensors |= {f"{part.name}.weight": part.stored_shape for part in (*parts, *added)}
        for vector in self.vectors:
            for parts in parts_of(vector):
                tensors |= {part.name: part.shape for part in parts}
        return tensors


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros that take no memory."""
    return np.broadcast_to(np.zeros((), np.float32), shape)
