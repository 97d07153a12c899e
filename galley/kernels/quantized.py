"""`QuantizedWeight`: a weight as codes, scales and minima (or dense), before a kernel's layout.

It is what every checkpoint format becomes and what `kernels.weights.pack` starts from. Rows can be
joined (q, k, v into one weight), interleaved (gate with up) and cut along either axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight of N outputs and K inputs: dense, or quantised in groups along K.

        row n, group g:   value[n, k] = scale[n, g] * (q[n, k] - zero) + min[n, g]
                          for k in g * group ... (g + 1) * group - 1

    Attributes:
        dense: [N, K] (or [N] for norms and biases) float32 or bfloat16; None if quantised.
        q: [N, K] uint8 codes.
        bits: what a code needs in a kernel: 4 (0 … 15) or 8 (code - zero fits int8).
        group: values along K that share a scale; 0 = all of them, one scale per output.
        zero: the code of value `min`; one number per format.
        scale, min: [N, K / group], both float16 or both float32; min None = 0.
    """

    dense: NDArray[np.generic] | None = None
    q: NDArray[np.uint8] | None = None
    bits: int = 0
    group: int = 0
    zero: int = 0
    scale: NDArray[np.floating] | None = None
    min: NDArray[np.floating] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._main.shape

    @property
    def format(self) -> tuple[object, ...]:
        """Two weights whose formats are equal can be joined as they are."""
        if self.dense is not None:
            return ("dense", self.dense.dtype.name)
        scale = self._codes[1]
        return (self.bits, self.group, self.zero, scale.dtype.name, self.min is not None)

    @property
    def _main(self) -> NDArray[np.generic]:
        main = self.q if self.dense is None else self.dense
        assert main is not None
        return main

    @property
    def _codes(self) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
        assert self.q is not None
        assert self.scale is not None
        return self.q, self.scale

    def to_float32(self) -> NDArray[np.float32]:
        """The values, [N, K] float32, in the arithmetic that defines the format."""
        if self.dense is not None:
            return self.dense.astype(np.float32)
        q, scale = self._codes
        n, k = q.shape
        group = self.group or k
        value = q.astype(np.float32).reshape(n, k // group, group)
        value -= np.float32(self.zero)
        value *= scale.astype(np.float32)[..., None]
        if self.min is not None:
            value += self.min.astype(np.float32)[..., None]
        return value.reshape(n, k)

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """Outputs [start, stop): the slice of a column-parallel rank. Views, not copies."""
        assert 0 <= start < stop <= self.shape[0]

        def cut(a: Array | None) -> Array | None:
            return None if a is None else a[start:stop]

        return replace(
            self, dense=cut(self.dense), q=cut(self.q), scale=cut(self.scale), min=cut(self.min)
        )

    def columns(self, start: int, stop: int) -> QuantizedWeight:
        """Inputs [start, stop): the slice of a row-parallel rank.

        Raises ValueError where a border would cut through a group of shared scales.
        """
        assert 0 <= start < stop <= self.shape[1]
        if self.dense is not None:
            return replace(self, dense=self.dense[:, start:stop])
        q, scale = self._codes
        if self.group == 0:
            return replace(self, q=q[:, start:stop])
        if start % self.group or stop % self.group:
            raise ValueError(f"columns {start}:{stop} cut through groups of {self.group}")
        groups = slice(start // self.group, stop // self.group)
        return replace(
            self,
            q=q[:, start:stop],
            scale=scale[:, groups],
            min=None if self.min is None else self.min[:, groups],
        )


def concat_rows(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """One weight whose outputs are those of `parts`, which have one format, one after the other."""
    return _join(parts, np.concatenate)


def interleave_rows(first: QuantizedWeight, second: QuantizedWeight, run: int) -> QuantizedWeight:
    """Outputs of two weights of one shape and format in turn, `run` rows of each at a time.

        run = 2:   first 0, first 1, second 0, second 1, first 2, first 3, ...

    The fused SiLU·mul reads gate and up so.
    """
    assert first.shape == second.shape
    assert first.shape[0] % run == 0

    def weave(arrays: Sequence[Array]) -> Array:
        a, b = (x.reshape(-1, run, *x.shape[1:]) for x in arrays)
        return np.stack([a, b], axis=1).reshape(-1, *arrays[0].shape[1:])

    return _join([first, second], weave)


def _join(
    parts: Sequence[QuantizedWeight], how: Callable[[Sequence[Array]], Array]
) -> QuantizedWeight:
    first = parts[0]
    assert all(p.format == first.format for p in parts)

    def over(name: str) -> Array | None:
        arrays = [getattr(p, name) for p in parts]
        return None if arrays[0] is None else how(arrays)

    return replace(first, dense=over("dense"), q=over("q"), scale=over("scale"), min=over("min"))
