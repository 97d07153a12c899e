"""Root-mean-square normalisation with a learned weight."""

from __future__ import annotations

from dataclasses import dataclass

from galley.kernels.ops import Ops, Value
from galley.layers.questions import Part, Vector
from galley.layers.weights import WeightSource


@dataclass(frozen=True)
class NormSpec:
    """A norm of `size` values.

    Attributes:
        name: of its tensor, without ".weight".
        plus: added to the stored weight (families that store w for 1 + w).
    """

    name: str
    size: int
    eps: float
    plus: float = 0.0


class RMSNorm:
    """x [T, size] → like x: each row divided by its root mean square."""

    def __init__(self, source: WeightSource, spec: NormSpec) -> None:
        weight = Part(f"{spec.name}.weight", (spec.size,))
        self.weight = source.vector(Vector((weight,), plus=spec.plus))
        self.eps = spec.eps

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.rms_norm(x, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """The same for each head of x [T, heads * size] by itself (qk-norm)."""

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.head_norm(x, self.weight, self.eps)
