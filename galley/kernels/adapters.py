"""Low-rank adapters (LoRA) as the kernels read them: y += scale * B (A x).

    site            a linear layer of the model, to which adapters may add
    inputs          its matrices A [rank, K]: one for each tensor of the checkpoint
    parts           its matrices B [N, rank]: one for each run of the layer's outputs

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
        inputs: how many A it has.
        logits: its rows are logit rows, not tokens.
    """

    k: int
    first_input: int
    first_output: int
    inputs: int
    parts: tuple[AdapterPart, ...]
    logits: bool = False


class AdapterShape(msgspec.Struct, frozen=True):
    """Sizes of the matrices that an adapter of a model may have.

    Attributes:
        k: [I] inputs of each A.
        n: [O] outputs of each B.
        input_of: [O] the A of each B.
    """

    k: tuple[int, ...]
    n: tuple[int, ...]
    input_of: tuple[int, ...]

    @staticmethod
    def of(sites: Sequence[AdapterSite]) -> AdapterShape:
        k = [site.k for site in sites for _ in range(site.inputs)]
        parts = [(site, part) for site in sites for part in site.parts]
        n = [part.outputs for _, part in parts]
        input_of = [site.first_input + part.input for site, part in parts]
        return AdapterShape(tuple(k), tuple(n), tuple(input_of))

    def sizes(self, ranks: Sequence[int], itemsize: int) -> tuple[list[int], list[int]]:
        """Bytes of each A and of each B, as they are stored."""
        a = [rank * k * itemsize for rank, k in zip(ranks, self.k, strict=True)]
        b = [
            math.ceil(n / PANEL) * PANEL * ranks[i] * itemsize
            for n, i in zip(self.n, self.input_of, strict=True)
        ]
        return a, b

    def num_bytes(self, rank: int, itemsize: int) -> int:
        """Most bytes of an adapter whose ranks are at most `rank`."""
        a, b = self.sizes([rank] * len(self.k), itemsize)
        return sum(_aligned(size) for size in (*a, *b))


class PackedAdapter(msgspec.Struct, frozen=True, eq=False):
    """An adapter's matrices in one piece of memory.

    Attributes:
        ranks: [I] of each A; 0 = none.
        scales: [I] float32.
        a, b: [I], [O] offsets in `data`.
        bf16: numbers are bf16; otherwise float32.
        data: bytes; its address is a multiple of 64.
    """

    shape: AdapterShape
    ranks: NDArray[np.int64]
    scales: NDArray[np.float32]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    bf16: bool
    data: NDArray[np.uint8]

    @staticmethod
    def empty(
        shape: AdapterShape, ranks: Sequence[int], scales: Sequence[float], bf16: bool
    ) -> PackedAdapter:
        """An adapter of zeros."""
        starts = _starts(shape, ranks, bf16)
        data = np.zeros(int(starts[-1]) + ALIGNMENT, np.uint8)
        data = data[-data.ctypes.data % ALIGNMENT :][: int(starts[-1])]
        n = len(shape.k)
        numbers = np.array(ranks, np.int64), np.array(scales, np.float32)
        return PackedAdapter(shape, *numbers, starts[:n], starts[n:-1], bf16, data)

    @staticmethod
    def over(
        shape: AdapterShape,
        ranks: NDArray[np.int64],
        scales: NDArray[np.float32],
        bf16: bool,
        data: NDArray[np.uint8],
    ) -> PackedAdapter | None:
        """An adapter whose numbers exist; None if `data` has not the size that the ranks need."""
        if (ranks < 0).any() or (ranks > 2**16).any():
            return None
        starts = _starts(shape, ranks.tolist(), bf16)
        if len(data) != int(starts[-1]):
            return None
        n = len(shape.k)
        return PackedAdapter(shape, ranks, scales, starts[:n], starts[n:-1], bf16, data)

    def matrix_a(self, i: int) -> NDArray[np.generic]:
        """[rank, K] of an A; writable if `data` is."""
        return self._view(int(self.a[i]), (int(self.ranks[i]), self.shape.k[i]))

    def matrix_b(self, i: int) -> NDArray[np.float32]:
        """[N, rank] of a B."""
        panels = self.panels(i).astype(np.float32)
        rank = panels.shape[1]
        return panels.transpose(0, 2, 1).reshape(-1, rank)[: self.shape.n[i]]

    def set_b(self, i: int, values: NDArray[np.generic]) -> None:
        """Store a B [N, rank]."""
        panels = self.panels(i)
        padded = np.zeros((len(panels) * PANEL, panels.shape[1]), panels.dtype)
        padded[: len(values)] = values
        panels[:] = padded.reshape(len(panels), PANEL, -1).transpose(0, 2, 1)

    def panels(self, i: int) -> NDArray[np.generic]:
        """[panels, rank, PANEL] of a B."""
        rank = int(self.ranks[self.shape.input_of[i]])
        return self._view(int(self.b[i]), (math.ceil(self.shape.n[i] / PANEL), rank, PANEL))

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
        table: [places, 3 I + O] int64, see csrc/adapters.h.
        adapters: by place.
    """

    def __init__(self, shape: AdapterShape, places: int, max_rank: int, bf16: bool) -> None:
        self.shape, self.max_rank, self.bf16 = shape, max_rank, bf16
        self.num_inputs = len(shape.k)
        self.table = np.zeros((places, 3 * self.num_inputs + len(shape.n)), np.int64)
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
        row[3 * n :] = adapter.b + address


def _starts(shape: AdapterShape, ranks: Sequence[int], bf16: bool) -> NDArray[np.int64]:
    """[I + O + 1] where each A and each B begins, and where the last one ends."""
    sizes = [_aligned(size) for group in shape.sizes(ranks, 2 if bf16 else 4) for size in group]
    return np.cumsum([0, *sizes]).astype(np.int64)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
