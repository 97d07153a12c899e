"""Root-mean-square norm of each head by itself (qk-norm)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.rms_norm import RMSNorm
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.reference import ReferenceOps


class HeadNorm(RMSNorm):
    name = "head_norm"

    def __call__(self, x: Value, weight: Constant, eps: float) -> Value:
        """[T, heads * D]: `rms_norm` of each head by itself; weight [D]."""
        d = weight.shape[0]
        self.require(x.shape[-1] % d == 0, f"{x.shape[-1]} columns in heads of {d}")
        return self.run(x, weight, eps)

    def reference(self, ref: ReferenceOps, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        heads = x.unflatten(-1, (-1, weight.shape[0]))
        return super().reference(ref, heads, weight, eps).flatten(-2)


head_norm: HeadNorm = HeadNorm()
