"""Root-mean-square norm of a row, or of parts of it, with a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    x, gate, out = node.reads["x"], node.reads["gate"], whole(output(node))
    return {
        "x_stride": x.buffer.columns,
        "gate_stride": gate.buffer.columns,
        "out_kind": int(out.kind),
    }


class GatedNorm(Op):
    name = "gated_norm"
    native = NativeOp(
        "gated_norm",
        pointers={"x": "f32", "gate": "f32", "weight": "f32 [groups * n]", "out": ""},
        ints={
            "n": "",
            "groups?": "default 1: vectors of n columns, each normalised by itself",
            "gate_first?": "1 = the norm is of x * silu(gate)",
            "x_stride?": "default groups * n",
            "gate_stride?": "default groups * n",
            "out_kind": "",
        },
        floats={"eps": "", "gate_scale?": "default 1"},
        arguments=_arguments,
        stores=WHOLE_ROWS,
        rows={"x": TOKENS, "gate": TOKENS, "out": TOKENS},
    )

    def __call__(
        self,
        x: Value,
        gate: Value,
        weight: Constant,
        eps: float,
        *,
        groups: int = 1,
        gate_first: bool = False,
        gate_scale: float = 1.0,
    ) -> Value:
        """[T, H]: norm(x) * weight * silu(gate * gate_scale), or with `gate_first`
        norm(x * silu(gate * gate_scale)) * weight; norm divides each of `groups` parts of a row by
        its root mean square.
        """
        self.require_columns(x, weight.shape[0])
        self.require_columns(gate, weight.shape[0])
        self.require(weight.shape[0] % groups == 0, f"{weight.shape[0]} columns in {groups} parts")
        return self.run(x, gate, weight, eps, groups, gate_first, gate_scale)

    def reference(
        self,
        ref: ReferenceOps,
        x: Tensor,
        gate: Tensor,
        weight: Tensor,
        eps: float,
        groups: int,
        gate_first: bool,
        gate_scale: float,
    ) -> Tensor:
        import torch
        from torch.nn import functional

        factor = functional.silu(gate.float() * gate_scale)
        wide = x.float() * factor if gate_first else x.float()
        parts = wide.unflatten(-1, (groups, -1))
        normed = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
        y = normed.flatten(-2) * weight
        return (y if gate_first else y * factor).to(x.dtype)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        gate: Symbol,
        weight: NDArray[np.float32],
        eps: float,
        groups: int,
        gate_first: bool,
        gate_scale: float,
    ) -> Symbol:
        out = Symbol.new(TOKENS, x.columns)
        recorder.add(
            Node(
                "gated_norm",
                {"x": x, "gate": gate},
                {"out": out},
                constants={"weight": weight},
                ints={"n": x.columns // groups, "groups": groups, "gate_first": int(gate_first)},
                floats={"eps": eps, "gate_scale": gate_scale},
            )
        )
        return out


gated_norm: GatedNorm = GatedNorm()
