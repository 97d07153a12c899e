"""`Unpacked`: a weight as codes, scales and minima (or dense), before a kernel's layout.

It is what every checkpoint format becomes and what `kernels.weights.pack` starts from. Rows can be
joined (q, k, v into one weight), interleaved (gate with up) and cut along either axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

#: Codes of the int8 kernels lie in 0 … 255 around this zero.
INT8_ZERO = 128


@dataclass(frozen=True, eq=False)
class Unpacked:
    """A weight of N outputs and K inputs: dense, or quantised in groups along K.

        row n, group g:   value[n, k] = scale[n, g] * (q[n, k] - zero) + min[n, g]
                          for k in g * group ... (g + 1) * group - 1

    Attributes:
        dense: [N, K] (or [N] for norms and biases) float32 or bfloat16; None if quantised.
        q: [N, K] uint8 codes.
        bits: what a code needs in a kernel: 4 (0 … 15) or 8 (code - zero fits int8).
        group: values along K that share a scale.
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

    def to_float32(self) -> NDArray[np.float32]:
        """The values, [N, K] float32, in the arithmetic that defines the format."""
        if self.dense is not None:
            return self.dense.astype(np.float32)
        q, scale = self._codes
        n, k = q.shape
        value = q.astype(np.float32).reshape(n, k // self.group, self.group)
        value -= np.float32(self.zero)
        value *= scale.astype(np.float32)[..., None]
        if self.min is not None:
            value += self.min.astype(np.float32)[..., None]
        return value.reshape(n, k)

    @property
    def _codes(self) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
        assert self.q is not None
        assert self.scale is not None
        return self.q, self.scale

    def rows(self, start: int, stop: int) -> Unpacked:
        """Outputs [start, stop): the slice of a column-parallel rank. Views, not copies."""
        assert 0 <= start < stop <= self.shape[0]
        return self._map(lambda a: a[start:stop])

    def columns(self, start: int, stop: int) -> Unpacked:
        """Inputs [start, stop): the slice of a row-parallel rank.

        Raises ValueError where a border would cut through a group of shared scales.
        """
        assert 0 <= start < stop <= self.shape[1]
        if self.dense is not None:
            return replace(self, dense=self.dense[:, start:stop])
        q, scale = self._codes
        if start % self.group or stop % self.group:
            raise ValueError(f"columns {start}:{stop} cut through groups of {self.group}")
        groups = slice(start // self.group, stop // self.group)
        return replace(
            self,
            q=q[:, start:stop],
            scale=scale[:, groups],
            min=None if self.min is None else self.min[:, groups],
        )

    def take_rows(self, order: NDArray[np.integer]) -> Unpacked:
        """Outputs in another order (or some of them). Copies."""
        return self._map(lambda a: a[order])

    def _map(self, f) -> Unpacked:  # type: ignore[no-untyped-def]
        """Apply `f` to each row-indexed array."""

        def over(a):  # type: ignore[no-untyped-def]
            return None if a is None else f(a)

        return replace(
            self, dense=over(self.dense), q=over(self.q), scale=over(self.scale), min=over(self.min)
        )


def concat_rows(parts: Sequence[Unpacked]) -> Unpacked:
    """One weight whose outputs are those of `parts`, one part after the other.

    Parts of different formats meet in the narrowest common one that keeps every value: int8 codes
    with the smallest group for quantised parts, float32 where one of them is dense.
    """
    return _join(unify(parts), np.concatenate)


def interleave_rows(first: Unpacked, second: Unpacked, run: int = 1) -> Unpacked:
    """Outputs of two weights of equal shape in turn, `run` rows of each at a time.

        run = 1:   first 0, second 0, first 1, second 1, ...

    The fused SiLU·mul reads gate and up so.
    """
    assert first.shape == second.shape
    assert first.shape[0] % run == 0

    def weave(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        a, b = (x.reshape(-1, run, *x.shape[1:]) for x in arrays)
        return np.stack([a, b], axis=1).reshape(-1, *arrays[0].shape[1:])

    return _join(unify([first, second]), weave)


def unify(parts: Sequence[Unpacked]) -> list[Unpacked]:
    """The same weights, all in one format; no value changes."""
    if len({p.format for p in parts}) <= 1:
        return list(parts)
    if any(p.dense is not None for p in parts):
        return [Unpacked(dense=p.to_float32()) for p in parts]
    group = min(p.group for p in parts)
    if any(p.group % group for p in parts):
        return [Unpacked(dense=p.to_float32()) for p in parts]
    wide = any(p.scale is not None and p.scale.dtype == np.float32 for p in parts)
    dtype = np.dtype(np.float32 if wide else np.float16)
    has_min = any(p.min is not None for p in parts)
    return [_as_int8(p, group, dtype, has_min) for p in parts]


def _as_int8(part: Unpacked, group: int, dtype: np.dtype, has_min: bool) -> Unpacked:
    """Codes around INT8_ZERO, scales repeated for smaller groups, minima where others have them."""
    codes, scales = part._codes
    times = part.group // group
    scale = np.repeat(scales.astype(dtype), times, axis=1)
    low = None
    if has_min:
        source = np.zeros_like(scales) if part.min is None else part.min
        low = np.repeat(source.astype(dtype), times, axis=1)
    # uint8 arithmetic wraps, and q - zero fits int8, so the sum is right whatever the zero was.
    q = codes + np.uint8((INT8_ZERO - part.zero) % 256)
    return Unpacked(q=q, bits=8, group=group, zero=INT8_ZERO, scale=scale, min=low)


def _join(parts: Sequence[Unpacked], how) -> Unpacked:  # type: ignore[no-untyped-def]
    first = parts[0]

    def over(name: str) -> NDArray | None:
        arrays = [getattr(p, name) for p in parts]
        return None if arrays[0] is None else how(arrays)

    return replace(first, dense=over("dense"), q=over("q"), scale=over("scale"), min=over("min"))
