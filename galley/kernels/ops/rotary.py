"""Rotary position embedding of queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from galley.kernels.ops.definition import NativeOp, Op
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import RotaryTable, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


class Rotary(Op):
    name = "rotary"
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
    )

    def __call__(
        self, q: Value, k: Value, positions: Value, table: RotaryTable, head_dim: int
    ) -> tuple[Value, Value]:
        """q [T, Hq * D] and k [T, Hkv * D], each head's first rot_dim elements rotated."""
        for name, x in (("q", q), ("k", k)):
            self.require(x.shape[-1] % head_dim == 0, f"{name} is not whole heads of {head_dim}")
        self.require(table.rot_dim <= head_dim, f"{table.rot_dim} of {head_dim} elements")
        rotated_q, rotated_k = self.run(q, k, positions, table, head_dim)
        return rotated_q, rotated_k

    def reference(
        self,
        ref: ReferenceOps,
        q: Tensor,
        k: Tensor,
        positions: Tensor,
        table: RotaryTable,
        head_dim: int,
    ) -> tuple[Tensor, Tensor]:
        import torch

        half = table.rot_dim // 2
        rows: Tensor = table.values[positions[0]]  # type: ignore[index]
        cos, sin = (c[:, None].to(ref.dtype) for c in (rows[:, :half], rows[:, half:]))

        def rotate(x: Tensor) -> Tensor:
            # a head: [ a (half) | b (half) | passed through ]
            heads = x.unflatten(-1, (-1, head_dim))
            a, b, rest = heads.split([half, half, head_dim - 2 * half], dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).flatten(-2)

        return rotate(q), rotate(k)

    def record(
        self,
        recorder: Recorder,
        q: Symbol,
        k: Symbol,
        positions: Value,
        table: RotaryTable,
        head_dim: int,
    ) -> tuple[Symbol, Symbol]:
        # Queries and keys are rounded as the cache is.
        q_rotated = Symbol.new(TOKENS, q.columns, recorder.kv_kind)
        k_rotated = Symbol.new(TOKENS, k.columns, recorder.kv_kind)
        values = table.values
        assert isinstance(values, np.ndarray)
        recorder.add(
            Node(
                "rotary",
                {"q": q, "k": k},
                {"q_out": q_rotated, "k_out": k_rotated},
                constants={"table": values},
                ints={"head_dim": head_dim, "rot_dim": table.rot_dim},
            )
        )
        return q_rotated, k_rotated


rotary: Rotary = Rotary()
