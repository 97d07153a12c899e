"""A fixed multiplier of a value."""

from __future__ import annotations

import numpy as np

from galley.kernels.ops import Ops, Value
from galley.layers.weights import WeightSource


class Multiplier:
    """x → factor * x; does nothing where the factor is 1."""

    def __init__(self, source: WeightSource, factor: float) -> None:
        self._factor = None
        if factor != 1.0:
            self._factor = source.constant((1,), lambda: np.array([factor], np.float32))

    def __call__(self, ops: Ops, x: Value) -> Value:
        return x if self._factor is None else ops.scale(x, self._factor)
