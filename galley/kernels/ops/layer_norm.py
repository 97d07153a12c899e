"""Norm of each row, or of each head by itself, to mean 0 and variance 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import Op
from galley.kernels.ops.norm_op import norm_native
from galley.kernels.program import Constant as NodeConstant
from galley.kernels.program import Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


class LayerNorm(Op):
    name = "layer_norm"
    native = norm_native(
        "layer_norm",
        constants={
            **dict.fromkeys(("weight?", "bias?"), "f32 [n], or [heads * n]"),
            "rounded?": "the rows of out, which is f32, as rounded_kind",
        },
        ints={
            "per_head?": "1 = weight and bias are [heads * n]",
            "rounded_kind?": "bf16, q8, q8_row, q16",
        },
        in_place=True,
    )

    def __call__(
        self,
        x: Value,
        size: int,
        weight: Constant | None,
        bias: Constant | None,
        eps: float,
    ) -> Value:
        """[T, heads * size]: (x - mean) / sqrt(variance + eps) * weight + bias of each head; weight
        and bias [size], or [heads * size] in any shape."""
        columns = x.shape[-1]
        self.require(columns % size == 0, f"{columns} columns in heads of {size}")
        sizes = {math.prod(c.shape) for c in (weight, bias) if c is not None}
        self.require(
            sizes <= {size} or sizes <= {columns},
            f"weight and bias of {sorted(sizes)} numbers for heads of {size}",
        )
        return self.run(x, size, weight, bias, eps)

    def reference(
        self,
        ref: ReferenceOps,
        x: Tensor,
        size: int,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        import torch

        heads = x.float().unflatten(-1, (-1, size))
        y = torch.nn.functional.layer_norm(heads, (size,), eps=eps)
        if weight is not None:
            y = y * weight.view(-1, size)
        if bias is not None:
            y = y + bias.view(-1, size)
        return y.flatten(-2).to(x.dtype)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        size: int,
        weight: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        eps: float,
    ) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns)
        constants: dict[str, NodeConstant] = {
            name: values
            for name, values in (("weight", weight), ("bias", bias))
            if values is not None
        }
        per_head = any(values.shape != (size,) for values in constants.values())
        recorder.add(
            Node(
                "layer_norm",
                {"x": x},
                {"out": out},
                constants=constants,
                ints={"n": size, "per_head": int(per_head)},
                floats={"eps": eps},
            )
        )
        return out


layer_norm: LayerNorm = LayerNorm()
