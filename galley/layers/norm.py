"""Norms: what a layer needs of one, and root-mean-square normalisation."""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np

from galley.kernels.ops import Constant, Ops, Value
from galley.layers.weight_specs import Part, Vector
from galley.layers.weights import WeightSource


class Norm(Protocol):
    """x [T, columns] → like x."""

    def __call__(self, ops: Ops, x: Value) -> Value: ...


class NormSpec(Protocol):
    """Size and tensors of a norm (`RMSNormSpec`, …)."""

    @property
    def size(self) -> int:
        """Number of values that are normalised together."""

    def build(self, source: WeightSource) -> Norm: ...


class RMSNormSpec(msgspec.Struct, frozen=True):
    """A root-mean-square norm of `size` values.

    Attributes:
        name: of its tensor, without ".weight"; None = it has no weight.
        plus: added to the stored weight (families that store w for 1 + w).
    """

    name: str | None
    size: int
    eps: float
    plus: float = 0.0

    def build(self, source: WeightSource) -> RMSNorm:
        return RMSNorm(source, self)


class HeadNormSpec(RMSNormSpec, frozen=True):
    """The same for each head of `size` values by itself (qk-norm)."""

    def build(self, source: WeightSource) -> HeadNorm:
        return HeadNorm(source, self)


class RMSNorm:
    """x [T, size] → like x: each row divided by its root mean square."""

    def __init__(self, source: WeightSource, spec: RMSNormSpec) -> None:
        self.weight = _weight(source, spec)
        self.eps = spec.eps

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.rms_norm(x, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """x [T, heads * size] → like x, head by head."""

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.head_norm(x, self.weight, self.eps)


def _weight(source: WeightSource, spec: RMSNormSpec) -> Constant:
    if spec.name is None:
        return source.constant((spec.size,), lambda: np.ones(spec.size, np.float32))
    weight = Part(f"{spec.name}.weight", (spec.size,))
    return source.vector(Vector((weight,), plus=spec.plus))
