"""A checkpoint of random weights, for tests and for measuring without a download.

Its tensors are those that the model asks for. Each is generated when it is read, and depends on the
seed and its name alone.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader import Source, read_model_info
from galley.loader.tensor import DENSE_DTYPES, RawTensor, TensorHeader
from galley.models.footprint import tensor_shapes

#: Standard deviation of the weights: small, so that activations stay small over many layers.
SCALE = 0.02
#: Numbers after which a large tensor repeats itself: a prime, so that its rows differ.
PERIOD = 1_000_003


class DummyCheckpoint:
    """Tensors of the model's dtype (bfloat16 for a quantised model); norms are ones."""

    def __init__(self, model_info: ModelInfo, seed: int = 0) -> None:
        """Raises ModelError if the model is not supported."""
        self.model_info = model_info
        self._seed = seed & (2**64 - 1)
        self._dtype = model_info.dtype if model_info.dtype in DENSE_DTYPES else "bfloat16"
        self._shapes = tensor_shapes(model_info)

    @staticmethod
    def open(source: Source) -> DummyCheckpoint:
        """For the load format "dummy"."""
        return DummyCheckpoint(read_model_info(source), source.seed)

    def names(self) -> list[str]:
        return list(self._shapes)

    def header(self, name: str) -> TensorHeader:
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(f"{self.model_info.source}: has no tensor {name}")
        return TensorHeader(shape, self._dtype)

    def tensor(self, name: str) -> RawTensor:
        shape, dtype = self.header(name).shape, DENSE_DTYPES[self._dtype]
        if name.endswith("norm.weight"):
            values = np.ones(shape, dtype)
        else:
            random = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
            count = min(math.prod(shape), PERIOD)
            numbers = random.standard_normal(count, np.float32) * np.float32(SCALE)
            values = np.resize(numbers.astype(dtype), shape)
        return RawTensor(name, shape, self._dtype, values)
