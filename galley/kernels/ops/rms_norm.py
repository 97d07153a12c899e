"""Root-mean-square norm of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import Op
from galley.kernels.ops.norm_op import norm_native
from galley.kernels.program import Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


class RMSNorm(Op):
    name = "rms_norm"
    native = norm_native("rms_norm", constants={"weight": "f32 [n]"})

    def __call__(self, x: Value, weight: Constant, eps: float) -> Value:
        """[T, H]: x / sqrt(mean(x²) + eps) * weight, mean over a row."""
        self.require_columns(x, weight.shape[0])
        return self.run(x, weight, eps)

    def reference(self, ref: ReferenceOps, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        import torch

        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return normed.to(x.dtype) * weight.to(x.dtype)

    def record(
        self, recorder: Recorder, x: Symbol, weight: NDArray[np.float32], eps: float
    ) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns)
        constants = {"weight": weight}
        recorder.add(
            Node("rms_norm", {"x": x}, {"out": out}, constants=constants, floats={"eps": eps})
        )
        return out


rms_norm: RMSNorm = RMSNorm()
