"""Low-rank adapters (LoRA) as the kernels read them: y = gain * y + scale * B (A x) + shift.

    site            a linear layer of the model, to which adapters may add; an embedding, whose A
                    is stored by token [K, rank]; or all experts of a layer, one after the other
    inputs          its matrices A [rank, K]: one for each tensor of the checkpoint
    parts           its matrices B [N, rank]: one for each run of the layer's outputs
    gain, shift     of each output of a part: what DoRA and biases add up to; mostly there are none
    copy            the whole matrix [N, K] of an adapter, in place of the layer's own

The matrices of all sites are numbered through, in the order of the model. An adapter that leaves a
tensor as it is has rank 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

#: Outputs that are stored side by side (csrc/adapters.h).
PANEL = 16
ALIGNMENT = 64
#: Numbers of A x that kernels read at once where they are bf16, and the bytes that B ends with.
_LOW_BLOCK, _SPARE = 32, 1024


class AdapterPart(msgspec.Struct, frozen=True):
    """Outputs of a layer that one matrix B adds to.

    Attributes:
        input: the A of the same site that belongs to it.
        outputs: how many.
        column: the layer's first output that is the part's.
        step: from a run of `PANEL` outputs to the next; more than `PANEL` where parts are
            interleaved.
    """

    input: int
    outputs: int
    column: int
    step: int = PANEL

    @property
    def columns(self) -> NDArray[np.intp]:
        """[outputs] the layer's outputs, in order of the rows of B."""
        row = np.arange(self.outputs)
        return self.column + row // PANEL * self.step + row % PANEL


class AdapterSite(msgspec.Struct, frozen=True):
    """A linear layer that adapters may add to.

    Attributes:
        k: its inputs.
        first_input, first_output: numbers of its first A and B.
        inputs: how many A it has, or each of its experts.
        parts: of it, or of each of its experts.
        logits: its rows are logit rows, not tokens.
        experts: how many there are; 1 = it is no layer of experts.
        copy: number of the matrix that an adapter may have in place of its own; -1 = none.
        lookup: it is an embedding: K is the vocabulary.
        pooled: it is of a head that pools, which no kernel computes.
    """

    k: int
    first_input: int
    first_output: int
    inputs: int
    parts: tuple[AdapterPart, ...]
    logits: bool = False
    experts: int = 1
    copy: int = -1
    lookup: bool = False
    pooled: bool = False

    @property
    def columns(self) -> int:
        """Of a layer that is one part, or of its parts together."""
        return sum(part.outputs for part in self.parts)


class AdapterShape(msgspec.Struct, frozen=True):
    """Sizes of the matrices that an adapter of a model may have.

    Attributes:
        k: [I] inputs of each A.
        by_token: [I] whether it is stored by token, [K, rank] (an embedding's).
        n: [O] outputs of each B.
        input_of: [O] the A of each B.
        copies: [C] rows and columns of each whole matrix, and whether its rows are stored one
            after the other (an embedding's); otherwise it is stored as a B is.
    """

    k: tuple[int, ...]
    by_token: tuple[bool, ...]
    n: tuple[int, ...]
    input_of: tuple[int, ...]
    copies: tuple[tuple[int, int, bool], ...] = ()

    @staticmethod
    def of(sites: Sequence[AdapterSite]) -> AdapterShape:
        inputs = [site for site in sites for _ in range(site.inputs * site.experts)]
        k, by_token = (site.k for site in inputs), (site.lookup for site in inputs)
        parts = [
            (site.first_input + expert * site.inputs + part.input, part)
            for site in sites
            for expert in range(site.experts)
            for part in site.parts
        ]
        n = [part.outputs for _, part in parts]
        copies = [
            (site.k, site.columns, True) if site.lookup else (site.columns, site.k, False)
            for site in sites
            if site.copy >= 0
        ]
        input_of = tuple(i for i, _ in parts)
        return AdapterShape(tuple(k), tuple(by_token), tuple(n), input_of, tuple(copies))

    def sizes(self, ranks: Sequence[int], itemsize: int) -> tuple[list[int], list[int]]:
        """Bytes of each A and of each B, as they are stored."""
        a = [
            (rank * k if by_token else _panel_numbers(rank, k)) * itemsize
            for rank, k, by_token in zip(ranks, self.k, self.by_token, strict=True)
        ]
        b = [
            _panel_numbers(n, ranks[i]) * itemsize
            for n, i in zip(self.n, self.input_of, strict=True)
        ]
        return a, b

    def num_bytes(self, ranks: int | Sequence[int], itemsize: int) -> int:
        """Most bytes of an adapter whose ranks are at most `ranks`, all alike or one for each A,
        without whole matrices."""
        ranks = [ranks] * len(self.k) if isinstance(ranks, int) else ranks
        a, b = self.sizes(ranks, itemsize)
        return sum(_aligned(size) for size in (*a, *b)) + _SPARE

    def copy_sizes(self, itemsize: int) -> list[int]:
        """Bytes of each whole matrix, as it is stored."""
        return [
            (n * k if by_row else _panel_numbers(n, k)) * itemsize for n, k, by_row in self.copies
        ]


class PackedAdapter(msgspec.Struct, frozen=True, eq=False):
    """An adapter's matrices in one piece of memory.

    Attributes:
        ranks: [I] of each A; 0 = none.
        scales: [I] float32.
        has_affine: [O] 1 = the outputs have gains and shifts, 0 = not.
        copied: [C] 1 = it has the whole matrix, 0 = not.
        a, b, affine, copies: [I], [O], [O], [C] offsets in `data`.
        bf16: numbers are bf16; otherwise float32.
        data: bytes; its address is a multiple of 64.
    """

    shape: AdapterShape
    ranks: NDArray[np.int64]
    scales: NDArray[np.float32]
    has_affine: NDArray[np.int64]
    copied: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    affine: NDArray[np.int64]
    copies: NDArray[np.int64]
    bf16: bool
    data: NDArray[np.uint8]

    @staticmethod
    def empty(
        shape: AdapterShape,
        ranks: Sequence[int],
        scales: Sequence[float],
        bf16: bool,
        has_affine: Sequence[bool] = (),
        copied: Sequence[bool] = (),
    ) -> PackedAdapter:
        """An adapter of zeros. `has_affine`, `copied`: what it has of both; () = none."""
        has_affine = has_affine or [False] * len(shape.n)
        copied = copied or [False] * len(shape.copies)
        numbers = (
            np.array(ranks, np.int64),
            np.array(scales, np.float32),
            np.array(has_affine, np.int64),
            np.array(copied, np.int64),
        )
        size = int(_starts(shape, ranks, bf16, has_affine, copied)[-1])
        data = np.zeros(size + ALIGNMENT, np.uint8)
        data = data[-data.ctypes.data % ALIGNMENT :][:size]
        adapter = PackedAdapter.over(shape, *numbers, bf16, data)
        assert adapter is not None
        return adapter

    @staticmethod
    def over(
        shape: AdapterShape,
        ranks: NDArray[np.int64],
        scales: NDArray[np.float32],
        has_affine: NDArray[np.int64],
        copied: NDArray[np.int64],
        bf16: bool,
        data: NDArray[np.uint8],
    ) -> PackedAdapter | None:
        """An adapter whose numbers exist; None if `data` has not the size that the ranks need."""
        if (ranks < 0).any() or (ranks > 2**16).any():
            return None
        starts = _starts(shape, ranks.tolist(), bf16, has_affine.tolist(), copied.tolist())
        if len(data) != int(starts[-1]):
            return None
        counts = np.cumsum([len(shape.k), len(shape.n), 1, len(shape.n)])
        a, b, _, affine, copies = np.split(starts[:-1], counts)
        return PackedAdapter(
            shape, ranks, scales, has_affine, copied, a, b, affine, copies, bf16, data
        )

    def matrix_a(self, i: int) -> NDArray[np.float32]:
        """[rank, K] of an A that is not stored by token."""
        return _from_panels(self._panels_of_a(i), int(self.ranks[i]), self.shape.k[i])

    def set_a(self, i: int, values: NDArray[np.generic]) -> None:
        """Store an A [rank, K]."""
        if self.shape.by_token[i]:
            self.lookup_a(i)[:] = values.T
        else:
            _to_panels(values, self._panels_of_a(i))

    def lookup_a(self, i: int) -> NDArray[np.generic]:
        """[K, rank] of an A that is stored by token; writable if `data` is."""
        return self._view(int(self.a[i]), (self.shape.k[i], int(self.ranks[i])))

    def matrix_b(self, i: int) -> NDArray[np.float32]:
        """[N, rank] of a B."""
        return _from_panels(self._panels_of_b(i), self.shape.n[i], self._rank_of_b(i))

    def set_b(self, i: int, values: NDArray[np.generic]) -> None:
        """Store a B [N, rank]."""
        _to_panels(values, self._panels_of_b(i))

    def _rank_of_b(self, i: int) -> int:
        return int(self.ranks[self.shape.input_of[i]])

    def _panels_of_a(self, i: int) -> NDArray[np.generic]:
        return self._panels(int(self.a[i]), int(self.ranks[i]), self.shape.k[i])

    def _panels_of_b(self, i: int) -> NDArray[np.generic]:
        return self._panels(int(self.b[i]), self.shape.n[i], self._rank_of_b(i))

    def gains_and_shifts(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """[N] each, of the outputs of a B; None = none."""
        if not self.has_affine[i]:
            return None
        pairs = self._affine_panels(i).transpose(1, 0, 2).reshape(2, -1)[:, : self.shape.n[i]]
        return pairs[0], pairs[1]

    def set_affine(self, i: int, gains: NDArray[np.float32], shifts: NDArray[np.float32]) -> None:
        """Store the gains and shifts of the outputs of a B, [N] each."""
        panels = self._affine_panels(i)
        padded = np.zeros((2, len(panels) * PANEL), np.float32)
        padded[:, : len(gains)] = gains, shifts
        panels[:] = padded.reshape(2, -1, PANEL).transpose(1, 0, 2)

    def _affine_panels(self, i: int) -> NDArray[np.float32]:
        """[panels, 2, PANEL]"""
        start, count = int(self.affine[i]), math.ceil(self.shape.n[i] / PANEL)
        size = count * 2 * PANEL * 4
        return self.data[start : start + size].view(np.float32).reshape(count, 2, PANEL)

    def copy(self, i: int) -> NDArray[np.float32] | None:
        """[N, K] of a whole matrix; None = the adapter has none."""
        if not self.copied[i]:
            return None
        n, k, by_row = self.shape.copies[i]
        if by_row:
            return self._view(int(self.copies[i]), (n, k)).astype(np.float32)
        return _from_panels(self._panels(int(self.copies[i]), n, k), n, k)

    def set_copy(self, i: int, values: NDArray[np.generic]) -> None:
        """Store a whole matrix [N, K]."""
        n, k, by_row = self.shape.copies[i]
        if by_row:
            self._view(int(self.copies[i]), (n, k))[:] = values
        else:
            _to_panels(values, self._panels(int(self.copies[i]), n, k))

    def _panels(self, start: int, n: int, k: int) -> NDArray[np.generic]:
        """[panels, pairs of k, PANEL, 2] of a matrix [n, k]; writable if `data` is."""
        panels, pairs = math.ceil(n / PANEL), math.ceil(k / 2)
        if self.bf16:
            return self._view(start, (panels, pairs, PANEL, 2))
        return self._view(start, (panels, pairs, 2, PANEL)).swapaxes(2, 3)

    def _view(self, start: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        dtype = np.dtype(ml_dtypes.bfloat16) if self.bf16 else np.dtype(np.float32)
        size = math.prod(shape) * dtype.itemsize
        return self.data[start : start + size].view(dtype).reshape(shape)


class AdapterTable:
    """The adapters in memory, by place: what a step's rows name in the column `adapter`.

    Args:
        shape: of the model's adapters.
        places: most adapters in memory.
        max_rank: largest rank.
        bf16: format of their numbers.

    Attributes:
        table: [places, 3 I + 2 O + C + 1] int64, see csrc/adapters.h.
        adapters: by place.
    """

    def __init__(self, shape: AdapterShape, places: int, max_rank: int, bf16: bool) -> None:
        self.shape, self.max_rank, self.bf16 = shape, max_rank, bf16
        self.num_inputs, self.num_outputs = len(shape.k), len(shape.n)
        #: Column of the first whole matrix.
        self.first_copy = 3 * self.num_inputs + 2 * self.num_outputs
        self.table = np.zeros((places, self.first_copy + len(shape.copies) + 1), np.int64)
        self.adapters: list[PackedAdapter | None] = [None] * places

    def set(self, place: int, adapter: PackedAdapter | None) -> None:
        """Put an adapter at a place that no running sequence uses; None = none."""
        self.adapters[place] = adapter
        row, n = self.table[place], self.num_inputs
        row[:] = 0
        if adapter is None:
            return
        assert adapter.shape == self.shape
        assert adapter.bf16 == self.bf16
        address = adapter.data.ctypes.data
        row[:n] = adapter.a + address
        row[n : 2 * n] = adapter.ranks
        row[2 * n : 3 * n] = adapter.scales.view(np.int32)
        outputs = row[3 * n : self.first_copy].reshape(2, -1)
        outputs[0] = adapter.b + address
        outputs[1] = (adapter.affine + address) * adapter.has_affine
        row[self.first_copy : -1] = (adapter.copies + address) * adapter.copied
        row[-1] = adapter.has_affine.any()

    def low_columns(self, inputs: int, bf16: bool) -> int:
        """Columns of scale * A x of a site with so many A, in bf16 or in float32."""
        return inputs * (
            math.ceil(self.max_rank / _LOW_BLOCK) * _LOW_BLOCK if bf16 else self.max_rank
        )


def _starts(
    shape: AdapterShape,
    ranks: Sequence[int],
    bf16: bool,
    has_affine: Sequence[bool],
    copied: Sequence[bool],
) -> NDArray[np.int64]:
    """[I + O + 1 + O + C + 1] where each matrix begins, with the zeros after the last B as one of
    them, and where the last one ends."""
    itemsize = 2 if bf16 else 4
    a, b = shape.sizes(ranks, itemsize)
    affine = [
        math.ceil(n / PANEL) * 2 * PANEL * 4 if has else 0
        for n, has in zip(shape.n, has_affine, strict=True)
    ]
    whole = [
        size if has else 0 for size, has in zip(shape.copy_sizes(itemsize), copied, strict=True)
    ]
    return np.cumsum([0, *map(_aligned, (*a, *b, _SPARE, *affine, *whole))]).astype(np.int64)


def _panel_numbers(n: int, k: int) -> int:
    """Of a matrix [n, k] that is stored in panels."""
    return math.ceil(n / PANEL) * PANEL * math.ceil(k / 2) * 2


def _to_panels(values: NDArray[np.generic], panels: NDArray[np.generic]) -> None:
    """Store a matrix [n, k] as [panels, pairs, PANEL, 2]."""
    count, pairs = panels.shape[:2]
    n, k = values.shape
    padded = np.zeros((count * PANEL, pairs * 2), panels.dtype)
    padded[:n, :k] = values
    panels[:] = padded.reshape(count, PANEL, pairs, 2).swapaxes(1, 2)


def _from_panels(panels: NDArray[np.generic], n: int, k: int) -> NDArray[np.float32]:
    """[n, k] of [panels, pairs, PANEL, 2]."""
    count, pairs = panels.shape[:2]
    rows = panels.astype(np.float32).swapaxes(1, 2).reshape(count * PANEL, pairs * 2)
    return rows[:n, :k]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
