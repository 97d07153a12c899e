"""Scales of a weight that are stored per tensor, per output, per group of inputs or per block."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from galley.quant.fp4 import powers_of_two
from galley.quant.registry import to_float32
from galley.quant.scheme import Tensors


class ScaleBlock(NamedTuple):
    """The values that share a scale: so many outputs times so many inputs; 0 = all of them."""

    outputs: int
    inputs: int

    def shape(self, n: int, k: int) -> tuple[int, int]:
        """Scales of a weight [n, k]. Blocks at its borders may be smaller."""
        return -(-n // (self.outputs or n)), -(-k // (self.inputs or k))

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> NDArray[Any]:
        """The scales of a weight of `shape` in tensor `name`: [N, K / inputs], float32 or narrower.

        Raises ModelError if there is no such tensor.
        """
        n, k = shape
        stored: tuple[int, ...] = self.shape(n, k)
        if not (self.outputs or self.inputs) and tensors.has(name):
            scalar = tensors.shape(name)
            stored = scalar if scalar in ((), (1,)) else stored
        if self == (1, 0) and tensors.has(name) and len(tensors.shape(name)) == 1:
            stored = (n,)
        raw = tensors.use(name, stored)
        if raw.dtype in ("uint8", "float8_e8m0fnu"):  # exponents
            exponents = raw.data.view(np.uint8).reshape(self.shape(n, k))
            return self.spread(powers_of_two(exponents), n)
        values = raw.data if raw.dtype == "bfloat16" else to_float32(raw)
        return self.spread(values.reshape(self.shape(n, k)), n)

    def spread(self, values: NDArray[Any], n: int) -> NDArray[Any]:
        """Numbers per block as numbers per output: [blocks, ...] → [n, ...]."""
        return np.repeat(values, min(self.outputs or n, n), axis=0)[:n]
