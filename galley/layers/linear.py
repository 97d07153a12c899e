"""Linear layers: some tensors of the checkpoint as one product, shared over a parallel group.

column parallel:  cut="outputs": each rank has some outputs of W, all inputs      y = [ y0 | y1 ]
row parallel:     cut="inputs":  each rank has some inputs of W, all outputs      y = y0 + y1
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops import Constant, Ops, Value
from galley.layers.weight_specs import Matrix, bias_of, interleaved
from galley.layers.weights import WeightSource


class Linear:
    """x [T, K] → [T, N]; N is this rank's share where the outputs are cut.

    Attributes:
        matrix: the tensors that the layer consists of.
        site: its numbers among the layers that adapters may add to; None = it is none of them.
        interleaved: the outputs of its two parts come in turn, as `matrix` asks.
    """

    def __init__(
        self, source: WeightSource, matrix: Matrix, bias: bool = False, adapted: bool = True
    ) -> None:
        self.matrix = matrix
        self.weights = source.matrix(matrix)
        self.interleaved = matrix.interleave > 0 and len(self.weights) == 1
        self._ranks = source.group.size if matrix.cut == "outputs" else 1
        self._sum = matrix.cut == "inputs"  # the result is one rank's term of a sum
        self.site = source.sites.add(matrix, self._run, self._ranks) if adapted else None
        self.bias: Constant | None = None
        if bias:
            values = source.vector(bias_of(matrix, self._run))
            # A sum over ranks contains the bias once.
            self.bias = values if not self._sum or source.group.rank == 0 else None

    def __call__(self, ops: Ops, x: Value) -> Value:
        y = ops.linear(x, self.weights, self.bias)
        if ops.adapted and self.site is not None:
            y = ops.adapt(x, y, self.site, self.weights)
        return ops.all_reduce(y) if self._sum else y

    def columns_of(self, name: str) -> NDArray[np.intp]:
        """The output columns that a tensor's rows compute on this rank, in order of the rows.

        Args:
            name: of one of the parts. KeyError for another.
        """
        parts = self.matrix.parts
        sizes = [part.num_rows // self._ranks for part in parts]
        starts = np.cumsum([0, *sizes])
        rows = [np.arange(starts[i], starts[i + 1]) for i in range(len(sizes))]
        columns = np.argsort(interleaved(rows, self._run))  # by row
        mine = [i for i, part in enumerate(parts) if part.name == name]
        if not mine:
            raise KeyError(name)
        # Parts of a fused tensor may come in another order than its rows.
        stored = [np.arange(parts[i].shape[0])[parts[i].take(0, sizes[i])] for i in mine]
        order = np.argsort(np.concatenate(stored))
        return np.concatenate([columns[rows[i]] for i in mine])[order]

    @property
    def _run(self) -> int:
        return self.matrix.interleave if self.interleaved else 0
