"""Normalisation to mean 0 and variance 1, with a learned weight and bias or without."""

from __future__ import annotations

import msgspec

from galley.errors import ModelError
from galley.kernels.ops import Constant, Ops, Value
from galley.layers.weight_specs import Part, Vector
from galley.layers.weights import WeightSource


class LayerNormSpec(msgspec.Struct, frozen=True):
    """A layer norm of `size` values, or of each head of so many by itself.

    Attributes:
        name: of its tensors, without ".weight" and ".bias"; None = it has neither.
        bias: whether it has a bias.
        plus: added to the stored weight (families that store w for 1 + w).
    """

    name: str | None
    size: int
    eps: float
    bias: bool = True
    plus: float = 0.0

    def build(self, source: WeightSource) -> LayerNorm:
        if self.name is None:
            return LayerNorm(self.size, None, None, self.eps)
        parts = [Part(f"{self.name}.{kind}", (self.size,)) for kind in ("weight", "bias")]
        weight = source.vector(Vector((parts[0],), plus=self.plus))
        bias = source.vector(Vector((parts[1],))) if self.bias else None
        return LayerNorm(self.size, weight, bias, self.eps)


class PerHeadLayerNormSpec(msgspec.Struct, frozen=True):
    """A layer norm of each head of `size` values, with a weight of its own and no bias.

    Attributes:
        weights: the tensors that hold the weights of all heads, in order, [size] or [heads, size].
    """

    weights: tuple[Part, ...]
    size: int
    eps: float

    def build(self, source: WeightSource) -> LayerNorm:
        if source.group.size > 1:
            raise ModelError("norms with a weight per head cannot be shared by ranks")
        return LayerNorm(self.size, source.vector(Vector(self.weights)), None, self.eps)


class LayerNorm:
    """x [T, heads * size] → like x; weight and bias [size] or [heads * size]."""

    def __init__(
        self, size: int, weight: Constant | None, bias: Constant | None, eps: float
    ) -> None:
        self._size, self._weight, self._bias, self._eps = size, weight, bias, eps

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.layer_norm(x, self._size, self._weight, self._bias, self._eps)
