"""Rotary position embedding of queries or keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Kind, Node, Symbol
from galley.kernels.values import RotaryTable, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    x, out = node.reads["x"], whole(output(node))
    return {
        "heads": out.columns // node.ints["head_dim"],
        "x_stride": x.buffer.columns,
        "out_kind": int(out.kind),
    }


class Rope(Op):
    name = "rope"
    native = NativeOp(
        "rope",
        pointers={
            "x": "f32",
            "table": "f32 [positions][rot_dim], cos half then sin half",
            "out": "",
        },
        ints={
            "heads": "",
            "head_dim": "",
            "rot_dim": "",
            "style?": "0 halves, 1 interleaved",
            "x_stride?": "default heads * head_dim",
            "out_kind": "f32, bf16",
        },
        columns=("positions",),
        arguments=_arguments,
        stores=(Kind.f32, Kind.bf16),
        rows={"x": TOKENS, "out": TOKENS},
    )

    def __call__(self, x: Value, positions: Value, table: RotaryTable, head_dim: int) -> Value:
        """[T, heads * D]: x with each head's first rot_dim elements rotated by its position."""
        heads_fit = x.shape[-1] % head_dim == 0
        self.require(heads_fit, f"{x.shape[-1]} columns in heads of {head_dim}")
        self.require(table.rot_dim <= head_dim, f"{table.rot_dim} of {head_dim} elements")
        return self.run(x, positions, table, head_dim)

    def reference(
        self, ref: ReferenceOps, x: Tensor, positions: Tensor, table: RotaryTable, head_dim: int
    ) -> Tensor:
        import torch

        half = table.rot_dim // 2
        rows: Tensor = table.values[positions[0]]  # type: ignore[index]
        cos, sin = (c[:, None].to(ref.dtype) for c in (rows[:, :half], rows[:, half:]))
        # a head: [ a (half) | b (half) | passed through ], or [ a0 b0 a1 b1 … | passed through ]
        heads = x.unflatten(-1, (-1, head_dim))
        turned, rest = heads.split([2 * half, head_dim - 2 * half], dim=-1)
        if table.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
            return torch.cat([pairs.flatten(-2), rest], dim=-1).flatten(-2)
        a, b = turned.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).flatten(-2)

    def record(
        self, recorder: Recorder, x: Symbol, positions: Value, table: RotaryTable, head_dim: int
    ) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns)
        values = table.values
        assert isinstance(values, np.ndarray)
        ints = {"head_dim": head_dim, "rot_dim": table.rot_dim, "style": int(table.interleaved)}
        recorder.add(Node("rope", {"x": x}, {"out": out}, constants={"table": values}, ints=ints))
        return out


rope: Rope = Rope()
