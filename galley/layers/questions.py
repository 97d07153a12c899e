"""A layer's requests to a `WeightSource`: a matrix or a vector, by the checkpoint's names.

A question is plain data: it can be answered from a checkpoint, from a cache, or with shapes alone,
and it says which outputs of the layer belong to which tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

#: What ranks share: each has some outputs, or some inputs; None = each has the whole matrix.
Cut = Literal["outputs", "inputs"] | None


@dataclass(frozen=True)
class Part:
    """A tensor of the checkpoint, or some of its rows.

    Attributes:
        name: without ".weight" for a matrix, which may have further tensors (scales, a bias);
            in full for a vector.
        shape: of the whole tensor, before cutting: [N, K] or [N].
        rows: [start, stop) of its N; None = all. Fused tensors are named once for each use.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    @property
    def row_range(self) -> tuple[int, int]:
        """[start, stop)"""
        return self.rows or (0, self.shape[0])

    @property
    def num_rows(self) -> int:
        start, stop = self.row_range
        return stop - start

    def __str__(self) -> str:
        rows = "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"
        return f"{self.name}{rows} {list(self.shape)}"


@dataclass(frozen=True)
class Matrix:
    """The weight of a linear layer or an embedding: outputs of all parts, one after the other.

    Attributes:
        cut: how ranks share it. Each part is cut by itself.
        interleave: outputs of the parts in turn, so many of each at a time; 0 = one part after the
            other. Parts then have equal sizes, of which it is a divisor on every rank.
    """

    parts: tuple[Part, ...]
    cut: Cut = None
    interleave: int = 0

    @property
    def num_inputs(self) -> int:
        return self.parts[0].shape[1]

    def __str__(self) -> str:
        how = f"cut={self.cut} interleave={self.interleave}"
        return f"{how} {', '.join(map(str, self.parts))}"


@dataclass(frozen=True)
class Vector:
    """Numbers that are not multiplied as a matrix, as float32: norm weights, biases.

    Attributes:
        parts: one after the other, or in turn as in `Matrix`.
        cut: each rank has its share of each part; otherwise the whole.
        plus: added to every number (a norm whose weight is 1 + w).
    """

    parts: tuple[Part, ...]
    cut: bool = False
    interleave: int = 0
    plus: float = 0.0


def fuse(name: str, parts: Sequence[Part]) -> list[Part]:
    """The same parts as consecutive rows of one tensor (qkv_proj, gate_up_proj)."""
    ends = list(accumulate(part.num_rows for part in parts))
    shape = (ends[-1], *parts[0].shape[1:])
    return [
        Part(name, shape, (end - part.num_rows, end)) for part, end in zip(parts, ends, strict=True)
    ]


def bias_of(matrix: Matrix, interleave: int) -> Vector:
    """The ".bias" tensors of a matrix's parts, in the order of its outputs."""
    parts = [Part(f"{part.name}.bias", part.shape[:1], part.rows) for part in matrix.parts]
    return Vector(tuple(parts), matrix.cut == "outputs", interleave)


def share_of(name: str, size: int, rank: int, ranks: int) -> tuple[int, int]:
    """[start, stop) of `size` that a rank has. Raises ValueError if they cannot be shared."""
    each, rest = divmod(size, ranks)
    if rest:
        raise ValueError(f"{name}: {size} cannot be shared by {ranks} ranks")
    return rank * each, (rank + 1) * each


def interleaved(parts: Sequence[NDArray[T]], run: int) -> NDArray[T]:
    """Rows of equally shaped arrays in turn, `run` of each at a time; run 0: concatenated.

    run = 2, parts a and b:   a0 a1 b0 b1 a2 a3 b2 b3 …
    """
    if not run:
        return np.concatenate(parts)
    tail = parts[0].shape[1:]
    runs = [part.reshape(-1, run, *tail) for part in parts]
    result: NDArray[T] = np.stack(runs, axis=1).reshape(-1, *tail)
    return result
