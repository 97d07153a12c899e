"""Specs of a layer's weights: a matrix or a vector, by the checkpoint's names.

A spec is plain data: a `WeightSource` makes the weights from a checkpoint, from a cache, or with
shapes alone. It says which outputs of the layer belong to which tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

#: The dimension that ranks share out: each has some outputs, or some inputs; None: each has the
#: whole matrix.
Cut = Literal["outputs", "inputs"] | None


class Stack(msgspec.Struct, frozen=True):
    """A tensor that holds a matrix (or vector) of every expert, along its first axis.

    Attributes:
        name: of the tensor, in full.
        shape: of the whole tensor: [experts, N, K], [experts, K, N] if transposed, or [experts, N].
        outputs: (start, stop, step) of its N that the part is.
        index: the expert.
    """

    name: str
    shape: tuple[int, ...]
    outputs: tuple[int, int, int]
    transposed: bool = False
    index: int = 0

    @property
    def turned(self) -> Stack:
        """The same stack with the transpose of each matrix; of vectors and squares, the same."""
        experts, *shape = self.shape
        if shape == shape[::-1]:
            return self
        return replace(self, shape=(experts, *shape[::-1]), transposed=not self.transposed)


class Part(msgspec.Struct, frozen=True):
    """A tensor of the checkpoint, or some of its rows.

    Attributes:
        name: without ".weight" for a matrix, which may have further tensors (scales, a bias);
            in full for a vector.
        shape: of the whole tensor, before cutting: [N, K] or [N]; () for a vector of one number.
        rows: [start, stop) of its N; None = all. Fused tensors are named once for each use.
        every: `rows` are those of each run of so many rows (q, k and v by head); 0 = of all rows.
        transposed: the checkpoint stores the matrix as [K, N].
        unit_rows: each row is divided by its length.
        stack: where the tensor is if there is none of this name.
        by_expert: `rows` of an expert's (or head's) part begin so many further than those of the
            one before it.
        turned: the rows are not outputs but inputs: their transpose is the part.
        otherwise: the same matrix as other checkpoints store it, used where there is no tensor of
            this name.
        plus: the tensor [rows, K] of which one row is added to every row of the matrix.
        plus_row: which one.
        taps: the tensor is the kernel [N, K / taps, taps] of a convolution; 1 = it is a matrix.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    every: int = 0
    transposed: bool = False
    unit_rows: bool = False
    stack: Stack | None = None
    by_expert: int = 0
    turned: bool = False
    otherwise: Part | None = None
    plus: Part | None = None
    plus_row: int = 0
    taps: int = 1

    @property
    def num_rows(self) -> int:
        """Outputs of the part."""
        return self.shape[1] if self.turned else self.rows_taken

    @property
    def num_inputs(self) -> int:
        return self.rows_taken if self.turned else self.shape[1]

    @property
    def rows_taken(self) -> int:
        """Rows of the tensor that the part is made of."""
        start, stop = self._run
        return self._runs * (stop - start)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        if self.taps > 1:
            return (self.shape[0], self.shape[1] // self.taps, self.taps)
        return self.shape[::-1] if self.transposed else self.shape

    def of_expert(self, index: int) -> Part:
        """The part with its expert's number in place of "{}" in the name, and its expert's rows."""
        stack = None if self.stack is None else replace(self.stack, index=index)
        other = None if self.otherwise is None else self.otherwise.of_expert(index)
        rows = self.rows
        if rows is not None:
            rows = (rows[0] + index * self.by_expert, rows[1] + index * self.by_expert)
        name = self.name.format(index)
        return replace(self, name=name, stack=stack, rows=rows, otherwise=other)

    def take(self, first: int, last: int) -> slice | NDArray[np.intp]:
        """Index of its rows [first, last) among those of the whole tensor."""
        start, stop = self._run
        if not self.every:
            return slice(start + first, start + last)
        each = stop - start
        row = np.arange(first, last)
        numbers: NDArray[np.intp] = row // each * self.every + start + row % each
        return numbers

    @property
    def _run(self) -> tuple[int, int]:
        return self.rows or (0, self.shape[0] if self.shape else 1)

    @property
    def _runs(self) -> int:
        return self.shape[0] // self.every if self.every else 1

    def __str__(self) -> str:
        rows = "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"
        every = f" of every {self.every}" if self.every else ""
        unit = " of unit length" if self.unit_rows else ""
        plus = "" if self.plus is None else f" plus {self.plus}, row {self.plus_row}"
        return f"{self.name}{rows}{every}{unit} {list(self.stored_shape)}{plus}"


class Matrix(msgspec.Struct, frozen=True):
    """The weight of a linear layer or an embedding: outputs of all parts, one after the other.

    Attributes:
        cut: how ranks share it. Each part is cut by itself.
        interleave: outputs of the parts in turn, so many of each at a time; 0 = one part after the
            other. Parts then have equal sizes, of which it is a divisor on every rank.
        experts: 0, or the number of matrices that differ in the number which replaces "{}" in the
            names of the parts.
        float32: numbers that are not quantised keep that precision.
        dense: codes become numbers of the backend's dense format.
    """

    parts: tuple[Part, ...]
    cut: Cut = None
    interleave: int = 0
    experts: int = 0
    float32: bool = False
    dense: bool = False

    @property
    def num_inputs(self) -> int:
        return self.parts[0].num_inputs

    @property
    def num_outputs(self) -> int:
        """Of each expert, if there are experts."""
        return sum(part.num_rows for part in self.parts)

    def __str__(self) -> str:
        how = f"cut={self.cut} interleave={self.interleave}"
        how += f" experts={self.experts}" if self.experts else ""
        how += " float32" if self.float32 else ""
        how += " dense" if self.dense else ""
        return f"{how} {', '.join(map(str, self.parts))}"


class Vector(msgspec.Struct, frozen=True):
    """Numbers that are not multiplied as a matrix, as float32: norm weights, biases.

    Attributes:
        parts: one after the other, or in turn as in `Matrix`.
        cut: each rank has its share of each part; otherwise the whole.
        plus: added to every number (a norm whose weight is 1 + w).
        experts: 0, or the number of vectors, as of matrices in `Matrix`; one behind the other.
        rows: which rows of all that there are, in this order; () = all.
    """

    parts: tuple[Part, ...]
    cut: bool = False
    interleave: int = 0
    plus: float = 0.0
    experts: int = 0
    rows: tuple[int, ...] = ()


def parts_of(spec: Matrix | Vector) -> list[tuple[Part, ...]]:
    """The parts of each expert's matrix or vector; of the only one where there are no experts."""
    if not spec.experts:
        return [spec.parts]
    return [tuple(part.of_expert(i) for part in spec.parts) for i in range(spec.experts)]


def fuse(name: str, parts: Sequence[Part], *, transposed: bool = False) -> list[Part]:
    """The same parts as consecutive rows of one tensor (qkv_proj, gate_up_proj)."""
    ends = list(accumulate(part.num_rows for part in parts))
    shape = (ends[-1], *parts[0].shape[1:])
    return [
        Part(name, shape, (end - part.num_rows, end), transposed=transposed)
        for part, end in zip(parts, ends, strict=True)
    ]


def fuse_runs(name: str, parts: Sequence[Part], runs: int) -> list[Part]:
    """The same parts as rows of one tensor that holds them in turn: the first of `runs` equal
    shares of each part, then the second, … (query_key_value by head).

    runs = 2, parts q, k and v:   q0 k0 v0 q1 k1 v1
    """
    shares = [part.num_rows // runs for part in parts]
    ends = list(accumulate(shares))
    shape = (runs * ends[-1], *parts[0].shape[1:])
    return [
        Part(name, shape, (end - share, end), every=ends[-1])
        for share, end in zip(shares, ends, strict=True)
    ]


def bias_of(matrix: Matrix, interleave: int) -> Vector:
    """The ".bias" tensors of a matrix's parts, in the order of its outputs."""
    parts = [
        Part(f"{part.name}.bias", part.shape[:1], part.rows, part.every) for part in matrix.parts
    ]
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
