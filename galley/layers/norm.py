"""Root-mean-square normalisation with a learned weight."""

from __future__ import annotations

from galley.kernels.ops import Ops, Value
from galley.layers.questions import Part, Vector
from galley.layers.weights import WeightSource


class RMSNorm:
    """x [T, size] → like x: each row divided by its root mean square."""

    def __init__(self, source: WeightSource, name: str, size: int, eps: float) -> None:
        self.weight = source.vector(Vector((Part(f"{name}.weight", (size,)),)))
        self.eps = eps

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.rms_norm(x, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """The same for each head of x [T, heads * size] by itself (qk-norm)."""

    def __call__(self, ops: Ops, x: Value) -> Value:
        return ops.head_norm(x, self.weight, self.eps)
