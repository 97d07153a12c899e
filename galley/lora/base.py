"""The base model's weights as numbers, for adapters that cannot be packed without them."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from galley.config import EngineConfig
from galley.kernels.backend import Backend
from galley.layers.weight_specs import Matrix, Part, Vector
from galley.layers.weights import CheckpointWeights
from galley.loader import Checkpoint, open_checkpoint, resolve_source
from galley.quant import QuantizedWeight


class _Numbers:
    """A backend for `CheckpointWeights` that leaves weights as float32 arrays."""

    def weight(self, data: QuantizedWeight, float32: bool = False) -> NDArray[np.float32]:
        return data.to_float32()

    def constant(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values


class CheckpointBase:
    """Those of a checkpoint (`tensors.BaseWeights`), opened when it is first needed."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def rows(self, part: Part) -> NDArray[np.float32]:
        [rows] = self._weights().matrix(Matrix((part,)))
        return cast(NDArray[np.float32], rows)

    def bias(self, part: Part) -> NDArray[np.float32]:
        name = f"{part.name}.bias"
        if name not in self._names:
            return np.zeros(part.num_rows, np.float32)
        vector = Part(name, part.shape[:1], part.rows, part.every)
        return cast(NDArray[np.float32], self._weights().vector(Vector((vector,))))

    def _weights(self) -> CheckpointWeights:
        """New for each use: they keep what they have read."""
        backend: Any = _Numbers()
        return CheckpointWeights(self._checkpoint, cast(Backend, backend))

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return open_checkpoint(resolve_source(self._config.model, self._config.load))

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._checkpoint.names())
